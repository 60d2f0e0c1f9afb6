"""Handlers of every framework take rows and tables, and their models check the columns."""

import pickle
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.typehints.row_type import RowTypeConstraint
from sklearn.ensemble import HistGradientBoostingRegressor

from row_models import save
from runinference import ModelHandler, RunInference
from runinference.errors import ElementError, OptionError
from runinference.sklearn_inference import SklearnModelHandlerNumpy, SklearnModelHandlerPandas

FRAME = pd.DataFrame({"a": [0.0, 1.0, 2.0, 3.0] * 8, "b": [1, 1, 0, 0] * 8})
TARGET = FRAME.a + 10 * FRAME.b
CLASSES = (FRAME.a + FRAME.b).astype(int) % 3


def rows(frame=FRAME):
    return [{"id": f"r{i}", **row} for i, row in enumerate(frame.head(4).to_dict("records"))]


def output_type(handler, row_type=None, **options):
    """Return the type of the predictions when the pipeline is built."""
    row_type = row_type or RowTypeConstraint.from_fields([("a", float), ("b", int)])
    elements = beam.Pipeline() | beam.Create([]).with_output_types(row_type)
    results = elements | RunInference(handler, output="p", keep=[], **options)
    return results.element_type.get_type_for("p")


def check(handler, expected, kind, **options):
    """Check the predictions on rows and tables, their declared type, and that wrong columns are an error."""
    found = handler.predict(rows(), output="p", keep=["id"], **options)
    assert [row.id for row in found] == ["r0", "r1", "r2", "r3"]
    np.testing.assert_allclose([row.p for row in found], expected[:4], rtol=1e-5)
    assert output_type(handler, **options) == kind
    for table in (FRAME, pa.Table.from_pandas(FRAME)):
        [table] = handler.predict([table], output="p", **options)
        np.testing.assert_allclose(np.stack(list(table["p"].to_numpy())), expected, rtol=1e-5)
    text = RowTypeConstraint.from_fields([("a", str), ("b", int)])
    misspelled = RowTypeConstraint.from_fields([("A", float), ("b", int)])
    with pytest.raises(OptionError, match="no column 'a'.*Did you mean 'A'"):
        output_type(handler, misspelled, **options)
    if kind is not Any:  # the model declares types
        with pytest.raises(OptionError, match="'a' has the type str"):
            output_type(handler, text, **options)
    if not options:
        with pytest.raises(OptionError, match="no feature 'c'"):
            output_type(handler, columns=["a", "c"])
    bad = [*rows(), {**rows()[0], "b": "x"}]
    with pytest.raises(Exception, match=r"(?s)x"):
        handler.predict(bad, output="p", **options)


@pytest.mark.parametrize("kind", ["regressor", "classifier", "booster", "classes"])
def test_xgboost(kind, tmp_path):
    xgboost = pytest.importorskip("xgboost")
    from runinference.xgboost_inference import XGBoostModelHandlerNumpy, XGBoostModelHandlerPandas

    path = str(tmp_path / "model.ubj")
    is_number = kind in ("regressor", "booster")
    objective = {"objective": "multi:softprob"} if kind == "classes" else {}
    estimator = (xgboost.XGBRegressor if is_number else xgboost.XGBClassifier)(
        n_estimators=3, **objective
    )
    estimator.fit(FRAME, TARGET if is_number else CLASSES)
    estimator.save_model(path)
    make = xgboost.Booster if kind in ("booster", "classes") else type(estimator)
    output = {"regressor": float, "booster": float, "classifier": int}.get(kind, Sequence[float])
    expected = estimator.predict_proba(FRAME) if kind == "classes" else estimator.predict(FRAME)
    check(XGBoostModelHandlerPandas(make, path), expected, output)
    check(XGBoostModelHandlerNumpy(make, path), expected, output)


def test_xgboost_gets_categories_and_missing_values(tmp_path):
    xgboost = pytest.importorskip("xgboost")
    from runinference.xgboost_inference import XGBoostModelHandlerPandas

    frame = FRAME.assign(kind=pd.Categorical(["x", "y"] * 16))
    estimator = xgboost.XGBRegressor(n_estimators=3, enable_categorical=True).fit(frame, TARGET)
    estimator.save_model(tmp_path / "model.ubj")
    handler = XGBoostModelHandlerPandas(xgboost.XGBRegressor, str(tmp_path / "model.ubj"))
    missing = frame.assign(a=frame.a.where(frame.a != 1), b=frame.b.astype("Int64"))
    missing.loc[3, "b"] = pd.NA
    [found] = handler.predict([missing], output="p")
    np.testing.assert_allclose(found.p, estimator.predict(missing.astype({"b": float})))
    [found] = handler.predict([pa.Table.from_pandas(missing)], output="p", keep=[])
    np.testing.assert_allclose(found["p"], estimator.predict(missing.astype({"b": float})))


@pytest.mark.parametrize("framework", ["xgboost", "lightgbm", "sklearn"])
@pytest.mark.parametrize("categories", [["x", "y", "z"], [10, 20, 30]])
def test_values_in_rows_become_the_categories_of_the_model(framework, categories, tmp_path):
    library = pytest.importorskip(framework)
    kinds = pd.Categorical([*categories, categories[0]] * 8)
    number = "the a" if framework == "lightgbm" else "a"  # LightGBM changes names with spaces
    frame = pd.DataFrame({number: FRAME.a, "kind": kinds})
    target = FRAME.a + 10 * kinds.codes
    path = str(tmp_path / "model")
    if framework == "xgboost":
        from runinference.xgboost_inference import XGBoostModelHandlerPandas

        model = library.XGBRegressor(n_estimators=9, enable_categorical=True, learning_rate=1)
        model.fit(frame, target).save_model(path)
        handler = XGBoostModelHandlerPandas(library.XGBRegressor, path, min_batch_size=9)
    elif framework == "lightgbm":
        from runinference.lightgbm_inference import LightGBMModelHandlerPandas

        model = library.LGBMRegressor(min_child_samples=1, min_data_per_group=1, verbose=-1)
        model.fit(frame, target).booster_.save_model(path)
        handler = LightGBMModelHandlerPandas(path, min_batch_size=9)
    else:
        model = HistGradientBoostingRegressor(min_samples_leaf=1).fit(frame, target)
        handler = SklearnModelHandlerPandas(save(model, tmp_path), min_batch_size=9)
    rows = frame.head(3).to_dict("records")
    options = {"columns": [number, "kind"], "output": "p", "keep": []}
    np.testing.assert_allclose(
        [r.p for r in handler.predict(rows, **options)], model.predict(frame)[:3]
    )
    alone = [handler.predict([row], **options)[0].p for row in rows]
    np.testing.assert_allclose(alone, model.predict(frame)[:3])
    plain = pd.DataFrame(rows)
    [found] = handler.predict([plain], **options)
    np.testing.assert_allclose(found.p, model.predict(frame)[:3])
    missing = frame.head(2).assign(kind=frame.kind.head(2).where([False, True]))
    found = handler.predict(missing.astype(object).to_dict("records"), **options)
    np.testing.assert_allclose([row.p for row in found], model.predict(missing))
    if framework != "lightgbm":
        row_type = RowTypeConstraint.from_fields([("a", float), ("kind", type(categories[0]))])
        assert output_type(handler, row_type) is float


@pytest.mark.parametrize("kind", ["number", "classes"])
def test_lightgbm(kind, tmp_path):
    lightgbm = pytest.importorskip("lightgbm")
    from runinference.lightgbm_inference import (
        LightGBMModelHandlerNumpy,
        LightGBMModelHandlerPandas,
    )

    make = lightgbm.LGBMRegressor if kind == "number" else lightgbm.LGBMClassifier
    model = make(n_estimators=3, min_child_samples=1, verbose=-1)
    booster = model.fit(FRAME, TARGET if kind == "number" else CLASSES).booster_
    booster.save_model(tmp_path / "model.txt")
    output = float if kind == "number" else Sequence[float]
    for handler in (LightGBMModelHandlerPandas, LightGBMModelHandlerNumpy):
        check(handler(str(tmp_path / "model.txt")), booster.predict(FRAME), output)
    frame = FRAME.rename(columns={"a": "the a"})
    make(n_estimators=1, verbose=-1).fit(frame, CLASSES).booster_.save_model(tmp_path / "b.txt")
    spaced = LightGBMModelHandlerPandas(str(tmp_path / "b.txt"))
    assert len(spaced.predict(rows(frame), columns=["the a", "b"])) == 4


def test_onnx_with_one_input_and_with_an_input_per_column(tmp_path):
    pytest.importorskip("onnxruntime")
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    from runinference.onnx_inference import OnnxModelHandlerNumpy

    model = LinearRegression().fit(FRAME.to_numpy(), TARGET)
    onnx = to_onnx(model, FRAME.to_numpy("float32")[:1])
    (tmp_path / "one.onnx").write_bytes(onnx.SerializeToString())
    one = OnnxModelHandlerNumpy(str(tmp_path / "one.onnx"))
    check(one, TARGET.to_numpy()[:, None], Sequence[float], columns=["a", "b"])
    [row] = one.predict(rows()[:1], columns=["a", "b"], output={"p": float}, keep=[])
    assert row.p == pytest.approx(10)
    with pytest.raises(OptionError, match="3 columns.*2 features"):
        RunInference(one, columns=["a", "b", "c"])

    frame = FRAME.assign(kind=["x", "y"] * 16)
    columns = ColumnTransformer([("k", OneHotEncoder(), ["kind"])], remainder="passthrough")
    named = make_pipeline(columns, LinearRegression()).fit(frame, TARGET)
    types = [(n, FloatTensorType([None, 1])) for n in ("a", "b")]
    types.append(("kind", StringTensorType([None, 1])))
    (tmp_path / "named.onnx").write_bytes(to_onnx(named, initial_types=types).SerializeToString())
    handler = OnnxModelHandlerNumpy(str(tmp_path / "named.onnx"))
    found = handler.predict(rows(frame), output="p", keep=[])
    np.testing.assert_allclose(
        [row.p[0] for row in found], named.predict(frame)[:4], rtol=1e-4, atol=1e-4
    )
    fields = RowTypeConstraint.from_fields([("a", float), ("b", float), ("kind", int)])
    with pytest.raises(OptionError, match="'kind' has the type int, .* takes text"):
        output_type(handler, fields)


@pytest.mark.parametrize("framework", ["xgboost", "lightgbm", "sklearn"])
def test_models_without_names_of_features_take_no_texts_as_numbers(framework, tmp_path):
    library = pytest.importorskip(framework)
    path, rows, target = str(tmp_path / "model"), FRAME.to_numpy(), TARGET.to_numpy()
    if framework == "xgboost":
        from runinference.xgboost_inference import XGBoostModelHandlerNumpy

        library.XGBRegressor(n_estimators=1).fit(rows, target).save_model(path)
        handler = XGBoostModelHandlerNumpy(library.XGBRegressor, path)
    elif framework == "lightgbm":
        from runinference.lightgbm_inference import LightGBMModelHandlerNumpy

        model = library.LGBMRegressor(n_estimators=1, min_child_samples=1, verbose=-1)
        model.fit(rows, target)
        model.booster_.save_model(path)
        handler = LightGBMModelHandlerNumpy(path)
    else:
        model = HistGradientBoostingRegressor(max_iter=1).fit(rows, target)
        handler = SklearnModelHandlerNumpy(save(model, tmp_path))
    with pytest.raises(ElementError, match="has '1' of type str in the column 'x'"):
        handler.predict([{"x": "1", "y": 1}], columns=["x", "y"])
    texts = RowTypeConstraint.from_fields([("x", str), ("y", int)])
    with pytest.raises(OptionError, match="'x' has the type str, .* takes numbers"):
        output_type(handler, texts, columns=["x", "y"])
    [row] = handler.predict([{"v": [1.0, 1.0]}], columns="v", output="p")
    assert isinstance(row.p, float)


@pytest.mark.parametrize("size", [2, None])
def test_an_array_of_integers_takes_no_floats_and_no_missing_values(size, tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx_models import make_model, make_value, write_model
    from runinference.onnx_inference import OnnxModelHandlerNumpy

    values = [make_value(name, ["n", size], onnx.TensorProto.INT64) for name in ("x", "y")]
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    path = write_model(tmp_path / "same.onnx", make_model([node], values[:1], values[1:]))
    handler, columns = OnnxModelHandlerNumpy(path, min_batch_size=2), ["a", "b"]
    found = handler.predict([{"a": 2**53 + 1, "b": True}], columns=columns, output="p")
    assert found[0].p == [2**53 + 1, 1]
    for value in (None, 1.0, "1"):
        with pytest.raises(ElementError, match=f"1 .* has {value!r} .* 'b', .* integer or bool"):
            handler.predict([{"a": 1, "b": 1}, {"a": 1, "b": value}], columns=columns)
    with pytest.raises(OptionError, match="'a' has the type float, .* takes integers"):
        output_type(handler, columns=columns)
    vectors = handler.predict([{"v": [3, 4]}, {"v": np.array([1, 2])}], columns="v", output="p")
    assert [row.p for row in vectors] == [[3, 4], [1, 2]]


def test_an_input_of_integers_takes_no_floats_and_no_missing_values(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx_models import make_model, make_value, write_model
    from runinference.onnx_inference import OnnxModelHandlerNumpy

    values = [make_value(name, ["n"], onnx.TensorProto.INT64) for name in ("a", "b", "sum")]
    add = onnx.helper.make_node("Add", ["a", "b"], ["sum"])
    path = write_model(tmp_path / "sum.onnx", make_model([add], values[:2], values[2:]))
    handler = OnnxModelHandlerNumpy(path, min_batch_size=2)
    found = handler.predict([{"a": 2**53 + 1, "b": 1}, {"a": 1, "b": True}], output="p")
    assert [row.p for row in found] == [2**53 + 2, 2]
    for value in (None, 1.0):
        with pytest.raises(ElementError, match=f"has {value} of type .* is integer or bool"):
            handler.predict([{"a": 1, "b": 1}, {"a": value, "b": 1}], output="p")
    floats = RowTypeConstraint.from_fields([("a", int), ("b", float)])
    with pytest.raises(OptionError, match="'b' has the type float, .* takes integers"):
        output_type(handler, floats)


def test_tensorflow(tmp_path):
    keras = pytest.importorskip("keras")
    from runinference.tensorflow_inference import TFModelHandlerNumpy, TFModelHandlerTensor

    inputs = keras.Input((2,))
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    keras.Model(inputs, dense(inputs)).save(tmp_path / "one.keras")
    expected = (FRAME.a + FRAME.b).to_numpy()[:, None]
    for handler in (TFModelHandlerNumpy, TFModelHandlerTensor):
        check(handler(str(tmp_path / "one.keras")), expected, Sequence[float], columns=["a", "b"])
    named = {name: keras.Input((1,), name=name) for name in ("a", "b")}
    keras.Model(named, dense(keras.layers.Concatenate()([*named.values()]))).export(
        tmp_path / "saved", verbose=False
    )
    handler = TFModelHandlerNumpy(str(tmp_path / "saved"))
    floats = FRAME.astype(float)
    found = handler.predict(rows(floats), output="p", keep=[])
    assert [row.p for row in found] == expected[:4].tolist()
    with pytest.raises(OptionError, match="no feature 'aa'.*Did you mean 'a'"):
        RunInference(handler, columns=["aa", "b"])


def test_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    from runinference import Padding
    from runinference.pytorch_inference import (
        PytorchModelHandlerKeyedTensor,
        PytorchModelHandlerTensor,
    )

    linear = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(linear.weight)
    torch.save(linear.state_dict(), tmp_path / "linear.pt")
    params = {"in_features": 2, "out_features": 1, "bias": False}
    handler = PytorchModelHandlerTensor(str(tmp_path / "linear.pt"), torch.nn.Linear, params)
    expected = (FRAME.a + FRAME.b).to_numpy()[:, None]
    check(handler, expected, Any, columns=["a", "b"])
    with pytest.raises(ElementError, match="can't be in a tensor"):
        handler.predict([{"a": "x", "b": 1.0}], columns=["a", "b"])
    typed = RowTypeConstraint.from_fields([("a", float), ("b", float)])
    with beam.Pipeline() as pipeline:
        integers = pipeline | beam.Create([beam.Row(a=1, b=2)]).with_output_types(typed)
        found = integers | RunInference(handler, columns=["a", "b"], output="p", keep=[])
        assert_that(found | beam.Map(lambda row: row.p), equal_to([[3.0]]))
    for whole in ({"a": 1, "b": 2}, {"a": True, "b": False}):
        for elements in ([whole], [pd.DataFrame([whole])], [pa.Table.from_pylist([whole])]):
            with pytest.raises(ElementError, match=r"columns to floats .* with_output_types\.$"):
                handler.predict(elements, columns=["a", "b"])

    torch.save(torch.nn.Embedding(3, 2).state_dict(), tmp_path / "embedding.pt")
    embedding = PytorchModelHandlerTensor(
        str(tmp_path / "embedding.pt"),
        torch.nn.Embedding,
        {"num_embeddings": 3, "embedding_dim": 2},
    )
    assert len(embedding.predict([{"a": 2}], columns="a")) == 1
    with pytest.raises(ElementError, match="In rows, convert the columns to integers before"):
        embedding.predict([{"a": 2.0}], columns="a")

    bilinear = torch.nn.Bilinear(1, 1, 1, bias=False)
    torch.nn.init.ones_(bilinear.weight)
    torch.save(bilinear.state_dict(), tmp_path / "bilinear.pt")
    params = {"in1_features": 1, "in2_features": 1, "out_features": 1, "bias": False}
    keyed = PytorchModelHandlerKeyedTensor(str(tmp_path / "bilinear.pt"), torch.nn.Bilinear, params)
    named = [{"input1": [2.0], "input2": [3.0]}, {"input1": [1.0], "input2": [5.0]}]
    found = keyed.predict(named, columns=["input1", "input2"], output={"p": float}, keep=[])
    assert [row.p for row in found] == [6.0, 5.0]

    torch.save({}, tmp_path / "nothing.pt")
    padded = PytorchModelHandlerTensor(
        str(tmp_path / "nothing.pt"), torch.nn.Identity, padding=Padding(), max_padded_size=8
    )
    found = padded.predict([{"x": [1.0, 2.0]}, {"x": [3.0]}], columns="x", output="p", keep=[])
    assert [row.p for row in found] == [[1.0, 2.0], [3.0]]


class _Shape(ModelHandler):
    """Returns the output of an LSTM: results, and a state of shape (layers, batch)."""

    _row_input = SklearnModelHandlerNumpy._row_input

    def load_model(self):
        return lambda array: {"result": array.sum(axis=1), "state": np.zeros((2, len(array)))}

    def run_inference(self, batch, model, inference_args=None):
        return self.results_of(batch, model(batch))


def test_an_output_that_is_as_long_as_the_batch_by_chance_is_an_error():
    for n_rows in (2, 3):
        with pytest.raises(Exception, match="state"):
            _Shape(min_batch_size=4).predict(rows()[:n_rows], columns=["a", "b"])


def test_arguments_of_the_call_change_the_output_without_a_declared_type(tmp_path):
    from sklearn.gaussian_process import GaussianProcessRegressor

    model = GaussianProcessRegressor().fit(FRAME.to_numpy()[:4], TARGET[:4])
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    handler = SklearnModelHandlerNumpy(str(tmp_path / "model.pkl"))
    options = {"columns": ["a", "b"], "inference_args": {"return_std": True}}
    [row] = handler.predict(rows()[:1], output=["mean", "std"], keep=[], **options)
    assert (round(row.mean, 3), round(row.std, 3)) == (10, 0)
    assert output_type(handler, **options) == Any
