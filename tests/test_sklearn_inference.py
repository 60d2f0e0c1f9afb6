"""scikit-learn handlers load three file types, and predict on arrays and DataFrames."""

from __future__ import annotations

import collections
import dataclasses
import pickle

import apache_beam as beam
import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import skops.io
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from common import linear_regression, run
from runinference import RunInference
from runinference.errors import (
    BatchShapeError,
    ElementError,
    ModelLoadError,
    OptionError,
    ResultMismatchError,
)
from runinference.sklearn_inference import (
    ModelFileType,
    SklearnModelHandlerNumpy,
    SklearnModelHandlerPandas,
)

ROWS, LABELS = load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def classifier():
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(ROWS, LABELS)


@pytest.fixture(scope="module")
def files(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "model.pickle").write_bytes(pickle.dumps(classifier))
    joblib.dump(classifier, folder / "model.joblib", compress=3)
    skops.io.dump(classifier, folder / "model.skops")
    return {
        ModelFileType.PICKLE: str(folder / "model.pickle"),
        ModelFileType.JOBLIB: str(folder / "model.joblib"),
        ModelFileType.SKOPS: str(folder / "model.skops"),
    }


@pytest.mark.parametrize("file_type", ModelFileType)
def test_pipeline_results_are_the_predictions_of_the_estimator(file_type, files, classifier):
    results = run(list(ROWS), RunInference(SklearnModelHandlerNumpy(files[file_type], file_type)))
    found = {result.example.tobytes(): result.inference for result in results}
    assert len(results) == len(ROWS)
    assert [found[row.tobytes()] for row in ROWS] == classifier.predict(ROWS).tolist()
    assert {result.model_id for result in results} == {files[file_type]}


def test_accepts_lists_as_examples(files):
    results = SklearnModelHandlerNumpy(files[ModelFileType.PICKLE]).predict(ROWS[:2].tolist())
    assert [result.inference for result in results] == [0, 0]


def test_accepts_arrays_of_rows_as_batches(files, classifier):
    handler = SklearnModelHandlerNumpy(files[ModelFileType.PICKLE]).with_no_batching()
    results = run([ROWS[:100], ROWS[100:]], RunInference(handler))
    assert len(results) == 150
    by_row = {result.example.tobytes(): result.inference for result in results}
    assert [by_row[row.tobytes()] for row in ROWS] == classifier.predict(ROWS).tolist()


def test_inference_fn_can_call_another_method(files, classifier):
    def probabilities(model, batch, inference_args):
        return model.predict_proba(np.stack(batch))

    handler = SklearnModelHandlerNumpy(files[ModelFileType.PICKLE], inference_fn=probabilities)
    [result] = handler.predict(ROWS[:1])
    np.testing.assert_allclose(result.inference, classifier.predict_proba(ROWS[:1])[0])


class Scaled(LogisticRegression):
    def predict(self, X, factor=1):  # noqa: N803
        return super().predict(X) * factor


def test_passes_inference_args_to_predict(tmp_path):
    path = tmp_path / "scaled.pickle"
    path.write_bytes(pickle.dumps(Scaled(max_iter=1000).fit(ROWS, LABELS)))
    [result] = SklearnModelHandlerNumpy(str(path)).predict(ROWS[-1:], {"factor": 10})
    assert result.inference == 20
    [result] = SklearnModelHandlerPandas(str(path)).predict(
        [pd.DataFrame(ROWS[-1:])], {"factor": 10}
    )
    assert result.inference == 20


def test_predicts_on_data_frames(tmp_path):
    frame = pd.DataFrame(ROWS, columns=["a", "b", "c", "d"])
    model = RandomForestClassifier(n_estimators=5, random_state=0).fit(frame, LABELS)
    path = tmp_path / "frames.pickle"
    path.write_bytes(pickle.dumps(model))
    rows = [frame.iloc[[i]] for i in range(len(frame))]
    results = run(rows, RunInference(SklearnModelHandlerPandas(str(path))))
    found = {result.example.index[0]: result.inference for result in results}
    assert [found[i] for i in range(len(frame))] == model.predict(frame).tolist()


def test_rejects_a_frame_with_several_rows(tmp_path):
    handler = SklearnModelHandlerPandas(linear_regression(tmp_path / "m.pickle"))
    with pytest.raises(BatchShapeError, match="with_no_batching.*emit one frame per row"):
        handler.predict([pd.DataFrame({"x": [1.0, 2.0]})])


def test_rejects_frames_with_different_columns_and_names_both(tmp_path):
    handler = SklearnModelHandlerPandas(linear_regression(tmp_path / "m.pickle"), min_batch_size=2)
    with pytest.raises(
        BatchShapeError, match=r"Element 1 .* columns \['y'\], but element 0 has \['x'\]"
    ):
        handler.predict([pd.DataFrame({"x": [1.0]}), pd.DataFrame({"y": [1.0]})])


@pytest.mark.parametrize(
    ("written", "given", "hint"),
    [
        (ModelFileType.SKOPS, ModelFileType.PICKLE, "pass model_file_type=ModelFileType.SKOPS"),
        (ModelFileType.JOBLIB, ModelFileType.PICKLE, "pass model_file_type=ModelFileType.JOBLIB"),
        (ModelFileType.PICKLE, ModelFileType.SKOPS, "pass model_file_type=ModelFileType.PICKLE"),
        (ModelFileType.SKOPS, ModelFileType.JOBLIB, "pass model_file_type=ModelFileType.SKOPS"),
    ],
)
def test_error_names_the_actual_file_type(files, written, given, hint):
    with pytest.raises(ModelLoadError, match=hint):
        SklearnModelHandlerNumpy(files[written], given).predict(ROWS)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"\x80\x04\x95\x10"])
@pytest.mark.parametrize("file_type", ModelFileType)
def test_rejects_files_that_are_not_models(tmp_path, content, file_type):
    path = tmp_path / "junk"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match="cannot be loaded as ModelFileType"):
        SklearnModelHandlerNumpy(str(path), file_type).predict(ROWS)


def test_rejects_a_truncated_file(files, tmp_path):
    path = tmp_path / "half.pickle"
    with open(files[ModelFileType.PICKLE], "rb") as file:
        path.write_bytes(file.read()[:300])
    with pytest.raises(ModelLoadError, match="truncated"):
        SklearnModelHandlerNumpy(str(path)).predict(ROWS)


def test_rejects_an_object_without_predict(tmp_path):
    path = tmp_path / "dict.pickle"
    path.write_bytes(pickle.dumps({"not": "a model"}))
    with pytest.raises(ModelLoadError, match=r"contains a dict, which has no predict\(\)"):
        SklearnModelHandlerNumpy(str(path)).predict(ROWS)


def test_inference_fn_accepts_any_object_as_the_model(tmp_path):
    path = tmp_path / "dict.pickle"
    path.write_bytes(pickle.dumps({"offset": 3}))
    handler = SklearnModelHandlerNumpy(
        str(path), inference_fn=lambda model, batch, args: [model["offset"] + row for row in batch]
    )
    assert [result.inference for result in run([1, 2], RunInference(handler))] == [4, 5]


def test_rejects_arrays_with_different_shapes(files):
    handler = SklearnModelHandlerNumpy(
        files[ModelFileType.PICKLE], min_batch_size=3, max_batch_size=3
    )
    with pytest.raises(
        BatchShapeError, match=r"Element 2 of the batch has shape \(5,\), while 2 of 3 .* \(4,\)"
    ):
        handler.predict([ROWS[0], ROWS[1], np.zeros(5)])


def test_rejects_too_few_predictions(files):
    handler = SklearnModelHandlerNumpy(
        files[ModelFileType.PICKLE], inference_fn=lambda model, batch, args: [0], min_batch_size=8
    )
    with pytest.raises(ResultMismatchError, match="returned 1 result for a batch of 8"):
        handler.predict(ROWS[:8])


def test_builds_only_trusted_types_from_a_skops_file(tmp_path):
    path = str(tmp_path / "own.skops")
    skops.io.dump(FunctionTransformer(len), path)
    model = make_pipeline(StandardScaler(), Scaled()).fit(ROWS, LABELS)
    skops.io.dump(model, path)
    name = f"{Scaled.__module__}.Scaled"
    with pytest.raises(ModelLoadError, match=rf"not trusted: {name}.*trusted_types=\['{name}'\]"):
        SklearnModelHandlerNumpy(path, ModelFileType.SKOPS).predict(ROWS)
    handler = SklearnModelHandlerNumpy(path, ModelFileType.SKOPS, trusted_types=[name])
    assert len(handler.predict(ROWS)) == 150


def test_rejects_conflicting_options():
    with pytest.raises(OptionError, match=r"requires model_file_type=ModelFileType\.SKOPS"):
        SklearnModelHandlerNumpy("m", trusted_types=["x"])
    with pytest.raises(OptionError, match="but is 'pickle'"):
        SklearnModelHandlerNumpy("m", "pickle")


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """The path of a model of two columns: 2 a + 3 b."""
    path = tmp_path_factory.mktemp("line") / "line.pickle"
    frame = pd.DataFrame({"a": [0.0, 1, 0], "b": [0.0, 0, 1]})
    path.write_bytes(pickle.dumps(LinearRegression().fit(frame, [0.0, 2, 3])))
    return str(path)


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: {"a": a, "b": b},
        lambda a, b: beam.Row(a=a, b=b),
        lambda a, b: pd.Series({"a": a, "b": b}),
        lambda a, b: pd.Series({"a": a, "b": b}, dtype=object),
        collections.namedtuple("Point", ["a", "b"]),
        dataclasses.make_dataclass("Data", ["a", "b"]),
        lambda a, b: pd.DataFrame([{"a": a, "b": b}]),
    ],
)
@pytest.mark.parametrize("size", [1, 3])
def test_frames_may_be_given_as_records(line, make, size):
    records = [make(1, 2.5), make(0, 1), make(4, 0)]
    handler = SklearnModelHandlerPandas(line, min_batch_size=size, max_batch_size=size)
    results = handler.predict(records)
    assert [result.inference for result in results] == pytest.approx([9.5, 3, 8])
    assert all(result.example is record for result, record in zip(results, records, strict=True))


def test_inference_fn_gets_records_as_frames(line):
    handler = SklearnModelHandlerPandas(
        line, inference_fn=lambda model, batch, args: (model.predict(pd.concat(batch)), batch)
    )
    assert handler.predict([{"a": 1, "b": 1}])[0].inference == pytest.approx(5)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (np.zeros(2), "is a ndarray.*use SklearnModelHandlerNumpy"),
        ([1, 2], "is a list.*records with named values"),
        ("text", "is a str"),
        ({"a": [1], "b": 2}, "a list in the column 'a'"),
        ({"a": "red", "b": 2}, "rejects the batch.*could not convert string to float: 'red'"),
        ({"a": None, "b": 2}, "rejects the batch.*NaN"),
        ({"b": 1, "a": 2}, "rejects the batch.*same order"),
        ({"a": pd.Timestamp("2026"), "b": 2.5}, "rejects the batch"),
        ({"a": 1}, "have 1 features, and the estimator, a LinearRegression, was trained with 2"),
    ],
)
def test_elements_that_are_no_rows_of_the_estimator_raise_an_error_with_a_fix(
    line, example, message
):
    with pytest.raises((ElementError, BatchShapeError), match=f"(?s){message}") as caught:
        SklearnModelHandlerPandas(line).predict([example])
    assert "with_preprocess_fn" in str(caught.value) or "To fix this" in str(caught.value)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ([1, 2, 3], "have 3 features, and the estimator, a LinearRegression, was trained with 2"),
        (1.5, r"rejects elements of shape \(\)"),
        (beam.Row(a=1, b=2), r"rejects elements of shape \(\)"),
        ({"a": 1, "b": 2}, r"rejects elements of shape \(\)"),
        (np.zeros((1, 2)), r"rejects elements of shape \(1, 2\)"),
        (np.array(["2026", "2027"], "M8[Y]"), "rejects the batch"),
        ([10**400, 1], "rejects the batch.*int too large"),
        (["red", 1], "could not convert string to float: 'red'"),
        (scipy.sparse.csr_matrix(np.zeros((2, 2))), "have 2 rows"),
        ([1, [2, 3]], "a list that cannot be converted"),
    ],
)
def test_arrays_that_are_no_rows_of_the_estimator_raise_an_error_with_a_fix(line, example, message):
    with pytest.raises((ElementError, BatchShapeError), match=f"(?s){message}") as caught:
        SklearnModelHandlerNumpy(line).predict([example])
    assert "To fix this" in str(caught.value)


@pytest.mark.parametrize("make", ["csr_matrix", "csr_array", "coo_array", "csc_array", "dok_array"])
def test_predicts_on_sparse_rows(line, make):
    rows = [getattr(scipy.sparse, make)(row) for row in ([[1, 0]], [[0, 2.5]], [[1, 1]])]
    results = SklearnModelHandlerNumpy(line, min_batch_size=3).predict(rows)
    assert [result.inference for result in results] == pytest.approx([2, 7.5, 5])


def test_rows_of_words_and_numbers_keep_their_types(tmp_path):
    rows = [["red", 3], ["blue", 4], ["red", None], ["blue", True]]
    labels = [1.0, 2, 3, 4]
    encoder = OneHotEncoder(handle_unknown="ignore")
    model = make_pipeline(encoder, LinearRegression()).fit(np.array(rows, object), labels)
    (tmp_path / "m.pickle").write_bytes(pickle.dumps(model))
    results = SklearnModelHandlerNumpy(str(tmp_path / "m.pickle"), min_batch_size=4).predict(rows)
    assert [result.inference for result in results] == pytest.approx(labels)


def join_ratio(frame):
    return frame.join((frame["a"] / frame["b"]).rename("ratio"))


@pytest.mark.parametrize(
    "index", [[0, 0, 0], [5, 6, 5], ["x", "x", "y"], [pd.Timestamp("2020")] * 3, [7, 8, 9]]
)
def test_frames_with_the_same_label_are_not_mixed(tmp_path, index):
    frame = pd.DataFrame({"a": [1.0, 2, 3, 4], "b": [2.0, 3, 5, 7]})
    model = make_pipeline(FunctionTransformer(join_ratio), LinearRegression())
    model.fit(frame, [1.0, 2.0, 3.5, 4.0])
    (tmp_path / "m.pickle").write_bytes(pickle.dumps(model))
    records = [frame.iloc[[i]].set_axis([label]) for i, label in enumerate(index)]
    handler = SklearnModelHandlerPandas(str(tmp_path / "m.pickle"), min_batch_size=3)
    expected = [model.predict(record)[0] for record in records]
    assert [result.inference for result in handler.predict(records)] == pytest.approx(expected)


class ByYear(LinearRegression):
    """Adds the year of the index."""

    def predict(self, X):  # noqa: N803
        return super().predict(X) + X.index.year


def test_the_index_reaches_an_estimator_that_reads_it(tmp_path):
    frame = pd.DataFrame({"a": [0.0, 1.0]}, index=pd.to_datetime(["2020", "2021"]))
    (tmp_path / "m.pickle").write_bytes(pickle.dumps(ByYear().fit(frame, [0.0, 1.0])))
    records = [frame.iloc[[i]] for i in (0, 1, 0)]
    handler = SklearnModelHandlerPandas(str(tmp_path / "m.pickle"), min_batch_size=3)
    assert [r.inference for r in handler.predict(records)] == pytest.approx([2020, 2022, 2020])


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    "output",
    [
        lambda model, rows: tuple(model.predict_proba(row[None])[0] for row in rows),
        lambda model, rows: [["a"] * len(rows), [0.5] * len(rows)],
        lambda model, rows: {"proba": model.predict_proba(rows), "classes": model.classes_[:2]},
        lambda model, rows: [model.predict_proba(rows), model.predict_proba(rows)],
    ],
)
def test_outputs_are_not_split_by_their_length(tmp_path, output, size):
    rows = np.array([[0.0], [1.0], [2.0]])
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(LogisticRegression().fit(rows, [0, 1, 1])))
    handler = SklearnModelHandlerNumpy(
        str(path),
        inference_fn=lambda model, batch, args: output(model, np.stack(batch)),
        min_batch_size=size,
    )
    with pytest.raises(ResultMismatchError):
        handler.predict(rows[:size])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_lists_of_outputs_are_split_as_declared(tmp_path, size):
    rows = np.arange(8.0).reshape(4, 2)
    targets = np.array([[0, 1], [1, 0], [1, 1], [0, 0]])
    model = KNeighborsClassifier(1).fit(rows, targets)
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(model))
    expected = model.predict_proba(rows)

    def probabilities(model, batch, inference_args):
        return model.predict_proba(np.stack(batch))

    numpy = SklearnModelHandlerNumpy(
        str(path), inference_fn=probabilities, list_output="multi_output", min_batch_size=size
    )
    for i, result in enumerate(numpy.predict(rows[:size])):
        assert [part.tolist() for part in result.inference] == [x[i].tolist() for x in expected]
