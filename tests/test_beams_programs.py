"""Beam's own example programs, with their prefix replaced, write what they write with Beam's package."""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xgboost
from PIL import Image
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import LogisticRegression

from common import RUNNER

BEAM, HERE = "apache_beam.ml.inference", "runinference"


def program(name: str, prefix: str, replaced: tuple[str, str] = ("", "")) -> types.ModuleType:
    """One of the programs that Beam's package brings, as a module that imports from a prefix."""
    spec = importlib.util.find_spec(f"apache_beam.examples.inference.{name}")
    assert spec
    assert spec.origin
    source = Path(spec.origin).read_text("utf-8").replace(BEAM, prefix)
    if replaced[0]:
        assert replaced[0] in source
        source = source.replace(*replaced)
    module = types.ModuleType(f"{name}_of_{prefix.replace('.', '_')}")
    module.__file__ = spec.origin
    sys.modules[module.__name__] = module
    exec(compile(source, spec.origin, "exec"), vars(module))
    return module


def written(name: str, prefix: str, folder: Path, *arguments: str, **run: Any) -> list[str]:
    """The lines that a program writes."""
    output = folder / f"{name}-{prefix}"
    module = program(name, prefix)
    argv = [*arguments, f"--output={output}", f"--runner={RUNNER}"]
    module.run(argv, save_main_session=False, **run)
    return sorted(output.read_text().splitlines())


def same_lines(name: str, folder: Path, *arguments: str, **run: Any) -> list[str]:
    here, there = (written(name, prefix, folder, *arguments, **run) for prefix in (HERE, BEAM))
    assert here == there
    return here


@pytest.fixture
def digits_csv(tmp_path: Path) -> Path:
    images, labels = load_digits(return_X_y=True)
    lines = [
        ",".join(map(str, [label, *image.astype(int)]))
        for image, label in zip(images[:60], labels[:60], strict=True)
    ]
    path = tmp_path / "digits.csv"
    path.write_text("\n".join(lines))
    return path


def test_sklearn_mnist_classification(tmp_path, digits_csv):
    images, labels = load_digits(return_X_y=True)
    model = tmp_path / "model.pickle"
    model.write_bytes(pickle.dumps(LogisticRegression(max_iter=300).fit(images / 16, labels)))
    lines = same_lines(
        "sklearn_mnist_classification", tmp_path, f"--input={digits_csv}", f"--model_path={model}"
    )
    assert len(lines) == 60


def test_table_row_inference_whose_handler_is_a_subclass(tmp_path):
    rows, kinds = load_iris(return_X_y=True)
    model = tmp_path / "model.pickle"
    model.write_bytes(pickle.dumps(LogisticRegression(max_iter=300).fit(rows, kinds)))
    lines = [{"id": str(n), **dict(zip("abcd", row, strict=True))} for n, row in enumerate(rows)]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    answers = []
    for prefix in (HERE, BEAM):
        output = tmp_path / prefix
        program("table_row_inference", prefix).run(
            [
                f"--input_file={data}",
                f"--output_file={output}",
                f"--model_path={model}",
                "--feature_columns=a,b,c,d",
                f"--runner={RUNNER}",
            ],
            save_main_session=False,
        )
        answers.append(sorted(Path(f"{output}.jsonl").read_text().splitlines()))
    assert answers[0] == answers[1]
    assert len(answers[0]) == 150


@pytest.mark.parametrize("kind", ["numpy", "pandas", "scipy"])
@pytest.mark.parametrize("split", ["--split", "--no_split"])
def test_xgboost_iris_classification(tmp_path, monkeypatch, kind, split):
    """Beam's program imports a package that is kept no longer; neither prefix needs it for these kinds."""
    monkeypatch.setitem(sys.modules, "datatable", types.SimpleNamespace(Frame=None))
    rows, kinds = load_iris(return_X_y=True)
    model = tmp_path / "model.json"
    xgboost.XGBClassifier(n_estimators=5, max_depth=2).fit(rows, kinds).save_model(model)
    lines = same_lines(
        "xgboost_iris_classification",
        tmp_path,
        f"--input_type={kind}",
        split,
        f"--model_state={model}",
    )
    assert lines


def test_pytorch_image_classification(tmp_path):
    torch.manual_seed(0)
    model = Small(n_classes=3)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    rng = np.random.default_rng(0)
    for n in range(12):
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), np.uint8)).save(tmp_path / f"{n}.png")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"{n}.png" for n in range(12)))
    lines = same_lines(
        "pytorch_image_classification",
        tmp_path,
        f"--input={names}",
        f"--images_dir={tmp_path}",
        f"--model_state_dict_path={tmp_path / 'model.pt'}",
        model_class=Small,
        model_params={"n_classes": 3},
    )
    assert len(lines) == 12


class Small(torch.nn.Module):
    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 5, stride=4), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()
        )
        self.head = torch.nn.Linear(16, n_classes)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(pictures))


def test_milk_quality_prediction_windowing_in_sliding_windows_of_a_stream(
    tmp_path, capsys, monkeypatch
):
    # Beam's module imports it, and it is built for no Python of today.
    monkeypatch.setitem(sys.modules, "datatable", types.SimpleNamespace(Frame=None))
    rng = np.random.default_rng(0)
    milk = pd.DataFrame({"pH": rng.normal(6.6, 0.5, 40), "Temprature": rng.integers(35, 60, 40)})
    milk.to_csv(tmp_path / "input.csv", index=False)
    model = xgboost.XGBClassifier(n_estimators=3, max_depth=2)
    model.fit(milk, np.arange(40) % 3)
    model.save_model(tmp_path / "model.json")
    paths = {"dataset": "-", "training_set": "-", "labels": "-"}
    paths |= {"pipeline_input_data": tmp_path / "input.csv", "model_state": tmp_path / "model.json"}
    argv = [f"--{name}={path}" for name, path in paths.items()]
    printed = []
    for prefix in (HERE, BEAM):
        name = "milk_quality_prediction_windowing"
        on = ("beam.Pipeline()", "beam.Pipeline('BundleBasedDirectRunner')")
        program(name, prefix, on).run(argv, save_main_session=False)
        printed.append(sorted(capsys.readouterr().out.splitlines()))
    assert printed[0] == printed[1]
    assert len(printed[0]) > 10


@pytest.mark.xdist_group("tensorflow")
def test_tensorflow_mnist_classification(tmp_path, monkeypatch):
    """Beam's module asks TensorFlow Hub where a model is, which leaves the paths of files as they are."""
    import tensorflow as tf

    monkeypatch.setitem(sys.modules, "tensorflow_hub", types.SimpleNamespace(resolve=str))
    images, labels = load_digits(return_X_y=True)
    wide = np.pad(images.reshape(-1, 8, 8), ((0, 0), (10, 10), (10, 10)))[:40].astype(int)
    lines = [",".join(map(str, [y, *x.ravel()])) for x, y in zip(wide, labels[:40], strict=True)]
    (tmp_path / "input.csv").write_text("\n".join(lines))
    model = tf.keras.Sequential(
        [tf.keras.Input((28, 28, 1)), tf.keras.layers.Flatten(), tf.keras.layers.Dense(10)]
    )
    model.save(tmp_path / "model.keras")
    lines = same_lines(
        "tensorflow_mnist_classification",
        tmp_path,
        f"--input={tmp_path / 'input.csv'}",
        f"--model_path={tmp_path / 'model.keras'}",
    )
    assert len(lines) == 40
