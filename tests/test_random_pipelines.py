"""Random pipelines against a plain loop: nothing lost, nothing twice, keys, windows and times kept.

``make fuzz`` runs 10,000 of them (``HYPOTHESIS_PROFILE=thorough``); here are fewer.
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
from runinference.handlers import error_policy as failing

MANY = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def examples(few: int, many: int) -> settings:
    return settings(
        max_examples=many if MANY else few,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        print_blob=True,
    )


@pytest.fixture(autouse=True, scope="module")
def _at_once():
    """Errors that may pass are tried again without a pause, and what fails is not logged."""
    pause, failing.FIRST_PAUSE_SECS = failing.FIRST_PAUSE_SECS, 0
    logging.disable(logging.CRITICAL)
    yield
    failing.FIRST_PAUSE_SECS = pause
    logging.disable(logging.NOTSET)


def holds(case: Case, run) -> None:
    """Raises unless what comes out of a case is what must come out."""
    _Met.forget()
    wanted = expected(case)
    if not case.aside and must_raise(case, wanted):
        with pytest.raises(Exception):  # noqa: B017, PT011 - of whatever kind the first bad row causes
            run(case)
        return
    found = run(case)
    assert found.good == wanted.good
    assert _any_kind(found.bad, wanted.bad) == wanted.bad


def must_raise(case: Case, wanted: Outcome) -> bool:
    """Whether a row fails; also one that would not fail at the next try, which nobody makes."""
    rows = [row for timed in case.all for row in _rows(timed.value)]
    return bool(wanted.bad) or any(row.kind == "passing" for row in rows)


def _rows(value) -> list[Row]:
    if isinstance(value, Row):
        return [value]
    inside = value if isinstance(value, (list, tuple)) else ()
    return [row for part in inside for row in _rows(part)]


def _any_kind(found: Counter, wanted: Counter) -> Counter:
    """What failed, without the kind of error where any kind will do."""
    any_kind = {said[0] for (said, *_) in wanted if said[1] == "*"}
    counted: Counter = Counter()
    for (said, at, ends), n in found.items():
        counted[(said[0], "*") if said[0] in any_kind else said, at, ends] += n
    return counted


@examples(few=150, many=6_000)
@given(cases())
def test_what_comes_out_of_bundles_and_threads_is_what_a_plain_loop_gives(case):
    holds(case, by_hand.run)


@examples(few=60, many=2_000)
@given(cases(waiting=True))
def test_elements_that_wait_across_bundles_lose_nothing(case):
    holds(case, by_hand.run)


@examples(few=60, many=1_200)
@given(cases(refreshed=True))
def test_each_element_goes_to_the_model_that_its_refresh_names(case):
    holds(case, by_hand.run)


@examples(few=6, many=120)
@given(cases())
def test_the_same_in_a_pipeline(case):
    holds(case, in_beam.run)


@examples(few=3, many=60)
@given(cases(waiting=True))
def test_the_same_in_a_pipeline_where_elements_wait(case):
    holds(case, in_beam.run)


@examples(few=6, many=120)
@given(cases(functions=True))
def test_functions_before_and_after_the_model_set_their_own_failures_aside(case):
    holds(case, in_beam.run)


@examples(few=60, many=500)
@given(cases())
def test_a_handler_alone_gives_the_same_in_order(case):
    good = [row for timed in case.all for row in _rows(timed.value) if row.kind == "good"]
    handler = Rowwise("m", case.style, **case.batching)
    assert [by_hand.told(result)[1] for result in handler.predict(good)] == [row.n for row in good]
