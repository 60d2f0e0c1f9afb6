"""The sample models are trained once, are as good as their pages say, and never saw the held-out data."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import sklearn
import torch
from torchvision.models import shufflenet_v2_x0_5

from runinference import samples
from runinference.samples import cache as sample_files


def accuracy(predictions):
    _, labels = samples.held_out_digits()
    return np.mean(np.asarray(predictions) == labels)


def test_the_classifier_reads_held_out_digits():
    images, _ = samples.held_out_digits()
    model = pickle.loads(Path(samples.digits_classifier()).read_bytes())
    assert accuracy(model.predict(images)) >= 0.92


def test_the_forest_reads_them_better_and_differently():
    images, _ = samples.held_out_digits()
    classifier = pickle.loads(Path(samples.digits_classifier()).read_bytes())
    forest = joblib.load(samples.digits_forest())
    assert accuracy(forest.predict(images)) >= 0.94
    assert np.mean(forest.predict(images) != classifier.predict(images)) > 0.02


def test_the_shufflenet_is_torchvision_s_and_reads_them():
    images, _ = samples.held_out_digits()
    weights = torch.load(samples.digits_shufflenet(), weights_only=True)
    model = shufflenet_v2_x0_5(num_classes=10).eval()
    model.load_state_dict(weights)
    with torch.inference_mode():
        assert accuracy(model(samples.digit_tensors(images)).argmax(1)) >= 0.92


def test_the_regressor_explains_half_of_the_variance_whatever_the_order_of_columns():
    patients, progression = samples.held_out_diabetes()
    model = pickle.loads(Path(samples.diabetes_regressor()).read_bytes())
    assert model.score(patients, progression) >= 0.45
    assert model.score(patients[patients.columns[::-1]], progression) >= 0.45


def test_what_is_held_out_is_all_that_did_not_train():
    from sklearn.datasets import load_diabetes, load_digits

    images, labels = samples.held_out_digits()
    patients, progression = samples.held_out_diabetes()
    assert images.shape == (797, 64)
    assert labels.shape == (797,)
    assert patients.shape == (142, 10)
    assert list(patients.index) == list(progression.index) == list(range(300, 442))
    assert len(load_digits().data) == 1_000 + len(images)
    assert len(load_diabetes().data) == 300 + len(patients)
    train = {row.tobytes() for row in load_digits().data[:1_000]}
    assert not train & {row.tobytes() for row in images}


def test_tensors_are_pictures_of_the_images():
    images, _ = samples.held_out_digits()
    tensors = samples.digit_tensors(images[:5])
    assert tensors.shape == (5, 3, 64, 64)
    assert tensors.dtype == torch.float32
    assert 0 <= tensors.min() < tensors.max() <= 1


def test_a_file_names_recipe_and_framework_and_lies_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = Path(samples.diabetes_regressor())
    assert path.parent == tmp_path / "runinference"
    assert re.search(r"-[0-9a-f]{8}-", path.name)
    assert f"sklearn-{sklearn.__version__}" in path.name
    assert path.suffix == ".pickle"


@pytest.mark.parametrize(
    ("platform", "variables", "folder"),
    [
        ("linux", {}, ".cache"),
        ("darwin", {}, "Library/Caches"),
        ("win32", {}, "AppData/Local"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local"),
        ("linux", {"XDG_CACHE_HOME": "/given"}, "/given"),
    ],
)
def test_each_platform_has_its_cache(platform, variables, folder, tmp_path, monkeypatch):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert sample_files.cache() == tmp_path / folder / "runinference"


def test_a_second_call_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = Path(samples.diabetes_regressor())
    written = path.stat().st_mtime_ns
    assert samples.diabetes_regressor() == str(path)
    assert path.stat().st_mtime_ns == written


def test_processes_that_ask_together_get_one_whole_file(tmp_path):
    program = (
        "import pickle; from runinference import samples;"
        "path = samples.digits_classifier(); pickle.load(open(path, 'rb')); print(path)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
        for _ in range(3)
    ]
    paths = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    [path] = paths
    left = {file.name for file in (tmp_path / "runinference").iterdir()}
    name = Path(path.decode().strip())
    assert left == {name.name, name.with_suffix(".lock").name}


def test_a_training_that_failed_leaves_no_model(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def train(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_files.keeper(__file__)("broken", ".pickle", "sklearn", train)
    assert not list((tmp_path / "runinference").glob("*.pickle"))


@pytest.mark.parametrize(
    ("missing", "ask", "extra"),
    [
        ("sklearn", samples.digits_classifier, "sklearn"),
        ("sklearn.datasets", samples.held_out_digits, "sklearn"),
        ("pandas", samples.held_out_diabetes, "sklearn"),
        ("torch", samples.digits_shufflenet, "torch"),
        ("transformers", samples.review_classifier, "transformers"),
    ],
)
def test_a_missing_framework_is_told_with_its_extra(missing, ask, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf'pip install "runinference\[{extra}\]"'):
        ask()
