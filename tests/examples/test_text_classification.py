"""Tests of examples/text_classification.py."""

import json
import re
from pathlib import Path

import pytest

from runinference import samples
from runinference.errors import ModelLoadError, ModelNotFoundError


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def test_classifies_reviews_by_default(run_example):
    printed = run_example("text_classification")
    lines = read_lines(re.search(r"Labels: (\S+\.jsonl)", printed)[1])
    texts, labels = samples.held_out_reviews()
    assert sorted(line["text"] for line in lines) == sorted(texts)
    expected = dict(zip(texts, labels, strict=True))
    correct = sum(line["label"] == expected[line["text"]] for line in lines)
    assert correct / len(lines) >= 0.97
    assert all(0.5 <= line["probability"] <= 1 for line in lines)


def test_classifies_the_lines_of_a_file(load_example, tmp_path):
    (tmp_path / "reviews.txt").write_text("I loved the café!\n\n  a dull film\n" + "good " * 300)
    load_example("text_classification").run(
        [
            *("--input", str(tmp_path / "reviews.txt")),
            *("--output", str(tmp_path / "labels")),
            *("--device", "cpu"),
            "--job_name=passed-through-to-beam",
        ]
    )
    found = {line["text"]: line["label"] for line in read_lines(tmp_path / "labels.jsonl")}
    assert found.pop("I loved the café!") == "POSITIVE"
    assert found.pop("a dull film") == "NEGATIVE"
    assert len(found) == 1, "a text that exceeds the maximum length is truncated"


def test_missing_model_and_model_for_another_task_raise_an_error(load_example, tmp_path):
    run = load_example("text_classification").run
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        run(["--model", str(tmp_path / "nowhere")])
    with pytest.raises(ModelLoadError, match="random"):
        run(["--model", samples.blank_filler()])
