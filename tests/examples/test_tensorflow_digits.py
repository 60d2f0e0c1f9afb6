"""Tests of examples/tensorflow_digits.py."""

import importlib
import re

import numpy as np
import pytest

from runinference import samples
from runinference.errors import ModelNotFoundError

pytestmark = pytest.mark.xdist_group("tensorflow")


def test_classifies_the_held_out_digits_by_default(run_example):
    printed = run_example("tensorflow_digits")
    truth, predicted = np.loadtxt(
        re.search(r"Predictions: (\S+\.csv)", printed)[1], delimiter=",", dtype=int
    ).T
    _, labels = samples.held_out_digits()
    assert sorted(truth) == sorted(labels)
    assert np.mean(truth == predicted) > 0.9
    assert f"Accuracy: {np.mean(truth == predicted):.1%} of 797 digits" in printed


def test_accepts_images_an_output_path_and_a_saved_model(load_example, tmp_path, capsys):
    keras = importlib.import_module("keras")
    layers = [keras.Input((64,)), keras.layers.Dense(10, use_bias=False)]
    brightest = keras.Sequential(layers)  # predicts the brightest of the first ten pixels
    brightest.set_weights([np.eye(64, 10)])
    brightest.export(tmp_path / "model", verbose=False)
    np.savetxt(tmp_path / "in.csv", [[7, *np.eye(64)[3] * 16]], fmt="%d", delimiter=",")
    load_example("tensorflow_digits").run(
        [
            *("--input", str(tmp_path / "in.csv")),
            *("--output", str(tmp_path / "out.csv")),
            *("--model_path", str(tmp_path / "model")),
            "--job_name=passed-through-to-beam",
        ]
    )
    assert (tmp_path / "out.csv").read_text() == "7,3\n"
    assert "Accuracy: 0.0% of 1 digits" in capsys.readouterr().out


def test_missing_model_is_named_in_the_error(load_example, tmp_path):
    missing = str(tmp_path / "nowhere.keras")
    with pytest.raises(ModelNotFoundError, match=r"nowhere\.keras"):
        load_example("tensorflow_digits").run(["--model_path", missing])
