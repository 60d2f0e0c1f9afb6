"""Tests of examples/custom_handler.py."""

import json
import re
from pathlib import Path

import pytest

from runinference.testing import check_handler


def test_finds_names_in_the_default_sentences(run_example):
    printed = run_example("custom_handler")
    assert "3 names in 3 texts" in printed
    lines = Path(re.search(r"Names: (\S+\.jsonl)", printed)[1]).read_text().splitlines()
    found = {line["text"].split()[0]: line["names"] for line in map(json.loads, lines)}
    assert found == {
        "Apache": [["Apache Beam", "PRODUCT"], ["2016", "YEAR"]],
        "She": [["new york", "PLACE"]],
        "Nothing": [],
    }


def test_accepts_texts_rules_and_an_output_path(load_example, tmp_path):
    (tmp_path / "texts.txt").write_text("A cat and a dog.\nA cow.\n")
    (tmp_path / "rules.jsonl").write_text('{"label": "PET", "pattern": "cat"}\n')
    load_example("custom_handler").run(
        [
            *("--input", str(tmp_path / "texts.txt")),
            *("--rules", str(tmp_path / "rules.jsonl")),
            *("--output", str(tmp_path / "out.jsonl")),
            "--job_name=passed-through-to-beam",
        ]
    )
    lines = sorted((tmp_path / "out.jsonl").read_text().splitlines())
    assert [json.loads(line)["names"] for line in lines] == [[["cat", "PET"]], []]


def test_handler_passes_the_conformance_checks(load_example, tmp_path):
    (tmp_path / "cats").write_text('{"label": "PET", "pattern": "cat"}\n')
    (tmp_path / "dogs").write_text('{"label": "PET", "pattern": "dog"}\n')
    report = check_handler(
        load_example("custom_handler").NamesHandler(str(tmp_path / "cats")),
        ["A cat.", "A dog.", "A cat and a dog.", "A cow."],
        bad_example=3,
        updated_path=str(tmp_path / "dogs"),
    )
    assert report.skipped == {}


def test_missing_rules_file_is_named_in_the_error(load_example, tmp_path):
    with pytest.raises(RuntimeError, match=r"FileNotFoundError: .*nowhere\.jsonl"):
        load_example("custom_handler").run(["--rules", str(tmp_path / "nowhere.jsonl")])
