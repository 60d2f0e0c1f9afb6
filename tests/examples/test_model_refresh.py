"""Tests of examples/model_refresh.py."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from runinference import samples
from runinference.errors import ModelNotFoundError


def read_answers(pattern):
    pattern = Path(pattern)
    lines = [
        json.loads(line)
        for file in pattern.parent.glob(pattern.name)
        for line in file.read_text().splitlines()
    ]
    return sorted(lines, key=lambda line: line["image"])


def test_switches_to_the_better_model_while_streaming(run_example):
    printed = run_example("model_refresh")
    answers = read_answers(re.search(r"seconds: (\S+)", printed)[1])
    _, labels = samples.held_out_digits()
    assert [answer["image"] for answer in answers] == list(range(len(labels)))

    models = [answer["model"] for answer in answers]
    early, late = models.count("early.pickle"), models.count("late.pickle")
    assert models == ["early.pickle"] * early + ["late.pickle"] * late
    assert early >= 300
    assert late > 0

    correct = [answer["digit"] == label for answer, label in zip(answers, labels, strict=True)]
    assert np.mean(correct[:early]) < np.mean(correct[early:])


def test_accepts_images_and_a_model(load_example, tmp_path):
    images, _ = samples.held_out_digits()
    np.savetxt(tmp_path / "images.csv", images[:5], delimiter=",")
    load_example("model_refresh").run(
        [
            *("--input", str(tmp_path / "images.csv")),
            *("--output", str(tmp_path / "answers")),
            *("--model_path", samples.digits_classifier()),
            *("--watch", str(tmp_path / "*.pickle")),
            *("--rate", "50"),
            "--job_name=passed-through-to-beam",
        ]
    )
    answers = read_answers(tmp_path / "answers-*.jsonl")
    assert [answer["digit"] for answer in answers] == [1, 4, 0, 5, 3]
    assert {answer["model"] for answer in answers} == {Path(samples.digits_classifier()).name}


def test_missing_model_is_named_in_the_error(load_example, tmp_path):
    missing = str(tmp_path / "nowhere.pickle")
    with pytest.raises(ModelNotFoundError, match=r"nowhere\.pickle"):
        load_example("model_refresh").run(["--model_path", missing])
