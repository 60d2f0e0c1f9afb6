"""examples/cascade.py: a thorough model for what a quick one is unsure of."""

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


def test_by_default_the_forest_is_asked_about_what_the_regression_is_unsure_of(run_program):
    answers = read_answers(re.search(r"Answers: (\S+\.jsonl)", run_program("cascade"))[1])
    images, labels = samples.held_out_digits()
    assert sorted(answers) == list(range(len(images)))

    quick = pickle.loads(Path(samples.digits_classifier()).read_bytes()).predict_proba(images)
    thorough = joblib.load(samples.digits_forest()).predict_proba(images)
    for number, answer in answers.items():
        by_quick = quick[number].max() >= 0.9
        assert answer["model"] == ("quick" if by_quick else "thorough")
        probabilities = (quick if by_quick else thorough)[number]
        assert answer["digit"] == probabilities.argmax()
        assert answer["probability"] == pytest.approx(probabilities.max(), abs=1e-3)

    asked_again = [number for number in answers if answers[number]["model"] == "thorough"]
    assert 0 < len(asked_again) < 200
    right = np.mean([answers[number]["digit"] == label for number, label in enumerate(labels)])
    assert right > np.mean(quick.argmax(1) == labels)


@pytest.mark.parametrize(("sure", "model"), [("0", "quick"), ("1.1", "thorough")])
def test_the_line_between_the_models_can_be_drawn(load_example, tmp_path, sure, model):
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


def test_a_missing_model_is_named(load_example, tmp_path):
    missing = str(tmp_path / "nowhere.pickle")
    with pytest.raises(ModelNotFoundError, match=r"nowhere\.pickle"):
        load_example("cascade").run(["--quick_model", missing])
