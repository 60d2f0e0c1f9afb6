"""Tests of examples/language_modeling.py."""

import json
import re
from pathlib import Path

from runinference import samples


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def test_fills_masks_in_the_default_sentences(run_example):
    printed = run_example("language_modeling")
    lines = read_lines(re.search(r"Filled: (\S+\.jsonl)", printed)[1])
    expected = dict(zip(*samples.held_out_blanks(), strict=True))
    assert sorted(line["text"] for line in lines) == sorted(expected)
    best = {line["text"]: next(iter(line["blanks"][0])) for line in lines}
    assert sum(best[text] == word for text, word in expected.items()) / len(expected) >= 0.9
    assert all(len(line["blanks"][0]) == 3 for line in lines)


def test_fills_several_masks_and_writes_lines_without_a_mask_to_the_dead_letter_file(
    load_example, tmp_path
):
    (tmp_path / "in.txt").write_text(
        "after monday comes [MASK]\n\nno blank here\na [MASK] is a young [MASK]\n"
    )
    load_example("language_modeling").run(
        [
            *("--input", str(tmp_path / "in.txt")),
            *("--output", str(tmp_path / "out")),
            *("--top", "1"),
            "--job_name=passed-through-to-beam",
        ]
    )
    found = {line["text"]: line["blanks"] for line in read_lines(tmp_path / "out.jsonl")}
    assert {*found} == {"after monday comes [MASK]", "a [MASK] is a young [MASK]"}
    [[day]] = found["after monday comes [MASK]"]
    assert day == "tuesday"
    assert [len(blank) for blank in found["a [MASK] is a young [MASK]"]] == [1, 1]
    [failed] = read_lines(tmp_path / "out-failed.jsonl")
    assert failed["text"] == "no blank here"
    assert "mask" in failed["error"].lower()
