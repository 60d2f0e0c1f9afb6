"""scikit-learn handlers load three file types, and predict on arrays and data frames."""

from __future__ import annotations

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from common import linear_regression, run
from runinference import RunInference
from runinference.errors import (
    BatchShapeError,
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
    with pytest.raises(BatchShapeError, match="Emit one frame per row"):
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
