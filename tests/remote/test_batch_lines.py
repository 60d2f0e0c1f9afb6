"""Result files of the batch API, whose lines may be missing, repeated, mixed up or invalid."""

from __future__ import annotations

import json

import pytest

from runinference.remote.batch_lines import get_request_id, read_outcomes, split_lines


def line(request_id, response=None, error=None):
    return json.dumps({"custom_id": request_id, "response": response, "error": error}).encode()


def answer(text):
    return {"status_code": 200, "body": {"text": text}}


REJECTED = {"status_code": 400, "body": {"error": {"message": "no"}}}


def test_the_first_response_counts_more_than_others_and_than_errors():
    good, other, bad = line("a", answer(1)), line("a", answer(2)), line("a", REJECTED)
    for lines in ([good, other], [bad, good, other], [good, bad], [bad, bad, good]):
        found = read_outcomes([b"\n".join(lines)], ["a"])
        assert found["a"].response == {"text": 1}
    assert read_outcomes([bad, good], ["a"])["a"].response == {"text": 1}  # in two files
    found = read_outcomes([b"\n".join([bad, line("a", error={"code": "x"})])], ["a"])
    assert (found["a"].status, found["a"].error) == (400, {"error": {"message": "no"}})


@pytest.mark.parametrize(
    "invalid",
    [
        b"",
        b"  ",
        b"{",
        b"[]",
        b"\xff",
        b'{"custom_id": 5}',
        line("a"),
        line("a", "text"),
        line("a", {"status_code": 200, "body": None}),
        line("a", {"status_code": 700, "body": {}}),
        line("unknown", answer(1)),
        b'{"custom_id": "a", "custom_id": "b", "response": {}}',
        b"[" * 100_000,
    ],
    ids=lambda value: value[:40],
)
def test_invalid_lines_do_not_affect_others(invalid):
    content = b"\n".join([invalid, line("b", answer(1)), invalid])
    assert read_outcomes([content], ["a", "b"]).keys() == {"b"}


def test_requests_are_unfinished_if_the_batch_ended_before_they_were_processed():
    for code, is_unfinished in [("batch_expired", True), ("batch_cancelled", True), ("x", False)]:
        outcome = read_outcomes([line("a", error={"code": code})], ["a"])["a"]
        assert outcome.is_unfinished == is_unfinished


def test_an_id_depends_on_the_content_but_not_on_the_order_of_fields():
    first = get_request_id("job", {"model": "m", "n": [1, {"a": 2, "b": 3}]})
    assert first == get_request_id("job", {"n": [1, {"b": 3, "a": 2}], "model": "m"})
    others = [{"model": "m", "n": [1, {"a": 2, "b": 4}]}, {"model": "m"}]
    assert len({first, get_request_id("other", {"model": "m"}), *map(get_request_id, others)}) == 4


def test_files_have_at_most_the_limits_of_lines_and_bytes():
    lines = {str(n): b"x" * n for n in range(1, 8)}
    parts = list(split_lines(lines, max_requests=3, max_bytes=8))
    assert {key: value for part in parts for key, value in part.items()} == lines
    assert all(len(part) <= 3 and sum(map(len, part.values())) <= 8 for part in parts)
    assert len(parts) == 5
