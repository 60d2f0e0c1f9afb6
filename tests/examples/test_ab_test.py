"""Tests of examples/ab_test.py."""

import pickle
import re
from pathlib import Path

import joblib
import numpy as np
import pytest

from runinference import samples
from runinference.errors import ModelNotFoundError


def read_answers(path):
    """Return the columns of the output, sorted by image and noise level."""
    lines = np.loadtxt(path, delimiter=",", dtype=int)
    return lines[np.lexsort(lines.T[::-1])].T


@pytest.fixture(scope="module")
def printed(run_example):
    """The output of the example without arguments."""
    return run_example("ab_test")


def test_classifies_every_image_at_every_noise_level_with_both_models(printed):
    number, level, a, b = read_answers(re.search(r"\S+answers\.csv", printed)[0])
    images, labels = samples.held_out_digits()
    assert len(number) == len(images) * 10
    assert list(zip(number, level, strict=True)) == [(n, s) for n in range(797) for s in range(10)]

    clean = level == 0
    classifier = pickle.loads(Path(samples.digits_classifier()).read_bytes())
    forest = joblib.load(samples.digits_forest())
    np.testing.assert_array_equal(a[clean], classifier.predict(images))
    np.testing.assert_array_equal(b[clean], forest.predict(images))

    accuracy_a, accuracy_b = np.mean(a[clean] == labels), np.mean(b[clean] == labels)
    assert accuracy_a >= 0.92
    assert accuracy_b >= 0.94
    noisiest = level == 9
    assert 0.3 < np.mean(a[noisiest] == labels) < accuracy_a
    assert 0.3 < np.mean(b[noisiest] == labels) < accuracy_b


def test_prints_the_table_the_throughput_and_three_digits(printed):
    number, level, a, b = read_answers(re.search(r"\S+answers\.csv", printed)[0])
    _, labels = samples.held_out_digits()
    for noise in range(10):
        at = level == noise
        shares = (
            np.mean(x[at] == y[at]) for x, y in ((a, labels[number]), (b, labels[number]), (a, b))
        )
        row = r"\s*│\s*".join([f"{noise} of 16", *(f"{share:.1%}" for share in shares)])
        assert re.search(row, printed)
    assert re.search(r"15,940 predictions in \d+\.\d s: [\d,]+ per second", printed)

    drawn = re.findall(r"─ a (\d) ─", printed)
    predicted = re.findall(r"─ A: (\d)  B: (\d) ─", printed)
    assert len(drawn) == 3
    kinds = {
        (truth == by_a, truth == by_b) for truth, (by_a, by_b) in zip(drawn, predicted, strict=True)
    }
    assert kinds == {(False, True), (True, False), (False, False)}
    assert re.search(r"[░▒▓█]{4}", printed)
    assert "\x1b" not in printed, "control sequences are for terminals only"


def test_accepts_images_an_output_path_and_models(load_example, tmp_path, capsys):
    images, labels = samples.held_out_digits()
    np.savetxt(tmp_path / "images.txt", np.column_stack([labels, images])[:20], delimiter=",")
    always_seven = joblib.load(samples.digits_forest()).fit(images[:5], [7] * 5)
    joblib.dump(always_seven, tmp_path / "seven.joblib")
    load_example("ab_test").run(
        [
            *("--input", str(tmp_path / "images.txt")),
            *("--output", str(tmp_path / "out.csv")),
            *("--model_a", samples.digits_classifier()),
            *("--model_b", str(tmp_path / "seven.joblib")),
            "--job_name=passed-through-to-beam",
        ]
    )
    number, _, _, b = read_answers(tmp_path / "out.csv")
    assert len(number) == 200
    assert set(b) == {7}
    assert "400 predictions" in capsys.readouterr().out


def test_missing_model_is_named_in_the_error(load_example, tmp_path):
    missing = str(tmp_path / "nowhere.pickle")
    with pytest.raises(ModelNotFoundError, match=r"nowhere\.pickle"):
        load_example("ab_test").run(["--model_a", missing, "--output", str(tmp_path / "out")])
