"""Sample models are trained once and kept in the user's cache directory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sklearn

from runinference import samples
from runinference.samples.cache import cache_directory, get_or_train


def test_the_file_name_contains_the_digest_and_the_framework_version(tmp_path, monkeypatch):
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
def test_uses_the_cache_directory_of_each_platform(
    platform, variables, folder, tmp_path, monkeypatch
):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_directory() == tmp_path / folder / "runinference"


def test_trains_a_model_only_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = Path(samples.diabetes_regressor())
    written = path.stat().st_mtime_ns
    assert samples.diabetes_regressor() == str(path)
    assert path.stat().st_mtime_ns == written


def test_concurrent_processes_train_a_model_once(tmp_path):
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
    remaining = {file.name for file in (tmp_path / "runinference").iterdir()}
    name = Path(path.decode().strip())
    assert remaining == {name.name, name.with_suffix(".lock").name}


def test_a_failed_training_leaves_no_model(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def train(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get_or_train("broken", ".pickle", "sklearn", train, [__file__])
    assert not list((tmp_path / "runinference").glob("*.pickle"))


@pytest.mark.parametrize(
    ("missing", "get_sample", "extra"),
    [
        ("sklearn", samples.digits_classifier, "sklearn"),
        ("sklearn.datasets", samples.held_out_digits, "sklearn"),
        ("pandas", samples.held_out_diabetes, "sklearn"),
        ("torch", samples.digits_shufflenet, "torch"),
        ("transformers", samples.review_classifier, "transformers"),
    ],
)
def test_names_the_extra_of_a_missing_framework(missing, get_sample, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf'pip install "runinference\[{extra}\]"'):
        get_sample()
