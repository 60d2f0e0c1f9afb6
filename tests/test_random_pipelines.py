"""Random pipelines produce the same elements, keys, windows and timestamps as a plain loop.

`make fuzz` runs 10,000 pipelines (`HYPOTHESIS_PROFILE=thorough`). By default, fewer are run.
"""

from __future__ import annotations

import logging
import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings

from pipelines import by_hand, in_beam
from pipelines.case import Case, Outcome, cases, expected
from pipelines.rows import Row, Rowwise, _Met
from runinference.handlers import error_policy

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def max_examples(default: int, thorough: int) -> settings:
    return settings(
        max_examples=thorough if THOROUGH else default,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        print_blob=True,
    )


@pytest.fixture(autouse=True, scope="module")
def _no_pause_and_no_logs():
    """Retry transient errors without a pause, and don't log failures."""
    pause, error_policy.FIRST_PAUSE_SECS = error_policy.FIRST_PAUSE_SECS, 0
    logging.disable(logging.CRITICAL)
    yield
    error_policy.FIRST_PAUSE_SECS = pause
    logging.disable(logging.NOTSET)


def check(case: Case, run) -> None:
    """Run a case and compare its outcome with the expected one."""
    _Met.forget()
    wanted = expected(case)
    if not case.aside and must_raise(case, wanted):
        with pytest.raises(Exception):  # noqa: B017, PT011 - the type depends on the first failing row
            run(case)
        return
    found = run(case)
    assert found.good == wanted.good
    assert _any_kind(found.bad, wanted.bad) == wanted.bad


def must_raise(case: Case, wanted: Outcome) -> bool:
    """Return whether a row fails, permanently or transiently (without a dead-letter queue, nothing is retried)."""
    rows = [row for timed in case.all for row in _rows(timed.value)]
    return bool(wanted.bad) or any(row.kind == "passing" for row in rows)


def _rows(value) -> list[Row]:
    if isinstance(value, Row):
        return [value]
    inside = value if isinstance(value, (list, tuple)) else ()
    return [row for item in inside for row in _rows(item)]


def _any_kind(found: Counter, wanted: Counter) -> Counter:
    """Replace the error type by "*" for failures where any type is acceptable."""
    any_kind = {failure[0] for (failure, *_) in wanted if failure[1] == "*"}
    counted: Counter = Counter()
    for (failure, at, ends), n in found.items():
        counted[(failure[0], "*") if failure[0] in any_kind else failure, at, ends] += n
    return counted


@max_examples(default=150, thorough=6_000)
@given(cases())
def test_bundles_in_threads(case):
    check(case, by_hand.run)


@max_examples(default=60, thorough=2_000)
@given(cases(waiting=True))
def test_batching_across_bundles(case):
    check(case, by_hand.run)


@max_examples(default=60, thorough=1_200)
@given(cases(refreshed=True))
def test_model_updates(case):
    check(case, by_hand.run)


@max_examples(default=6, thorough=120)
@given(cases())
def test_bundles_in_a_pipeline(case):
    check(case, in_beam.run)


@max_examples(default=3, thorough=60)
@given(cases(waiting=True))
def test_batching_across_bundles_in_a_pipeline(case):
    check(case, in_beam.run)


@max_examples(default=6, thorough=120)
@given(cases(functions=True))
def test_failures_of_preprocess_and_postprocess_functions(case):
    check(case, in_beam.run)


@max_examples(default=60, thorough=500)
@given(cases())
def test_predict_without_a_pipeline_returns_results_in_order(case):
    good = [row for timed in case.all for row in _rows(timed.value) if row.kind == "good"]
    handler = Rowwise("m", case.style, **case.batching)
    assert [by_hand.told(result)[1] for result in handler.predict(good)] == [row.n for row in good]
