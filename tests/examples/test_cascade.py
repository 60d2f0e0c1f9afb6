"""Tests of examples/cascade.py."""

import json
import pickle
import re
from pathlib import Path

import joblib
import numpy as np
import pytest

from runinference import samples
from runinference.errors import ModelNotFoundError, OptionError


def read_answers(path):
    return {line["image"]: line for line in map(json.loads, Path(path).read_text().splitlines())}


def test_sends_images_below_the_learned_threshold_to_the_second_model(run_example):
    printed = run_example("cascade")
    threshold = float(re.search(r"above a confidence of (\S+)\.", printed)[1])
    answers = read_answers(re.search(r"Answers: (\S+\.jsonl)", printed)[1])
    images, labels = samples.held_out_digits()
    images, labels = images[400:], labels[400:]
    assert sorted(answers) == list(range(len(images)))

    cheap = pickle.loads(Path(samples.digits_classifier()).read_bytes()).predict_proba(images)
    expensive = joblib.load(samples.digits_forest()).predict_proba(images)
    for number, answer in answers.items():
        accepted = cheap[number].max() > threshold  # which is printed with four digits
        assert answer["model"] == ("cheap" if accepted else "expensive")
        probabilities = (cheap if accepted else expensive)[number]
        assert answer["digit"] == probabilities.argmax()
        assert answer["probability"] == pytest.approx(probabilities.max(), abs=1e-3)

    accepted = [number for number in answers if answers[number]["model"] == "cheap"]
    assert len(accepted) > 300
    assert np.mean(cheap[accepted].argmax(1) == expensive[accepted].argmax(1)) > 0.95
    accuracy = np.mean([answers[number]["digit"] == label for number, label in enumerate(labels)])
    assert accuracy > np.mean(cheap.argmax(1) == labels)


@pytest.mark.parametrize(("agreement", "model"), [("0.5", "cheap"), ("0.99", "expensive")])
def test_the_requested_agreement_decides_which_model_answers(
    load_example, tmp_path, agreement, model
):
    images, _ = samples.held_out_digits()
    np.savetxt(tmp_path / "images.csv", images[:5], delimiter=",")
    np.savetxt(tmp_path / "sample.csv", images[5:405], delimiter=",")
    load_example("cascade").run(
        [
            *("--input", str(tmp_path / "images.csv")),
            *("--sample", str(tmp_path / "sample.csv")),
            *("--output", str(tmp_path / "digits")),
            *("--cheap_model", samples.digits_classifier()),
            *("--expensive_model", samples.digits_forest()),
            *("--agreement", agreement),
            "--job_name=passed-through-to-beam",
        ]
    )
    answers = read_answers(tmp_path / "digits.jsonl")
    assert [answer["model"] for answer in answers.values()] == [model] * 5


def test_a_sample_that_is_too_small_raises_an_error(load_example, tmp_path):
    np.savetxt(tmp_path / "sample.csv", samples.held_out_digits()[0][:20], delimiter=",")
    with pytest.raises(OptionError, match="The sample has 20 elements"):
        load_example("cascade").run(["--sample", str(tmp_path / "sample.csv")])


def test_missing_model_is_named_in_the_error(load_example, tmp_path):
    missing = str(tmp_path / "nowhere.pickle")
    with pytest.raises(ModelNotFoundError, match=r"nowhere\.pickle"):
        load_example("cascade").run(["--cheap_model", missing])
