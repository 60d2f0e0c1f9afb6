"""Model files are read from any Beam file system, checked against a digest, and named in errors."""

from __future__ import annotations

import gzip
import hashlib
import pickle

import pytest
from apache_beam.io.filesystems import FileSystems
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common import run
from in_memory_file_system import InMemory
from runinference import RunInference
from runinference.errors import ModelLoadError, ModelNotFoundError
from runinference.model_file import open_model
from runinference.sklearn_inference import SklearnModelHandlerNumpy

ROWS, LABELS = load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def classifier():
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(ROWS, LABELS)


@pytest.fixture(scope="module")
def model_path(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model.pickle"
    path.write_bytes(pickle.dumps(classifier))
    return str(path)


def test_suggests_a_similar_name_for_a_missing_file(model_path):
    with pytest.raises(
        ModelNotFoundError, match=r"no file '.*model.pickl' .*Did you mean '.*model.pickle'"
    ):
        SklearnModelHandlerNumpy(model_path.removesuffix("e")).predict(ROWS)
    assert issubclass(ModelNotFoundError, FileNotFoundError)


def test_a_missing_file_fails_the_pipeline_with_the_same_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file .*nowhere"):
        run(list(ROWS), RunInference(SklearnModelHandlerNumpy(str(tmp_path / "nowhere"))))


class Bomb:
    def __reduce__(self):
        return (open, (self.path, "w"))


def test_checks_the_digest_before_unpickling(tmp_path):
    bomb = Bomb()
    bomb.path = str(tmp_path / "exploded")
    path = tmp_path / "bomb.pickle"
    path.write_bytes(pickle.dumps(bomb))
    with pytest.raises(ModelLoadError, match="not loaded"):
        SklearnModelHandlerNumpy(str(path), model_sha256="0" * 64).predict(ROWS)
    assert not (tmp_path / "exploded").exists()


def test_loads_a_file_with_the_expected_digest(model_path):
    with open(model_path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    assert (
        len(SklearnModelHandlerNumpy(model_path, model_sha256=digest.upper()).predict(ROWS[:2]))
        == 2
    )


def test_reads_a_model_from_any_beam_file_system(model_path, classifier):
    with open(model_path, "rb") as file:
        InMemory.files["inmemory://bucket/model"] = file.read()
    assert FileSystems.get_scheme("inmemory://bucket/model") == "inmemory"
    results = SklearnModelHandlerNumpy("inmemory://bucket/model").predict(ROWS)
    assert [result.inference for result in results] == classifier.predict(ROWS).tolist()


def test_names_the_path_of_an_unknown_file_system():
    with pytest.raises(ModelLoadError, match="No file system is known for 'nowhere://model'"):
        SklearnModelHandlerNumpy("nowhere://model").predict(ROWS)


def test_decompresses_a_file_by_its_suffix(model_path, tmp_path, classifier):
    path = tmp_path / "model.pickle.gz"
    with open(model_path, "rb") as file:
        path.write_bytes(gzip.compress(file.read()))
    results = SklearnModelHandlerNumpy(str(path)).predict(ROWS[:3])
    assert [result.inference for result in results] == classifier.predict(ROWS[:3]).tolist()


def test_the_bytes_whose_digest_was_checked_are_returned(tmp_path, model_path):
    """A file that is replaced after it was opened does not change what is loaded."""
    with open(model_path, "rb") as file:
        content = file.read()
    path = tmp_path / "model.pickle"
    path.write_bytes(content)
    with open_model(str(path), "model_uri", hashlib.sha256(content).hexdigest()) as file:
        path.write_bytes(b"replaced")
        assert file.read() == content
