"""A contender of a benchmark that fails or hangs doesn't stop the benchmarks."""

import os
import threading

import pytest

from benchmarks.harness import Case, Outcome
from benchmarks.isolation import Settings, WorkloadError, measure_cases, preload

preload(["apache_beam"])


def make_cases_with_bad_contenders():
    def run():
        return Outcome(1)

    def fail():
        raise ValueError("no model")

    def exit_process():
        os._exit(1)

    def check(name, outcome):
        if outcome.n != 1:
            raise AssertionError(f"{outcome.n} of 1 results came out")

    runs = {"limit": run, "ours": run}
    for bad in (threading.Event().wait, fail, exit_process, Outcome):
        yield Case("W", bad.__name__, 1, {**runs, "Beam": bad}, check, {})
    yield Case("W", "good", 1, runs, check, {})


def test_bad_contender_is_reported_and_the_others_are_measured():
    settings = Settings(rounds=1, run_secs=5)
    measured = [*measure_cases(make_cases_with_bad_contenders, settings)]
    assert {case["variant"]: case["not_measured"] for case in measured} == {
        "wait": {"Beam": "took more than 5 s"},
        "fail": {"Beam": "raised ValueError: no model"},
        "exit_process": {"Beam": "its process ended"},
        "Outcome": {"Beam": "raised AssertionError: 0 of 1 results came out"},
        "good": {},
    }
    assert all(len(case["seconds"]["ours"]) == 1 for case in measured)
    assert not any("Beam" in case["seconds"] for case in measured)


def fail_to_make_cases():
    raise OSError("no space left")


def test_workload_whose_cases_cannot_be_created_raises_an_error():
    with pytest.raises(WorkloadError, match="raised OSError: no space left"):
        next(measure_cases(fail_to_make_cases, Settings(rounds=1)))
