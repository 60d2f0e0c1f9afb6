"""XGBoost handlers load JSON and UBJ files, and predict on arrays, DataFrames and sparse matrices."""

from __future__ import annotations

import datetime
import functools
import importlib.util
import json
import pickle
import subprocess
import sys
import types
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xgboost
from sklearn.datasets import load_iris

from common import RUNNER, CollectElements, run
from defects.packages import BEAM, OURS
from model_updates import run_with_model_update
from runinference import KeyedModelHandler, PredictionResult, RunInference
from runinference.errors import (
    BatchShapeError,
    ElementError,
    ModelLoadError,
    ModelNotFoundError,
    OptionError,
    UnknownOptionError,
)
from runinference.xgboost_inference import (
    XGBoostModelHandler,
    XGBoostModelHandlerDatatable,
    XGBoostModelHandlerNumpy,
    XGBoostModelHandlerPandas,
    XGBoostModelHandlerSciPy,
    default_xgboost_inference_fn,
)

ROWS, LABELS = load_iris(return_X_y=True)
NAMES = ["length", "width", "petal length", "petal width"]
FRAME = pd.DataFrame(ROWS, columns=NAMES)
SPARSE = scipy.sparse.csr_matrix(np.where(ROWS < 1, 0, ROWS))


def classifier(data=ROWS, labels=LABELS, **options):
    return xgboost.XGBClassifier(n_estimators=5, n_jobs=1, **options).fit(data, labels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model = classifier()
    model.save_model(folder / "arrays.json")
    model.save_model(folder / "arrays.ubj")
    classifier(FRAME).save_model(folder / "frames.ubj")
    classifier(SPARSE).save_model(folder / "sparse.ubj")
    classifier(labels=LABELS[::-1]).save_model(folder / "backwards.ubj")
    return folder


def load(make, path):
    model = make()
    model.load_model(path)
    return model


def by_row(results):
    return {np.asarray(result.example).tobytes(): result.inference for result in results}


@pytest.mark.parametrize("suffix", ["json", "ubj"])
def test_pipeline_results_are_the_predictions_of_the_model(folder, suffix):
    path = str(folder / f"arrays.{suffix}")
    results = run(list(ROWS), RunInference(XGBoostModelHandlerNumpy(xgboost.XGBClassifier, path)))
    expected = load(xgboost.XGBClassifier, path).predict(ROWS)
    found = by_row(results)
    assert len(results) == len(ROWS)
    assert [found[row.tobytes()] for row in ROWS] == expected.tolist()
    assert {result.model_id for result in results} == {path}


def test_a_booster_returns_raw_predictions(folder):
    path = str(folder / "arrays.ubj")
    results = XGBoostModelHandlerNumpy(xgboost.Booster, path).predict(ROWS)
    expected = load(xgboost.Booster, path).predict(xgboost.DMatrix(ROWS))
    np.testing.assert_array_equal([result.inference for result in results], expected)
    assert results[0].inference.shape == (3,)
    assert isinstance(results[0].example, np.ndarray)


def test_loads_a_regressor(tmp_path):
    model = xgboost.XGBRegressor(n_estimators=5).fit(ROWS[:, :3], ROWS[:, 3])
    model.save_model(tmp_path / "m.json")
    handler = XGBoostModelHandlerNumpy(xgboost.XGBRegressor, str(tmp_path / "m.json"))
    found = [result.inference for result in handler.predict(ROWS[:, :3])]
    np.testing.assert_array_equal(found, model.predict(ROWS[:, :3]))


def test_predicts_each_row_of_a_table(folder):
    path = str(folder / "arrays.ubj")
    handler = XGBoostModelHandlerNumpy(xgboost.XGBClassifier, path, min_batch_size=3)
    expected = load(xgboost.XGBClassifier, path).predict(ROWS)
    three, one, row = handler.predict([ROWS[49:52], ROWS[:1], ROWS[149]])
    assert three.inference.tolist() == expected[49:52].tolist()
    assert one.inference.tolist() == expected[:1].tolist()
    assert row.inference == expected[149]


@pytest.mark.parametrize(
    "examples",
    [list(ROWS), [row.tolist() for row in ROWS], [ROWS[0].tolist(), *ROWS[1:]]],
    ids=["arrays", "lists", "both"],
)
def test_arrays_and_lists_get_the_same_predictions(folder, examples):
    handler = XGBoostModelHandlerNumpy(xgboost.XGBClassifier, str(folder / "arrays.ubj"))
    margins = [result.inference for result in handler.predict(examples, {"output_margin": True})]
    np.testing.assert_array_equal(margins, classifier().predict(ROWS, output_margin=True))
    assert all(margin.base is None for margin in margins)


def test_results_own_their_memory(folder):
    handler = XGBoostModelHandlerNumpy(xgboost.Booster, str(folder / "arrays.ubj"))
    assert all(result.inference.base is None for result in handler.predict(ROWS))


def test_accepts_lists_as_examples(folder):
    handler = XGBoostModelHandlerNumpy(xgboost.XGBClassifier, str(folder / "arrays.ubj"))
    assert [result.inference for result in handler.predict(ROWS[[0, 149]].tolist())] == [0, 2]


@pytest.mark.parametrize("make", [xgboost.XGBClassifier, xgboost.Booster])
def test_predicts_on_data_frames(folder, make):
    path = str(folder / "frames.ubj")
    rows = [FRAME.iloc[[i]] for i in range(len(FRAME))]
    results = run(rows, RunInference(XGBoostModelHandlerPandas(make, path)))
    data = FRAME if make is xgboost.XGBClassifier else xgboost.DMatrix(FRAME)
    expected = load(make, path).predict(data)
    found = {result.example.index[0]: result.inference for result in results}
    np.testing.assert_array_equal([found[i][0] for i in range(150)], expected)


@pytest.mark.parametrize("make", [xgboost.XGBClassifier, xgboost.Booster])
def test_a_model_trained_on_data_frames_accepts_arrays(folder, make):
    path = str(folder / "frames.ubj")
    by_frame = XGBoostModelHandlerPandas(make, path).predict([FRAME])
    by_array = XGBoostModelHandlerNumpy(make, path).predict([ROWS])
    np.testing.assert_array_equal(by_frame[0].inference, by_array[0].inference)


@pytest.mark.parametrize("as_row", [scipy.sparse.csr_matrix, scipy.sparse.coo_array])
def test_sparse_matrices_keep_missing_values(folder, as_row):
    path = str(folder / "sparse.ubj")
    handler = XGBoostModelHandlerSciPy(xgboost.XGBClassifier, path)
    results = handler.predict(as_row(SPARSE[[i]]) for i in range(150))
    expected = load(xgboost.XGBClassifier, path).predict(SPARSE)
    assert [result.inference.tolist() for result in results] == [[label] for label in expected]
    assert 0 < handler.get_num_bytes([SPARSE]) < ROWS.nbytes * 2


def test_predicts_on_a_one_dimensional_sparse_row(folder):
    handler = XGBoostModelHandlerSciPy(xgboost.XGBClassifier, str(folder / "sparse.ubj"))
    [result] = handler.predict([scipy.sparse.coo_array(SPARSE.toarray()[149])])
    assert result.inference == 2


def test_joins_data_frames_with_different_categories(tmp_path):
    frame = pd.DataFrame({"kind": pd.Categorical(["a", "b", "c"] * 20), "x": np.arange(60.0)})
    labels = (frame["kind"] == "c").astype(int)
    model = classifier(frame, labels, enable_categorical=True)
    model.save_model(tmp_path / "m.ubj")
    handler = XGBoostModelHandlerPandas(
        xgboost.XGBClassifier, str(tmp_path / "m.ubj"), min_batch_size=3
    )
    rows = [
        pd.DataFrame({"kind": pd.Categorical([kind], [kind]), "x": [30.0]}) for kind in ("a", "c")
    ]
    [a], [c] = (result.inference for result in handler.predict(rows))
    assert (a, c) == (0, 1)


def record(color):
    return pd.DataFrame([{"color": color, "n": 1.0}]).astype({"color": "category"})


@pytest.mark.parametrize("make", [xgboost.XGBRegressor, xgboost.Booster])
def test_a_missing_category_does_not_change_the_others(tmp_path, make):
    colors = ["blue", "green", "red"]
    frame = pd.DataFrame({"color": pd.Categorical(colors * 20), "n": np.arange(60.0)})
    labels = (frame["color"] == "red") * 10.0 + (frame["color"] == "green") * 5.0
    model = xgboost.XGBRegressor(n_estimators=10, enable_categorical=True).fit(frame, labels)
    model.save_model(tmp_path / "m.ubj")
    handler = XGBoostModelHandlerPandas(make, str(tmp_path / "m.ubj"), min_batch_size=3)
    for values in (["red", np.nan, "green"], [np.nan, "green"], [None, None, "red"]):
        known = pd.Categorical(values, categories=colors)
        expected = model.predict(pd.DataFrame({"color": known, "n": 1.0}))
        found = [result.inference[0] for result in handler.predict(map(record, values))]
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ElementError, match=r"'color': pandas\.CategoricalDtype\(categories\)"):
        handler.predict([record(np.nan)])  # XGBoost rejects a column without any category


class Petals(NamedTuple):
    length: float
    width: float
    petal_length: float
    petal_width: float


@pytest.mark.parametrize(
    "make",
    [
        lambda row: dict(zip(NAMES, row.tolist(), strict=True)),
        lambda row: pd.Series(row, NAMES),
        lambda row: beam.Row(**dict(zip(NAMES, row.tolist(), strict=True))),
    ],
)
def test_a_record_is_one_row_with_the_columns_of_its_names(folder, make):
    handler = XGBoostModelHandlerPandas(xgboost.XGBClassifier, str(folder / "frames.ubj"))
    found = [result.inference for result in handler.predict(map(make, ROWS))]
    assert found == handler.load_model().predict(FRAME).tolist()


def test_a_record_with_other_names_raises_an_error(folder):
    handler = XGBoostModelHandlerPandas(xgboost.XGBClassifier, str(folder / "frames.ubj"))
    with pytest.raises(BatchShapeError, match="missing: petal length, petal width; unknown to the"):
        handler.predict([Petals(*ROWS[0])])
    arrays = XGBoostModelHandlerNumpy(xgboost.XGBClassifier, str(folder / "arrays.ubj"))
    assert [result.inference for result in arrays.predict([Petals(*ROWS[0])])] == [0]


@pytest.mark.parametrize("make", [xgboost.XGBClassifier, xgboost.Booster])
def test_text_raises_an_error_that_names_the_column(folder, make):
    handler = XGBoostModelHandlerPandas(make, str(folder / "arrays.ubj"))
    with pytest.raises(ElementError, match=r"width: object.*astype\({'width': 'category'}\)"):
        handler.predict([dict(zip(NAMES, [1.0, "wide", 2.0, 3.0], strict=True))])
    with pytest.raises(ElementError, match="a table of object.*could not convert"):
        handler.predict([[1.0, "wide", 2.0, 3.0]])


@pytest.mark.parametrize("value", [10**400, datetime.date(2026, 1, 1)])
def test_other_objects_raise_an_error_with_a_fix(folder, value):
    handler = XGBoostModelHandlerNumpy(xgboost.XGBClassifier, str(folder / "arrays.ubj"))
    with pytest.raises(ElementError, match="rejects the batch, a table of object.*To fix this"):
        handler.predict([[value, 1, 2, 3]])


@pytest.mark.parametrize("make", [xgboost.XGBClassifier, xgboost.Booster])
def test_columns_of_one_name_raise_an_error_that_names_it(folder, make):
    handler = XGBoostModelHandlerPandas(make, str(folder / "arrays.ubj"))
    with pytest.raises(BatchShapeError, match="several columns with the name 'width'"):
        handler.predict([pd.DataFrame([ROWS[0]], columns=["width", "height", "width", "depth"])])


class Frame:
    """A substitute for a datatable frame."""

    def __init__(self, rows):
        self.rows = rows
        self.shape = rows.shape

    def to_numpy(self):
        return np.ma.masked_invalid(self.rows)


def test_converts_datatable_frames(folder):
    frame = importlib.import_module("datatable").Frame if has("datatable") else Frame
    handler = XGBoostModelHandlerDatatable(xgboost.XGBClassifier, str(folder / "arrays.ubj"))
    rows = ROWS[[0, 149]].copy()
    rows[0, 1] = np.nan
    [result] = handler.predict([frame(rows)])
    assert result.inference.tolist() == [0, 2]


def has(package):
    return importlib.util.find_spec(package) is not None


def test_calls_the_model_once_per_batch(folder):
    calls = []

    class Counting(xgboost.XGBClassifier):
        def predict(self, X, **options):  # noqa: N803
            calls.append(X.shape)
            return super().predict(X, **options)

    handler = XGBoostModelHandlerNumpy(
        Counting, str(folder / "arrays.ubj"), min_batch_size=150, max_batch_size=150
    )
    assert len(handler.predict(ROWS)) == 150
    assert calls == [(150, 4)]


def test_passes_inference_args_to_predict(folder):
    handler = XGBoostModelHandlerNumpy(xgboost.Booster, str(folder / "arrays.ubj"))
    results = handler.predict(ROWS, {"pred_leaf": True})
    expected = handler.load_model().predict(xgboost.DMatrix(ROWS), pred_leaf=True)
    np.testing.assert_array_equal([result.inference for result in results], expected)


def test_inference_fn_can_call_another_method_and_its_results_get_the_model_id(folder):
    def predict_proba(batch, model, inference_args):
        probabilities = model.predict_proba(np.stack(batch))
        return (PredictionResult(*pair) for pair in zip(batch, probabilities, strict=True))

    path = str(folder / "arrays.ubj")
    handler = XGBoostModelHandlerNumpy(xgboost.XGBClassifier, path, predict_proba)
    [result] = handler.predict(ROWS[:1])
    assert result.inference.shape == (3,)
    assert result.model_id == path


def test_inference_fn_can_return_bare_predictions(folder):
    handler = XGBoostModelHandlerNumpy(
        xgboost.XGBClassifier,
        str(folder / "arrays.ubj"),
        inference_fn=lambda batch, model, args: model.predict(np.stack(batch)),
    )
    assert handler.predict(ROWS[[0, 149]]) == [0, 2]


def test_the_default_inference_fn_can_be_called_directly(folder):
    model = load(xgboost.XGBClassifier, folder / "arrays.ubj")
    results = default_xgboost_inference_fn(ROWS[:2], model)
    assert [(result.inference, result.model_id) for result in results] == [(0, None), (0, None)]


def test_accepts_arrays_and_data_frames_as_batches(folder):
    path = str(folder / "frames.ubj")
    arrays = XGBoostModelHandlerNumpy(xgboost.XGBClassifier, path).with_no_batching()
    assert [result.inference for result in arrays.predict([ROWS[:2]])] == [0, 0]
    frames = XGBoostModelHandlerPandas(xgboost.XGBClassifier, path).with_no_batching()
    assert [result.inference.tolist() for result in frames.predict([FRAME[:2]])] == [[0], [0]]


def test_only_the_invalid_element_becomes_a_dead_letter(folder):
    handler = XGBoostModelHandlerNumpy(xgboost.XGBClassifier, str(folder / "arrays.ubj"))
    good, bad = [], []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        rows = pipeline | beam.Create([*ROWS, np.zeros(5)], reshuffle=False)
        results, failed = rows | RunInference(handler).with_exception_handling()
        _ = results | "good" >> beam.ParDo(CollectElements(good))
        _ = failed.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
    assert (len(CollectElements.take(good)), len(CollectElements.take(bad))) == (150, 1)


def test_rejects_a_model_class_that_cannot_load_in_the_constructor():
    with pytest.raises(OptionError, match=r"object of type XGBClassifier. Pass the class: XGB"):
        XGBoostModelHandlerNumpy(xgboost.XGBClassifier(), "m.json")
    with pytest.raises(OptionError, match=r"DMatrix has no load_model\(\)"):
        XGBoostModelHandlerNumpy(xgboost.DMatrix, "m.json")
    with pytest.raises(OptionError, match=r"object of type str"):
        XGBoostModelHandlerNumpy("m.json", xgboost.Booster)
    with pytest.raises(UnknownOptionError, match="Did you mean 'model_state'"):
        XGBoostModelHandlerNumpy(xgboost.Booster, model_stat="m.json")


def test_model_class_can_be_a_function(folder):
    path = str(folder / "arrays.ubj")
    make = functools.partial(xgboost.XGBClassifier, n_jobs=1)
    assert XGBoostModelHandlerNumpy(make, path).predict(ROWS[:1])[0].inference == 0
    with pytest.raises(ModelLoadError, match=r"returned a dict, which has no load_model\(\)"):
        XGBoostModelHandlerNumpy(lambda: {}, path).predict(ROWS)


def test_rejects_a_file_of_another_class(folder):
    handler = XGBoostModelHandlerNumpy(xgboost.XGBRegressor, str(folder / "arrays.ubj"))
    with pytest.raises(ModelLoadError, match=r"by XGBRegressor \(.*regressor, got: classifier\)"):
        handler.predict(ROWS)


def test_suggests_a_similar_name_for_a_missing_file(folder):
    path = str(folder / "arrays.js")
    with pytest.raises(ModelNotFoundError, match=r"Did you mean '.*arrays.json'"):
        XGBoostModelHandlerNumpy(xgboost.Booster, path).predict(ROWS)


@pytest.mark.parametrize("suffix", ["json", "ubj"])
@pytest.mark.parametrize("length", [1, 18, 20, 300, 1000, -1])
def test_rejects_a_truncated_file_without_crashing(folder, tmp_path, suffix, length):
    path = tmp_path / f"half.{suffix}"
    path.write_bytes((folder / f"arrays.{suffix}").read_bytes()[:length])
    with pytest.raises(ModelLoadError, match="half.*is truncated: .* Copy it again"):
        XGBoostModelHandlerNumpy(xgboost.XGBClassifier, str(path)).predict(ROWS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>", "starts with b'<!DOCTYP': it is neither JSON nor UBJ"),
        (pickle.dumps({"not": "a model"}), "neither JSON nor UBJ .* model.save_model"),
        (json.dumps({"not": "a model"}).encode(), "another kind of JSON"),
    ],
)
def test_rejects_files_that_are_not_models(tmp_path, content, message):
    (tmp_path / "junk").write_bytes(content)
    with pytest.raises(ModelLoadError, match=message) as caught:
        XGBoostModelHandlerNumpy(xgboost.Booster, str(tmp_path / "junk")).predict(ROWS)
    assert "Stack trace" not in str(caught.value)


@pytest.mark.parametrize("make", [xgboost.XGBClassifier, xgboost.Booster])
def test_rejects_a_wrong_number_of_features(folder, make):
    handler = XGBoostModelHandlerNumpy(make, str(folder / "arrays.ubj"), min_batch_size=2)
    with pytest.raises(
        BatchShapeError, match="Element 1 .* has 3 features, and the model was trained with 4"
    ):
        handler.predict([ROWS[0], ROWS[1, :3]])


def test_names_missing_and_unknown_columns(folder):
    handler = XGBoostModelHandlerPandas(xgboost.XGBClassifier, str(folder / "frames.ubj"))
    with pytest.raises(BatchShapeError, match=r"missing: width; unknown to the model: depth"):
        handler.predict([FRAME[:1].rename(columns={"width": "depth"})])
    with pytest.raises(BatchShapeError, match=r"the same in another order\).*frame\[\['length'"):
        handler.predict([FRAME[NAMES[::-1]][:1]])


def test_rejects_data_frames_with_different_columns(folder):
    handler = XGBoostModelHandlerPandas(
        xgboost.XGBClassifier, str(folder / "arrays.ubj"), min_batch_size=2
    )
    with pytest.raises(BatchShapeError, match="Element 1 of the batch has the columns"):
        handler.predict([FRAME[:1], FRAME[NAMES[::-1]][:1]])


def test_rejects_elements_of_different_types(folder):
    handler = XGBoostModelHandlerPandas(
        xgboost.XGBClassifier, str(folder / "arrays.ubj"), min_batch_size=2
    )
    with pytest.raises(BatchShapeError, match="Element 1 .* is a DataFrame, .* 0 is an array"):
        handler.predict([ROWS[0], FRAME[:1]])


def test_rejects_an_array_of_three_dimensions(folder):
    handler = XGBoostModelHandlerNumpy(xgboost.XGBClassifier, str(folder / "arrays.ubj"))
    with pytest.raises(
        BatchShapeError, match=r"shape \(1, 1, 4\). To fix this, use a row of shape"
    ):
        handler.predict([ROWS[:1, None]])


def test_rejects_keyed_examples_and_suggests_a_keyed_handler(folder):
    handler = XGBoostModelHandlerNumpy(xgboost.XGBClassifier, str(folder / "arrays.ubj"))
    with pytest.raises(ElementError, match=r"KeyedModelHandler\(handler\)"):
        handler.predict([("a", ROWS[0])])
    [(key, result)] = KeyedModelHandler(handler).predict([("a", ROWS[0])])
    assert (key, result.inference) == ("a", 0)


def test_a_custom_handler_can_subclass_beams_base_class(folder):
    class Own(XGBoostModelHandler[np.ndarray, PredictionResult, xgboost.Booster]):
        def __init__(self):
            self._model_class = xgboost.XGBClassifier
            self._model_state = str(folder / "arrays.ubj")
            self._inference_fn = default_xgboost_inference_fn

    assert Own().predict(ROWS[:1])[0].inference == 0
    assert Own().get_metrics_namespace() == "BeamML_XGBoost"


def test_measures_the_bytes_of_a_batch(folder):
    handler = XGBoostModelHandlerNumpy(xgboost.Booster, "m.json")
    assert handler.get_num_bytes(list(ROWS)) == ROWS.nbytes


def test_names_the_extra_if_xgboost_is_missing():
    program = "import sys; sys.modules['xgboost'] = None; import runinference.xgboost_inference"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert 'pip install "runinference[xgboost]"' in ended.stderr


@pytest.fixture
def beam_module(monkeypatch):
    """Import Beam's module, which needs the package datatable or a substitute."""
    if not has("datatable"):
        monkeypatch.setitem(sys.modules, "datatable", types.SimpleNamespace(Frame=Frame))
    return BEAM.module("xgboost_inference")


def test_a_new_model_replaces_the_old_one_which_beam_ignores(folder, beam_module):
    old, new = str(folder / "arrays.ubj"), str(folder / "backwards.ubj")
    examples = [ROWS[:1], ROWS[149:]]

    def labels(package, module):
        handler = module.XGBoostModelHandlerNumpy(xgboost.XGBClassifier, old)
        results = run_with_model_update(package, handler, new, examples)
        return sorted(
            (result.example[0, 0], *result.inference, result.model_id) for result in results
        )

    in_beam = labels(BEAM, beam_module)
    assert in_beam == [(5.1, 0, None), (5.9, 2, None)]
    in_ours = labels(OURS, OURS.module("xgboost_inference"))
    assert in_ours == [(5.1, 2, new), (5.9, 0, new)]


def test_one_call_gives_the_same_results_as_beams_call_per_row(folder, beam_module):
    calls = []

    class Counting(xgboost.XGBClassifier):
        def predict(self, X, **options):  # noqa: N803
            calls.append(len(X))
            return super().predict(X, **options)

    found = {}
    for package, module in ((BEAM, beam_module), (OURS, OURS.module("xgboost_inference"))):
        handler = module.XGBoostModelHandlerNumpy(Counting, str(folder / "arrays.ubj"))
        batch = [ROWS[[i]] for i in range(50)] + [ROWS[50:]]
        results = handler.run_inference(batch, handler.load_model())
        found[package] = [result.inference.tolist() for result in results], calls.copy()
        calls.clear()
    assert found[BEAM][0] == found[OURS][0]
    assert len(found[BEAM][1]) == 51
    assert found[OURS][1] == [150]
