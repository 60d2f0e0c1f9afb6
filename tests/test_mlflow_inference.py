"""The MLflow handler loads models of any flavor, and feeds them as their signatures declare."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any, NamedTuple

import apache_beam as beam
import mlflow.artifacts
import mlflow.pyfunc
import mlflow.sklearn
import numpy as np
import pandas as pd
import pyarrow as pa
import pydantic
import pytest
import scipy.sparse
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.typehints.row_type import RowTypeConstraint
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, Schema
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from runinference import KeyedModelHandler, RunInference
from runinference.errors import (
    BatchShapeError,
    ElementError,
    ModelLoadError,
    ModelNotFoundError,
    OptionError,
)
from runinference.mlflow_inference import MLflowModelHandler, digest_model

ROOMS = pd.DataFrame(
    {
        "width": [1.0, 2.0, 3.0, 4.0, 2.5, 3.5],
        "floors": [1, 2, 1, 3, 2, 1],
        "kind": ["hall", "bath", "hall", "bath", "hall", "bath"],
    }
)
PRICES = 10 * ROOMS.width + ROOMS.floors + (ROOMS.kind == "bath")
RECORDS: list[dict[str, Any]] = ROOMS.to_dict("records")


def save(path, predict, signature=None, code=None):
    """Save a function of a batch as a model."""

    class Model(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            return predict(model_input)

    mlflow.pyfunc.save_model(
        path,
        python_model=Model(),
        signature=signature,
        code_paths=code,
        pip_requirements=["pandas"],
    )
    return str(path)


@pytest.fixture(scope="module")
def prices(tmp_path_factory):
    """The path of a pipeline with numbers and text as features."""
    path = str(tmp_path_factory.mktemp("models") / "prices")
    encode = make_column_transformer((OneHotEncoder(), ["kind"]), remainder="passthrough")
    model = make_pipeline(encode, LinearRegression()).fit(ROOMS, PRICES)
    signature = infer_signature(ROOMS, model.predict(ROOMS))
    mlflow.sklearn.save_model(model, path, signature=signature, pip_requirements=["scikit-learn"])
    return path


class Room(NamedTuple):
    width: float
    floors: int
    kind: str


@pytest.mark.parametrize(
    "elements",
    [
        RECORDS,
        [Room(**record) for record in RECORDS],
        [beam.Row(**record) for record in RECORDS],
        [row for _, row in ROOMS.iterrows()],
        [ROOMS.iloc[[i]] for i in range(len(ROOMS))],
    ],
    ids=["dictionaries", "named tuples", "Beam rows", "Series", "frames"],
)
def test_elements_with_named_values_are_the_rows_of_one_frame(elements, prices):
    results = MLflowModelHandler(prices).predict(elements)
    assert [result.inference for result in results] == pytest.approx(PRICES.tolist())
    assert {result.model_id for result in results} == {prices}


def test_rows_get_a_typed_column_with_the_prediction(prices):
    handler = MLflowModelHandler(prices)
    rooms = [beam.Row(id=i, **record) for i, record in enumerate(RECORDS)]
    with beam.Pipeline() as pipeline:
        results = (
            pipeline
            | beam.Create(rooms).with_output_types(
                RowTypeConstraint.from_fields(
                    [("id", int), ("width", float), ("floors", int), ("kind", str)]
                )
            )
            | RunInference(handler, output="price", keep=["id"])
        )
        assert results.element_type.get_type_for("price") is float
        rounded = results | beam.Map(lambda row: (row.id, round(row.price, 3)))
        assert_that(rounded, equal_to(list(enumerate(PRICES.tolist()))))


@pytest.mark.parametrize("make_table", [pd.DataFrame, pa.Table.from_pandas])
def test_tables_get_a_column_with_the_predictions(make_table, prices):
    [table] = MLflowModelHandler(prices).predict([make_table(ROOMS)], output="price")
    assert list(table["price"].to_numpy()) == pytest.approx(PRICES.tolist())


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        (
            {"widht": float, "floors": int, "kind": str},
            {},
            "no column 'width'.*Did you mean 'widht'",
        ),
        ({"width": str, "floors": int, "kind": str}, {}, "'width' has the type str.*takes numbers"),
        ({"width": float, "floors": int, "kind": int}, {}, "'kind' has the type int.*takes text"),
        ({"width": float}, {"columns": ["width", "kind"]}, "columns lacks 'floors'"),
    ],
)
def test_columns_are_checked_when_the_pipeline_is_built(fields, options, message, prices):
    row_type = RowTypeConstraint.from_fields(list(fields.items()))
    rows = beam.Pipeline() | beam.Create([]).with_output_types(row_type)
    with pytest.raises(OptionError, match=message):
        rows | RunInference(MLflowModelHandler(prices), output="price", **options)


def test_whole_numbers_are_taken_as_floats_in_any_batch(prices):
    whole = [{**record, "width": int(record["width"])} for record in RECORDS]
    handler = MLflowModelHandler(prices)
    expected = [handler.predict([row])[0].inference for row in whole]
    assert [result.inference for result in handler.predict(whole)] == pytest.approx(expected)


WRONG = {
    "floors.*float64 to int64": [{"floors": 1.5}, {"floors": None}],
    "width": [{"width": "wide"}, {"width": 2**53 + 1}],
    "kind": [{"kind": ["hall"]}],
}


@pytest.mark.parametrize(
    ("change", "message"), [(change, text) for text in WRONG for change in WRONG[text]]
)
def test_a_value_of_another_type_is_an_error_that_names_the_column(change, message, prices):
    rows = [RECORDS[0], {**RECORDS[1], **change}]
    with pytest.raises(ElementError, match=f"(?s){message}.*To fix this"):
        MLflowModelHandler(prices).predict(rows)


def test_only_rows_with_wrong_values_become_dead_letters(prices):
    wrong = [{**RECORDS[1], **change} for changes in WRONG.values() for change in changes]
    with beam.Pipeline() as pipeline:
        good, failed = (
            pipeline
            | beam.Create([RECORDS[0], *wrong, RECORDS[2]])
            | RunInference(MLflowModelHandler(prices, min_batch_size=7)).with_exception_handling()
        )
        rounded = good | beam.Map(lambda result: round(result.inference, 3))
        assert_that(rounded, equal_to([11.0, 31.0]))
        elements = failed.failed_inferences | beam.Map(lambda letter: letter[0])
        assert_that(elements, equal_to(wrong), label="dead letters")


def test_rows_may_lack_optional_columns(tmp_path):
    columns = [ColSpec("double", "x"), ColSpec("string", "kind", required=False)]
    path = save(
        tmp_path / "m",
        lambda frame: [
            f"{x} {kind}" for x, kind in zip(frame["x"], frame.get("kind", frame["x"]), strict=True)
        ],
        ModelSignature(Schema(columns), Schema([ColSpec("string")])),
    )
    rows = [{"x": 1.0, "kind": "hall"}, {"x": 2.0}]
    handler = MLflowModelHandler(path, min_batch_size=2)
    options = {"output": "found", "keep": []}
    both = handler.predict(rows, **options)
    assert [row.found for row in both] == ["1.0 hall", "2.0 2.0"]
    assert [row.found for row in handler.predict(rows[1:], **options)] == ["2.0 2.0"]
    [frame] = handler.predict([pd.DataFrame({"x": [3.0]})], **options)
    assert frame["found"].tolist() == ["3.0 3.0"]
    [row] = handler.predict(rows[:1], columns=["x"], **options)
    assert row.found == "1.0 1.0"
    typed = beam.Pipeline() | beam.Create([beam.Row(x=1.0)])
    assert (typed | RunInference(handler, **options)).element_type.get_type_for("found") is str
    with pytest.raises(OptionError, match="lacks 'x'"):
        RunInference(handler, columns=["kind"])
    with pytest.raises(OptionError, match="no column 'x'"):
        beam.Pipeline() | beam.Create([beam.Row(kind="hall")]) | RunInference(handler, **options)


@pytest.mark.parametrize("kind", ["integer", "long", "float", "boolean", "string", "datetime"])
def test_rows_share_a_batch_with_rows_that_lack_an_optional_column(kind, tmp_path):
    columns = [ColSpec("double", "x"), ColSpec(kind, "n", required=False)]
    path = save(
        tmp_path / "m",
        lambda frame: [str(dict(zip(frame, row, strict=True))) for row in frame.to_numpy(object)],
        ModelSignature(Schema(columns), Schema([ColSpec("string")])),
    )
    value = {"float": 0.5, "boolean": True, "string": "s", "datetime": pd.Timestamp(0)}.get(kind, 3)
    rows = [{"x": 1.0, "n": value}, {"x": 2.0}, {"x": 3.0, "n": None}, {"x": 4.0, "n": value}]
    handler = MLflowModelHandler(path, min_batch_size=4)
    alone = [handler.predict([row])[0].inference for row in rows]
    assert alone[0] == str({"x": 1.0, "n": value})
    # MLflow takes no missing integers, so the model gets no column.
    assert ("n" in alone[1], "n" in alone[2]) == (False, kind not in ("integer", "long"))
    assert [result.inference for result in handler.predict(rows)] == alone
    assert [row.found for row in handler.predict(rows, output="found")] == alone
    frames = [pd.DataFrame([row]) for row in rows[:2]]
    assert [result.inference for result in handler.predict(frames)] == alone[:2]
    with pytest.raises(ElementError, match="Element 2 of the batch has 'wide' .* column 'x'"):
        handler.predict([*rows[:2], {"x": "wide", "n": value}], output="found")


def test_nullable_columns_of_a_table_have_the_types_of_the_signature(tmp_path):
    kinds = {"n": "long", "x": "float", "y": "double", "flag": "boolean"}
    path = save(
        tmp_path / "m",
        lambda frame: [str([*row]) for row in frame.to_numpy(object)],
        ModelSignature(
            Schema([ColSpec(kind, name) for name, kind in kinds.items()]),
            Schema([ColSpec("string")]),
        ),
    )
    table = pd.DataFrame(
        {
            "n": pd.array([2**53 + 1, 2], "Int64"),
            "x": pd.array([0.5, None], "Float64"),
            "y": pd.array([1, None], "Int64"),
            "flag": pd.array([None, True], "boolean"),
        }
    )
    expected = [f"[{2**53 + 1}, 0.5, 1.0, None]", "[2, nan, nan, True]"]
    handler = MLflowModelHandler(path)
    for made in (table, table.convert_dtypes(dtype_backend="pyarrow"), pa.Table.from_pandas(table)):
        [found] = handler.predict([made], output="found", keep=[])
        assert list(map(str, found["found"].to_numpy())) == expected
    table["n"] = pd.array([1, None], "Int64")
    with pytest.raises(ElementError, match="column n.*missing values"):
        handler.predict([table], output="found")


def test_the_signature_is_read_without_loading_the_model(prices, tmp_path):
    folder = shutil.copytree(prices, tmp_path / "without")
    for path in folder.iterdir():
        if path.name != "MLmodel":
            path.unlink()
    handler = MLflowModelHandler(str(folder))
    with pytest.raises(OptionError, match="no feature 'widht'.* Did you mean 'width'"):
        RunInference(handler, columns=["widht", "length"])
    infer = RunInference(handler, output="price", keep=[])
    rows = beam.Pipeline() | beam.Create([beam.Row(width=1.0, floors=2, kind="hall")])
    assert (rows | infer).element_type.get_type_for("price") is float


def test_missing_text_is_none_in_any_batch(tmp_path):
    schema = Schema([ColSpec("string", "kind", required=False)])
    path = save(
        tmp_path / "m",
        lambda frame: [type(kind).__name__ for kind in frame["kind"]],
        ModelSignature(schema, Schema([ColSpec("string")])),
    )
    rows = [{"kind": "hall"}, {"kind": None}]
    handler = MLflowModelHandler(path)
    assert [r.inference for r in handler.predict(rows)] == ["str", "NoneType"]
    assert handler.predict(rows[1:])[0].inference == "NoneType"
    assert handler.predict(rows, output="found", keep=[]) == [
        beam.Row(found="str"),
        beam.Row(found="NoneType"),
    ]


def test_rows_have_the_types_of_the_columns_that_the_signature_declares(tmp_path):
    columns = [ColSpec("long", "n"), ColSpec("boolean", "is_hall", required=False)]
    path = save(
        tmp_path / "m",
        lambda frame: [f"{n} {is_hall}" for n, is_hall in zip(frame.n, frame.is_hall, strict=True)],
        ModelSignature(Schema(columns), Schema([ColSpec("string")])),
    )
    handler = MLflowModelHandler(path, min_batch_size=2)
    rows = [{"n": 2**53 + 1, "is_hall": True}, {"n": 2, "is_hall": None}]
    found = handler.predict(rows, output="found", keep=[])
    assert [row.found for row in found] == [f"{2**53 + 1} True", "2 None"]
    for bad in ({"n": None, "is_hall": True}, {"n": 1, "is_hall": 1}, {"n": 1.0, "is_hall": True}):
        with pytest.raises(ElementError, match=r"^Element 1 .* in the column .* whose type is"):
            handler.predict([rows[0], bad], output="found")
    typed = beam.Pipeline() | beam.Create([beam.Row(n=1.0, is_hall=True)])
    with pytest.raises(OptionError, match="'n' has the type float, .* takes integers"):
        typed | RunInference(handler, output="found")


def test_arrays_are_stacked_with_the_dtype_of_the_signature(tmp_path):
    numbers = np.arange(8, dtype=np.float32).reshape(4, 2)
    path = save(
        tmp_path / "m", lambda x: x.sum(axis=1), infer_signature(numbers, numbers.sum(axis=1))
    )
    handler = MLflowModelHandler(path)
    for elements in (list(numbers), numbers.astype(int).tolist(), list(numbers.astype("f8"))):
        found = [result.inference for result in handler.predict(elements)]
        assert found == [1.0, 5.0, 9.0, 13.0]
        assert {inference.dtype for inference in found} == {np.dtype("float32")}
    with pytest.raises(BatchShapeError, match=r"shape \(3,\).*takes \(2\)"):
        handler.predict([np.ones(3)])
    [result] = handler.with_no_batching(whole_results=True).predict([numbers])
    assert result.inference.tolist() == [1.0, 5.0, 9.0, 13.0]
    found = handler.predict([{"a": 1, "b": 2.0}], columns=["a", "b"], output="sum")
    assert found == [beam.Row(a=1, b=2.0, sum=3.0)]


def test_named_arrays_are_stacked_by_name(tmp_path):
    inputs = {"pixels": np.ones((2, 3, 3)), "weight": np.ones((2, 1))}
    path = save(
        tmp_path / "m",
        lambda x: x["pixels"].sum(axis=(1, 2)) * x["weight"][:, 0],
        infer_signature(inputs, np.ones(2)),
    )
    handler = MLflowModelHandler(path)
    elements = [{"pixels": np.ones((3, 3)), "weight": [n]} for n in (1, 2)]
    assert [result.inference for result in handler.predict(elements)] == [9.0, 18.0]
    found = handler.predict(
        [{"id": "a", "pixels": np.ones((3, 3)), "weight": 4.0}], output="sum", keep=["id"]
    )
    assert found == [beam.Row(id="a", sum=36.0)]
    with pytest.raises(ElementError, match="no input 'pixel'.*Did you mean 'pixels'"):
        handler.predict([{"pixel": np.ones((3, 3)), "weight": [1]}])


def test_nested_values_reach_columns_that_declare_them(tmp_path):
    rows = [{"id": 1, "tags": ["a", "b"]}, {"id": 2, "tags": ["c"]}]
    path = save(
        tmp_path / "m",
        lambda frame: [f"{row.id}:{','.join(row.tags)}" for row in frame.itertuples()],
        infer_signature(pd.DataFrame(rows), ["x"]),
    )
    results = MLflowModelHandler(path).predict(rows)
    assert [result.inference for result in results] == ["1:a,b", "2:c"]


class Person(pydantic.BaseModel):
    age: int
    name: str
    nick: str | None = None


class Greeter(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: list[Person], params=None) -> list[str]:
        return [f"{type(p).__name__} {p.name}, {p.age}, {p.nick}" for p in model_input]


def test_the_fields_of_a_pydantic_class_are_typed_columns(tmp_path):
    mlflow.pyfunc.save_model(tmp_path, python_model=Greeter(), pip_requirements=["pydantic"])
    handler = MLflowModelHandler(str(tmp_path), min_batch_size=3)
    rows = [{"age": 1, "name": "A"}, {"age": 2, "name": "B", "nick": "b"}]
    expected = ["Person A, 1, None", "Person B, 2, b"]
    assert [result.inference for result in handler.predict(rows)] == expected
    found = handler.predict([{**row, "id": i} for i, row in enumerate(rows)], keep="id", output="p")
    assert found == [beam.Row(id=i, p=text) for i, text in enumerate(expected)]
    table = pd.DataFrame({"name": ["A", "B"], "age": [1, 2], "nick": [None, "b"]})
    for chunk in (table, pa.Table.from_pandas(table)):
        [found] = handler.predict([chunk], output="p", keep=[])
        assert list(map(str, found["p"].to_numpy())) == expected
    with pytest.raises(ElementError, match="has 'x' of type str in the column 'age'"):
        handler.predict([*rows, {"age": "x", "name": "C"}], output="p")
    for fields, message in (
        ({"agee": int, "name": str}, "no column 'age'.*Did you mean 'agee'"),
        ({"age": float, "name": str}, "'age' has the type float, .* takes integers"),
    ):
        row_type = RowTypeConstraint.from_fields([*fields.items()])
        with pytest.raises(OptionError, match=message):
            _ = (
                beam.Pipeline()
                | beam.Create([]).with_output_types(row_type)
                | RunInference(handler, output="p")
            )
    typed = beam.Pipeline() | beam.Create([beam.Row(age=1, name="A")])
    assert (typed | RunInference(handler, output="p")).element_type.get_type_for("p") is str


def test_a_model_without_a_signature_gets_texts_and_objects_as_a_list(tmp_path):
    path = save(tmp_path / "m", lambda batch: [f"{type(batch).__name__} {x}" for x in batch])
    assert [r.inference for r in MLflowModelHandler(path).predict(["a", "b"])] == [
        "list a",
        "list b",
    ]
    path = save(tmp_path / "matrix", lambda x: np.asarray(x.sum(axis=1))[:, 0])
    sparse = [scipy.sparse.csr_matrix([[n, 1.0]]) for n in (1, 2)]
    assert [r.inference for r in MLflowModelHandler(path).predict(sparse)] == [2.0, 3.0]


def test_a_frame_of_predictions_is_split_by_row(tmp_path):
    path = save(
        tmp_path / "m",
        lambda frame: pd.DataFrame({"twice": 2 * frame["a"], "half": frame["a"] / 2}),
    )
    handler = MLflowModelHandler(path)
    first, second = handler.predict([{"a": 1}, {"a": 2}])
    assert first.inference.to_dict("list") == {"twice": [2], "half": [0.5]}
    assert second.inference.to_dict("list") == {"twice": [4], "half": [1.0]}
    found = handler.predict([{"a": 1}], columns="a", output={"twice": int, "half": float}, keep=[])
    assert found == [beam.Row(twice=2, half=0.5)]


def test_labels_and_their_type_come_from_the_signature(tmp_path):
    model = LogisticRegression().fit(ROOMS[["width"]], ROOMS["kind"])
    signature = infer_signature(ROOMS[["width"]], pd.Series(["hall"]))
    path = str(tmp_path / "m")
    mlflow.sklearn.save_model(model, path, signature=signature, pip_requirements=["scikit-learn"])
    rows = beam.Pipeline() | beam.Create([beam.Row(width=1.0)])
    results = rows | RunInference(MLflowModelHandler(path), output="kind")
    assert results.element_type.get_type_for("kind") is str
    [result] = MLflowModelHandler(path).predict([beam.Row(width=1.0)], output="kind")
    assert result.kind in ("hall", "bath")


def test_an_element_is_one_row(prices):
    with pytest.raises(BatchShapeError, match=r"Element 0 .* table of shape \(6, 3\).*one row"):
        MLflowModelHandler(prices).predict([ROOMS])
    handler = MLflowModelHandler(prices).with_no_batching(whole_results=True)
    [result] = handler.predict([ROOMS])
    assert list(result.inference) == pytest.approx(PRICES.tolist())


def test_parameters_that_the_signature_lacks_raise_an_error(prices, tmp_path):
    with pytest.raises(OptionError, match="declares no parameter 'scale'.*declares none"):
        MLflowModelHandler(prices).predict(RECORDS, {"scale": 2})
    path = save(tmp_path / "m", sum, infer_signature(ROOMS, PRICES, {"scale": 1.0}))
    with pytest.raises(OptionError, match="Did you mean 'scale'"):
        MLflowModelHandler(path).predict(RECORDS, {"scael": 2})


def test_a_keyed_handler_takes_the_path_of_another_model(prices, tmp_path):
    handler = KeyedModelHandler(MLflowModelHandler(prices))
    [(key, result)] = handler.predict([("a", RECORDS[0])])
    assert (key, result.inference) == ("a", pytest.approx(11.0))
    path = save(tmp_path / "m", lambda frame: -frame["width"])
    handler.update_model_path(path)
    [(key, result)] = handler.predict([("a", RECORDS[0])])
    assert (key, result.inference, result.model_id) == ("a", -1.0, path)


def test_a_pinned_model_is_checked_before_anything_is_loaded(tmp_path):
    package = tmp_path / "loaded_by_model.py"
    package.write_text(f"open({str(tmp_path / 'loaded')!r}, 'w')")
    path = save(tmp_path / "m", lambda batch: batch, code=[str(package)])
    MLflowModelHandler(path).load_model()
    digest = digest_model(path)
    assert MLflowModelHandler(path, model_sha256=digest.upper()).predict(["a"])[0].inference == "a"
    shutil.copytree(path, tmp_path / "copy")
    assert digest_model(tmp_path / "copy") == digest
    (tmp_path / "m" / "MLmodel").write_text("flavors: {python_function: {loader_module: this}}")
    sys.modules.pop("this", None)
    with pytest.raises(ModelLoadError, match=f"not {digest}.*was not loaded"):
        MLflowModelHandler(path, model_sha256=digest).load_model()
    assert "this" not in sys.modules


@pytest.mark.parametrize("change", ["content", "name", "new", "missing"])
def test_the_digest_depends_on_every_file_but_not_on_compiled_python(change, prices, tmp_path):
    path = tmp_path / "m"
    shutil.copytree(prices, path)
    (path / "__pycache__").mkdir()
    (path / "__pycache__" / "x.pyc").write_bytes(b"compiled")
    digest = digest_model(prices)
    assert digest_model(path) == digest
    if change == "content":
        (path / "conda.yaml").write_text("")
    elif change == "name":
        (path / "conda.yaml").rename(path / "conda2.yaml")
    elif change == "new":
        (path / "x").mkdir()
        (path / "x" / "empty").touch()
    else:
        (path / "conda.yaml").unlink()
    assert digest_model(path) != digest


def test_temporary_copies_are_deleted_with_the_model(prices, tmp_path, monkeypatch):
    digest = digest_model(prices)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = MLflowModelHandler(prices, model_sha256=digest).load_model()
    assert [name.startswith("model-") for name in os.listdir(tmp_path)] == [True]
    del model
    assert os.listdir(tmp_path) == []
    with pytest.raises(ModelLoadError):
        MLflowModelHandler(prices, model_sha256="0" * 64).load_model()
    digest_model(prices)
    assert os.listdir(tmp_path) == []


def test_registered_models_are_downloaded_by_mlflow(prices, tmp_path, monkeypatch):
    asked = []

    def download(artifact_uri, dst_path):
        asked.append(artifact_uri)
        return shutil.copytree(prices, os.path.join(dst_path, "prices"))

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)
    [result] = MLflowModelHandler("models:/prices/2").predict(RECORDS[:1])
    assert result.inference == pytest.approx(11.0)
    assert (asked, result.model_id) == (["models:/prices/2"], "models:/prices/2")


@pytest.mark.parametrize("make", ["missing", "file", "other", "damaged", "package"])
def test_a_folder_without_a_model_raises_an_error_with_the_fix(make, prices, tmp_path):
    path = tmp_path / "m"
    shutil.copytree(prices, path)
    error, message = ModelLoadError, "contains no file MLmodel"
    if make == "missing":
        path, error, message = tmp_path / "none", ModelNotFoundError, "no folder .*storage"
    elif make == "file":
        path, error, message = path / "MLmodel", ModelNotFoundError, f"pass its folder, '{path}'"
    elif make == "other":
        (path / "MLmodel").unlink()
    elif make == "damaged":
        (path / "model.skops").write_bytes(b"PK")
        message = "cannot load the model.*requirements.txt"
    else:
        text = (path / "MLmodel").read_text()
        (path / "MLmodel").write_text(text.replace("mlflow.sklearn", "not_installed"))
        message = "needs a package .*not_installed.*requirements.txt"
    with pytest.raises(error, match=message):
        MLflowModelHandler(path).load_model()


def test_names_the_extra_if_mlflow_is_missing(prices, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow.pyfunc", None)
    with pytest.raises(
        ImportError, match=r'mlflow is required.*pip install "runinference\[mlflow\]"'
    ):
        MLflowModelHandler(prices).load_model()
