"""Tests of examples/cascade.py."""

import json
import pickle
import re
from pathlib import Path

import joblib
import numpy as np
import pytest

from runinference import samples
from runinference.errors import ModelNotFoundError


def read_answers(path):
    return {line["image"]: line for line in map(json.loads, Path(path).read_text().splitlines())}


def test_sends_images_with_a_low_probability_to_the_second_model(run_example):
    answers = read_answers(re.search(r"Answers: (\S+\.jsonl)", run_example("cascade"))[1])
    images, labels = samples.held_out_digits()
    assert sorted(answers) == list(range(len(images)))

    quick = pickle.loads(Path(samples.digits_classifier()).read_bytes()).predict_proba(images)
    thorough = joblib.load(samples.digits_forest()).predict_proba(images)
    for number, answer in answers.items():
        accepted = quick[number].max() >= 0.9
        assert answer["model"] == ("quick" if accepted else "thorough")
        probabilities = (quick if accepted else thorough)[number]
        assert answer["digit"] == probabilities.argmax()
        assert answer["probability"] == pytest.approx(probabilities.max(), abs=1e-3)

    reclassified = [number for number in answers if answers[number]["model"] == "thorough"]
    assert 0 < len(reclassified) < 200
    accuracy = np.mean([answers[number]["digit"] == label for number, label in enumerate(labels)])
    assert accuracy > np.mean(quick.argmax(1) == labels)


@pytest.mark.parametrize(("sure", "model"), [("0", "quick"), ("1.1", "thorough")])
def test_threshold_decides_which_model_answers(load_example, tmp_path, sure, model):
    images, _ = samples.held_out_digits()
    np.savetxt(tmp_path / "images.csv", images[:5], delimiter=",")
    load_example("cascade").run(
        [
            *("--input", str(tmp_path / "images.csv")),
            *("--output", str(tmp_path / "digits")),
            *("--quick_model", samples.digits_classifier()),
            *("--thorough_model", samples.digits_forest()),
            *("--sure", sure),
            "--job_name=passed-through-to-beam",
        ]
    )
    answers = read_answers(tmp_path / "digits.jsonl")
    assert [answer["model"] for answer in answers.values()] == [model] * 5


def test_missing_model_is_named_in_the_error(load_example, tmp_path):
    missing = str(tmp_path / "nowhere.pickle")
    with pytest.raises(ModelNotFoundError, match=r"nowhere\.pickle"):
        load_example("cascade").run(["--quick_model", missing])
