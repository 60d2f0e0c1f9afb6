"""Tests of examples/llm_endpoint.py."""

import json
import re
from pathlib import Path

import pytest

from runinference.samples import servers

KEY = "sk-secret-of-the-example"


def read_lines(path):
    lines = Path(path).read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda line: line["line"])


def test_sends_three_reviews_to_the_test_server_by_default(run_example):
    printed = run_example("llm_endpoint")
    written = read_lines(re.search(r"Answers: (\S+\.jsonl)", printed)[1])
    assert written[0] == {
        "line": 1,
        "text": "The soup was cold.",
        "answer": "THE SOUP WAS COLD.",
        "finish": "stop",
    }
    assert [line["line"] for line in written] == [1, 2, 3]
    tokens = dict(re.findall(r"(\w+_tokens): (\d+)", printed))
    assert int(tokens["total_tokens"]) == int(tokens["prompt_tokens"]) + int(
        tokens["completion_tokens"]
    )


def test_accepts_a_file_a_server_and_a_key_and_reports_failed_lines(
    load_example, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("SOME_KEY", KEY)
    (tmp_path / "in.txt").write_text("good\n\n" + "word " * 200 + "\nlast")
    with servers.llm(key=KEY, troubles=[503]) as base_url:
        load_example("llm_endpoint").run(
            [
                *("--input", str(tmp_path / "in.txt")),
                *("--output", str(tmp_path / "out.jsonl")),
                *("--base_url", base_url),
                *("--model", "shout"),
                *("--api_key_env", "SOME_KEY"),
                "--job_name=passed-through-to-beam",
            ]
        )
    first, long, last = read_lines(tmp_path / "out.jsonl")
    assert (first["line"], first["answer"]) == (1, "GOOD")
    assert (last["line"], last["answer"]) == (4, "LAST")
    assert "returned 400: The context size is 100 words" in long["error"]
    assert KEY not in (tmp_path / "out.jsonl").read_text() + capsys.readouterr().out


def test_base_url_requires_a_model_name(load_example, capsys):
    with pytest.raises(SystemExit):
        load_example("llm_endpoint").run(["--base_url", "http://localhost:1/v1"])
    assert "--base_url needs --model" in capsys.readouterr().err


def test_missing_input_file_is_named_in_the_error(load_example, tmp_path):
    with pytest.raises(Exception, match=r"FileNotFoundError.*nowhere\.txt"):
        load_example("llm_endpoint").run(["--input", str(tmp_path / "nowhere.txt")])
