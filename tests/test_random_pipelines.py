"""Random pipelines produce the same elements, keys, windows and timestamps as a plain loop.

`make fuzz` runs 10,000 pipelines (`HYPOTHESIS_PROFILE=thorough`). By default, fewer are run.
"""

from __future__ import annotations

import logging
import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings

from common import overlapping
from pipelines import beam_pipeline, dofn_driver
from pipelines.case import Case
from pipelines.outcome import ANY_ERROR, Outcome, expected_outcome
from pipelines.rows import Row, SeenRows, parse_result
from pipelines.strategies import cases
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


def check_case(case: Case, run) -> None:
    """Run a case and compare its outcome with the expected one."""
    with overlapping(case.overlaps):
        _check_case(case, run)


def _check_case(case: Case, run) -> None:
    SeenRows.clear()
    expected = expected_outcome(case)
    if not case.dead_letters and must_raise(case, expected):
        with pytest.raises(Exception):  # noqa: B017, PT011 - the type depends on the first failing row
            run(case)
        return
    actual = run(case)
    assert actual.results == expected.results
    assert _mask_error_types(actual.failures, expected.failures) == expected.failures


def must_raise(case: Case, expected: Outcome) -> bool:
    """Return whether a row fails. Without dead letters, transient errors are not retried."""
    rows = [row for element in case.elements for row in _find_rows(element.value)]
    return bool(expected.failures) or any(row.kind == "transient" for row in rows)


def _find_rows(value) -> list[Row]:
    if isinstance(value, Row):
        return [value]
    items = value if isinstance(value, (list, tuple)) else ()
    return [row for item in items for row in _find_rows(item)]


def _mask_error_types(actual: Counter, expected: Counter) -> Counter:
    """Replace the error types of examples that may fail with an error of any type."""
    masked_examples = {example for ((example, error), *_) in expected if error == ANY_ERROR}
    masked: Counter = Counter()
    for ((example, error), timestamp, end), n in actual.items():
        error_type = ANY_ERROR if example in masked_examples else error
        masked[(example, error_type), timestamp, end] += n
    return masked


@max_examples(default=120, thorough=5_000)
@given(cases())
def test_bundles_and_threads_give_the_outcome_of_a_plain_loop(case):
    check_case(case, dofn_driver.run)


@max_examples(default=50, thorough=1_500)
@given(cases(buffered=True))
def test_batches_that_span_bundles_give_the_outcome_of_a_plain_loop(case):
    check_case(case, dofn_driver.run)


@max_examples(default=40, thorough=1_000)
@given(cases(side_inputs=True))
def test_each_element_uses_the_model_and_arguments_of_its_side_inputs(case):
    check_case(case, dofn_driver.run)


@max_examples(default=40, thorough=1_000)
@given(cases(side_inputs=True, buffered=True))
def test_each_element_that_waits_uses_the_model_and_arguments_that_it_came_with(case):
    check_case(case, dofn_driver.run)


@max_examples(default=30, thorough=700)
@given(cases(unsplit=True))
def test_each_list_of_rows_gets_one_unsplit_result(case):
    check_case(case, dofn_driver.run)


@max_examples(default=6, thorough=120)
@given(cases())
def test_a_pipeline_gives_the_outcome_of_a_plain_loop(case):
    check_case(case, beam_pipeline.run)


@max_examples(default=3, thorough=60)
@given(cases(buffered=True))
def test_a_pipeline_with_batches_that_span_bundles_gives_the_outcome_of_a_plain_loop(case):
    check_case(case, beam_pipeline.run)


@max_examples(default=6, thorough=120)
@given(cases(functions=True))
def test_failures_of_preprocessing_and_postprocessing_become_dead_letters(case):
    check_case(case, beam_pipeline.run)


@max_examples(default=60, thorough=500)
@given(cases())
def test_predict_without_a_pipeline_returns_results_in_order(case):
    rows = [row for element in case.elements for row in _find_rows(element.value)]
    good = [row for row in rows if row.kind == "good"]
    numbers = [row.n for row in good]  # before a model that works in place changes them
    results = case.row_handler("m").predict(good)
    assert [parse_result(result)[1] for result in results] == numbers
