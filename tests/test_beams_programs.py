"""Beam's example programs produce the same output when their imports are replaced by this package."""

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

BEAM, OURS = "apache_beam.ml.inference", "runinference"


def load_example(
    name: str, prefix: str, replacement: tuple[str, str] = ("", "")
) -> types.ModuleType:
    """Load one of Beam's examples as a module that imports from the package `prefix`."""
    spec = importlib.util.find_spec(f"apache_beam.examples.inference.{name}")
    assert spec
    assert spec.origin
    source = Path(spec.origin).read_text("utf-8").replace(BEAM, prefix)
    if replacement[0]:
        assert replacement[0] in source
        source = source.replace(*replacement)
    module = types.ModuleType(f"{name}_of_{prefix.replace('.', '_')}")
    module.__file__ = spec.origin
    sys.modules[module.__name__] = module
    exec(compile(source, spec.origin, "exec"), vars(module))
    return module


def run_example(name: str, prefix: str, folder: Path, *arguments: str, **run: Any) -> list[str]:
    """Run an example and return the lines of its output, sorted."""
    output = folder / f"{name}-{prefix}"
    module = load_example(name, prefix)
    argv = [*arguments, f"--output={output}", f"--runner={RUNNER}"]
    module.run(argv, save_main_session=False, **run)
    return sorted(output.read_text().splitlines())


def assert_same_output(name: str, folder: Path, *arguments: str, **run: Any) -> list[str]:
    ours, beams = (run_example(name, prefix, folder, *arguments, **run) for prefix in (OURS, BEAM))
    assert ours == beams
    return ours


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
    lines = assert_same_output(
        "sklearn_mnist_classification", tmp_path, f"--input={digits_csv}", f"--model_path={model}"
    )
    assert len(lines) == 60


def test_table_row_inference(tmp_path):
    rows, labels = load_iris(return_X_y=True)
    model = tmp_path / "model.pickle"
    model.write_bytes(pickle.dumps(LogisticRegression(max_iter=300).fit(rows, labels)))
    lines = [{"id": str(n), **dict(zip("abcd", row, strict=True))} for n, row in enumerate(rows)]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    outputs = []
    for prefix in (OURS, BEAM):
        output = tmp_path / prefix
        load_example("table_row_inference", prefix).run(
            [
                f"--input_file={data}",
                f"--output_file={output}",
                f"--model_path={model}",
                "--feature_columns=a,b,c,d",
                f"--runner={RUNNER}",
            ],
            save_main_session=False,
        )
        outputs.append(sorted(Path(f"{output}.jsonl").read_text().splitlines()))
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 150


@pytest.mark.parametrize("kind", ["numpy", "pandas", "scipy"])
@pytest.mark.parametrize("split", ["--split", "--no_split"])
def test_xgboost_iris_classification(tmp_path, monkeypatch, kind, split):
    """Beam's example imports `datatable`, which is unmaintained and not needed for these input types."""
    monkeypatch.setitem(sys.modules, "datatable", types.SimpleNamespace(Frame=None))
    rows, labels = load_iris(return_X_y=True)
    model = tmp_path / "model.json"
    xgboost.XGBClassifier(n_estimators=5, max_depth=2).fit(rows, labels).save_model(model)
    lines = assert_same_output(
        "xgboost_iris_classification",
        tmp_path,
        f"--input_type={kind}",
        split,
        f"--model_state={model}",
    )
    assert lines


def test_pytorch_image_classification(tmp_path):
    torch.manual_seed(0)
    model = SmallModel(n_classes=3)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    rng = np.random.default_rng(0)
    for n in range(12):
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), np.uint8)).save(tmp_path / f"{n}.png")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"{n}.png" for n in range(12)))
    lines = assert_same_output(
        "pytorch_image_classification",
        tmp_path,
        f"--input={names}",
        f"--images_dir={tmp_path}",
        f"--model_state_dict_path={tmp_path / 'model.pt'}",
        model_class=SmallModel,
        model_params={"n_classes": 3},
    )
    assert len(lines) == 12


class SmallModel(torch.nn.Module):
    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 5, stride=4), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()
        )
        self.head = torch.nn.Linear(16, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(images))


def test_milk_quality_prediction_windowing(tmp_path, capsys, monkeypatch):
    # Beam's example imports datatable, which has no build for current Python versions.
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
    for prefix in (OURS, BEAM):
        name = "milk_quality_prediction_windowing"
        runner = ("beam.Pipeline()", "beam.Pipeline('BundleBasedDirectRunner')")
        load_example(name, prefix, runner).run(argv, save_main_session=False)
        printed.append(sorted(capsys.readouterr().out.splitlines()))
    assert printed[0] == printed[1]
    assert len(printed[0]) > 10


@pytest.mark.xdist_group("tensorflow")
def test_tensorflow_mnist_classification(tmp_path, monkeypatch):
    """Beam's handler resolves model paths with TensorFlow Hub, which returns file paths unchanged."""
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
    lines = assert_same_output(
        "tensorflow_mnist_classification",
        tmp_path,
        f"--input={tmp_path / 'input.csv'}",
        f"--model_path={tmp_path / 'model.keras'}",
    )
    assert len(lines) == 40
