"""scikit-learn estimators, from files of three kinds, on arrays and frames."""

from __future__ import annotations

import hashlib
import io
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
from apache_beam.io.filesystem import FileSystem
from apache_beam.io.filesystems import FileSystems
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
    ModelNotFoundError,
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


@pytest.mark.parametrize("kind", ModelFileType)
def test_a_pipeline_says_what_the_estimator_says(kind, files, classifier):
    results = run(list(ROWS), RunInference(SklearnModelHandlerNumpy(files[kind], kind)))
    found = {result.example.tobytes(): result.inference for result in results}
    assert len(results) == len(ROWS)
    assert [found[row.tobytes()] for row in ROWS] == classifier.predict(ROWS).tolist()
    assert {result.model_id for result in results} == {files[kind]}


def test_examples_may_be_lists(files):
    results = SklearnModelHandlerNumpy(files[ModelFileType.PICKLE]).predict(ROWS[:2].tolist())
    assert [result.inference for result in results] == [0, 0]


def test_batches_may_be_arrays_of_rows(files, classifier):
    handler = SklearnModelHandlerNumpy(files[ModelFileType.PICKLE]).with_no_batching()
    results = run([ROWS[:100], ROWS[100:]], RunInference(handler))
    assert len(results) == 150
    by_row = {result.example.tobytes(): result.inference for result in results}
    assert [by_row[row.tobytes()] for row in ROWS] == classifier.predict(ROWS).tolist()


def test_inference_fn_calls_another_method(files, classifier):
    def probabilities(model, batch, inference_args):
        return model.predict_proba(np.stack(batch))

    handler = SklearnModelHandlerNumpy(files[ModelFileType.PICKLE], inference_fn=probabilities)
    [result] = handler.predict(ROWS[:1])
    np.testing.assert_allclose(result.inference, classifier.predict_proba(ROWS[:1])[0])


class Scaled(LogisticRegression):
    def predict(self, X, factor=1):  # noqa: N803
        return super().predict(X) * factor


def test_inference_args_reach_the_estimator_for_arrays_and_frames(tmp_path):
    path = tmp_path / "scaled.pickle"
    path.write_bytes(pickle.dumps(Scaled(max_iter=1000).fit(ROWS, LABELS)))
    [result] = SklearnModelHandlerNumpy(str(path)).predict(ROWS[-1:], {"factor": 10})
    assert result.inference == 20
    [result] = SklearnModelHandlerPandas(str(path)).predict(
        [pd.DataFrame(ROWS[-1:])], {"factor": 10}
    )
    assert result.inference == 20


def test_frames_are_found_by_column(tmp_path):
    frame = pd.DataFrame(ROWS, columns=["a", "b", "c", "d"])
    model = RandomForestClassifier(n_estimators=5, random_state=0).fit(frame, LABELS)
    path = tmp_path / "frames.pickle"
    path.write_bytes(pickle.dumps(model))
    rows = [frame.iloc[[i]] for i in range(len(frame))]
    results = run(rows, RunInference(SklearnModelHandlerPandas(str(path))))
    found = {result.example.index[0]: result.inference for result in results}
    assert [found[i] for i in range(len(frame))] == model.predict(frame).tolist()


def test_a_frame_of_several_rows_is_an_error_with_its_cure(tmp_path):
    handler = SklearnModelHandlerPandas(linear_regression(tmp_path / "m.pickle"))
    with pytest.raises(BatchShapeError, match="Emit one frame a row"):
        handler.predict([pd.DataFrame({"x": [1.0, 2.0]})])


def test_a_frame_of_other_columns_is_an_error_that_names_both(tmp_path):
    handler = SklearnModelHandlerPandas(linear_regression(tmp_path / "m.pickle"), min_batch_size=2)
    with pytest.raises(
        BatchShapeError, match=r"Element 1 .* columns \['y'\], and element 0 has \['x'\]"
    ):
        handler.predict([pd.DataFrame({"x": [1.0]}), pd.DataFrame({"y": [1.0]})])


def test_a_missing_file_is_named_with_its_nearest_neighbour(files):
    path = files[ModelFileType.PICKLE]
    with pytest.raises(
        ModelNotFoundError, match=r"no file '.*model.pickl' .*Did you mean '.*model.pickle'"
    ):
        SklearnModelHandlerNumpy(path.removesuffix("e")).predict(ROWS)
    assert issubclass(ModelNotFoundError, FileNotFoundError)


def test_a_missing_file_stops_a_pipeline_with_the_same_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file .*nowhere"):
        run(list(ROWS), RunInference(SklearnModelHandlerNumpy(str(tmp_path / "nowhere"))))


@pytest.mark.parametrize(
    ("written", "said", "cure"),
    [
        (ModelFileType.SKOPS, ModelFileType.PICKLE, "pass model_file_type=ModelFileType.SKOPS"),
        (ModelFileType.JOBLIB, ModelFileType.PICKLE, "pass model_file_type=ModelFileType.JOBLIB"),
        (ModelFileType.PICKLE, ModelFileType.SKOPS, "pass model_file_type=ModelFileType.PICKLE"),
        (ModelFileType.SKOPS, ModelFileType.JOBLIB, "pass model_file_type=ModelFileType.SKOPS"),
    ],
)
def test_a_file_of_another_kind_is_named_with_its_kind(files, written, said, cure):
    with pytest.raises(ModelLoadError, match=cure):
        SklearnModelHandlerNumpy(files[written], said).predict(ROWS)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"\x80\x04\x95\x10"])
@pytest.mark.parametrize("kind", ModelFileType)
def test_junk_in_place_of_a_model_is_named(tmp_path, content, kind):
    path = tmp_path / "junk"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match="cannot be loaded as ModelFileType"):
        SklearnModelHandlerNumpy(str(path), kind).predict(ROWS)


def test_a_truncated_file_is_named(files, tmp_path):
    path = tmp_path / "half.pickle"
    with open(files[ModelFileType.PICKLE], "rb") as whole:
        path.write_bytes(whole.read()[:300])
    with pytest.raises(ModelLoadError, match="truncated"):
        SklearnModelHandlerNumpy(str(path)).predict(ROWS)


def test_an_object_that_cannot_predict_is_named(tmp_path):
    path = tmp_path / "dict.pickle"
    path.write_bytes(pickle.dumps({"not": "a model"}))
    with pytest.raises(ModelLoadError, match=r"holds a dict, which has no predict\(\)"):
        SklearnModelHandlerNumpy(str(path)).predict(ROWS)


def test_a_model_may_be_any_object_where_inference_fn_says_how_to_call_it(tmp_path):
    path = tmp_path / "dict.pickle"
    path.write_bytes(pickle.dumps({"offset": 3}))
    handler = SklearnModelHandlerNumpy(
        str(path), inference_fn=lambda model, batch, args: [model["offset"] + row for row in batch]
    )
    assert [result.inference for result in run([1, 2], RunInference(handler))] == [4, 5]


def test_an_array_of_another_shape_than_its_batch_is_named(files):
    handler = SklearnModelHandlerNumpy(
        files[ModelFileType.PICKLE], min_batch_size=3, max_batch_size=3
    )
    with pytest.raises(
        BatchShapeError, match=r"Element 2 of the batch has shape \(5,\), while 2 of 3 .* \(4,\)"
    ):
        handler.predict([ROWS[0], ROWS[1], np.zeros(5)])


def test_too_few_predictions_are_an_error(files):
    handler = SklearnModelHandlerNumpy(
        files[ModelFileType.PICKLE], inference_fn=lambda model, batch, args: [0], min_batch_size=8
    )
    with pytest.raises(ResultMismatchError, match="returned 1 result for a batch of 8"):
        handler.predict(ROWS[:8])


class Bomb:
    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_digest_is_checked_before_anything_is_unpickled(tmp_path):
    bomb = Bomb()
    bomb.path = str(tmp_path / "exploded")
    path = tmp_path / "bomb.pickle"
    path.write_bytes(pickle.dumps(bomb))
    with pytest.raises(ModelLoadError, match="not loaded"):
        SklearnModelHandlerNumpy(str(path), model_sha256="0" * 64).predict(ROWS)
    assert not (tmp_path / "exploded").exists()


def test_a_file_with_the_right_digest_is_loaded(files):
    path = files[ModelFileType.PICKLE]
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    assert len(SklearnModelHandlerNumpy(path, model_sha256=digest.upper()).predict(ROWS[:2])) == 2


def test_a_skops_file_builds_only_trusted_types(tmp_path):
    path = str(tmp_path / "own.skops")
    skops.io.dump(FunctionTransformer(len), path)
    model = make_pipeline(StandardScaler(), Scaled()).fit(ROWS, LABELS)
    skops.io.dump(model, path)
    name = f"{Scaled.__module__}.Scaled"
    with pytest.raises(ModelLoadError, match=rf"not trusted: {name}.*trusted_types=\['{name}'\]"):
        SklearnModelHandlerNumpy(path, ModelFileType.SKOPS).predict(ROWS)
    handler = SklearnModelHandlerNumpy(path, ModelFileType.SKOPS, trusted_types=[name])
    assert len(handler.predict(ROWS)) == 150


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(OptionError, match=r"for model_file_type=ModelFileType\.SKOPS alone"):
        SklearnModelHandlerNumpy("m", trusted_types=["x"])
    with pytest.raises(OptionError, match="and is 'pickle'"):
        SklearnModelHandlerNumpy("m", "pickle")


class InMemory(FileSystem):
    """A file system of Beam's that holds files in memory."""

    files: dict[str, bytes] = {}

    @classmethod
    def scheme(cls):
        return "inmemory"

    def join(self, base, *paths):
        return "/".join([base.rstrip("/"), *paths])

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def open(self, path, mime_type="application/octet-stream", compression_type="auto"):
        return io.BytesIO(self.files[path])

    def exists(self, path):
        return path in self.files

    def _unused(self, *args, **kwargs):
        raise NotImplementedError

    mkdirs = has_dirs = _list = create = copy = rename = _unused
    size = last_updated = checksum = metadata = delete = _unused


def test_a_model_is_read_from_any_file_system_of_beams(files, classifier):
    with open(files[ModelFileType.PICKLE], "rb") as file:
        InMemory.files["inmemory://bucket/model"] = file.read()
    assert FileSystems.get_scheme("inmemory://bucket/model") == "inmemory"
    results = SklearnModelHandlerNumpy("inmemory://bucket/model").predict(ROWS)
    assert [result.inference for result in results] == classifier.predict(ROWS).tolist()


def test_an_unknown_file_system_is_named_with_its_cure():
    with pytest.raises(ModelLoadError, match="No file system is known for 'nowhere://model'"):
        SklearnModelHandlerNumpy("nowhere://model").predict(ROWS)


def test_a_compressed_file_is_decompressed_by_its_ending(files, tmp_path, classifier):
    import gzip

    path = tmp_path / "model.pickle.gz"
    with open(files[ModelFileType.PICKLE], "rb") as file:
        path.write_bytes(gzip.compress(file.read()))
    results = SklearnModelHandlerNumpy(str(path)).predict(ROWS[:3])
    assert [result.inference for result in results] == classifier.predict(ROWS[:3]).tolist()
