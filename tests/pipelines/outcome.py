"""The results and failures of a pipeline, and a plain loop that computes the expected ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipelines.case import (
    MODELS,
    POSTPROCESS_DIVISOR,
    PREPROCESS_DIVISOR,
    Case,
    TimestampedElement,
)
from pipelines.rows import ERRORS, Row, parse_result
from runinference import PredictionResult

#: The name of an error's type, where an error of any type is correct.
ANY_ERROR = "*"


@dataclass
class Outcome:
    """The number of times that each output occurs.

    Attributes:
        results: Counts of `((key, model, row number), timestamp, window end)`.
        failures: Counts of `((example as text, error type), timestamp, window end)`. For a failed preprocessing or
            postprocessing function, the first item is `(stage, row number)`.
    """

    results: Counter[Any] = field(default_factory=Counter)
    failures: Counter[Any] = field(default_factory=Counter)

    def add_result(self, case: Case, value: Any, timestamp: Any, window: Any) -> None:
        """Count a result, which may have a key."""
        is_keyed = isinstance(value, tuple) and isinstance(
            value[1], (tuple, dict, PredictionResult)
        )
        key, result = value if is_keyed and type(value) is tuple else (None, value)
        if isinstance(result, PredictionResult):
            output = (key, result.model_id, tuple(result.inference))
        else:
            output = (key, *parse_result(result))
        self.results[output, int(timestamp), case.window_end(window)] += 1

    def add_dead_letter(self, case: Case, value: Any, timestamp: Any, window: Any) -> None:
        """Count a dead letter of the inference itself."""
        element, (error_type, _, _) = value
        output = (repr(element), error_type.__name__)
        self.failures[output, int(timestamp), case.window_end(window)] += 1


def expected_outcome(case: Case) -> Outcome:
    """Compute the outcome of a pipeline, one example at a time."""
    outcome = Outcome()
    for element, models in _with_model(case):
        is_list = case.prebatched and isinstance(element.value, list)
        for example in element.value if is_list else [element.value]:
            succeeds, output = _expected_output(case, example, models)
            counts = outcome.results if succeeds else outcome.failures
            for window in case.assign_windows(element):
                counts[output, element.timestamp, case.window_end(window)] += 1
    return outcome


def _with_model(case: Case) -> Iterator[tuple[TimestampedElement, dict[str, str]]]:
    """Yield each element with the model of each key, after the latest update in its thread."""
    for bundles in case.threads:
        models = MODELS if case.keys == "per key" else dict.fromkeys(MODELS, "m")
        for element in (element for bundle in bundles for element in bundle):
            if isinstance(element.model_update, list):
                updates = element.model_update
                models = {key: update.update_path for update in updates for key in update.keys}
            elif element.model_update:
                models = dict.fromkeys(MODELS, element.model_update.model_id)
            yield element, {key: name + element.suffix for key, name in models.items()}


def _expected_output(case: Case, example: Any, models: dict[str, str]) -> tuple[bool, Any]:
    """Return whether an example gets a result, and how the result or failure is counted."""
    if case.unsplit:
        return _expected_unsplit(case, example, models)
    succeeds, output = _expected_prediction(case, example, models)
    if succeeds and (failure := _expected_function_failure(case, output[-1])):
        return False, failure
    return succeeds, output


def _expected_unsplit(case: Case, example: Any, models: dict[str, str]) -> tuple[bool, Any]:
    key, rows = example if isinstance(example, tuple) else (None, example)
    if case.keys == "per key" and key not in MODELS:
        return False, (repr(example), "UnknownKeyError")
    if any(row.kind in ERRORS for row in rows) or len(rows) > case.max_rows or not rows:
        return False, (repr(example), ANY_ERROR)
    model = models[key if case.keys == "per key" else "a"]
    return True, (key, model, tuple(row.n for row in rows))


def _expected_prediction(case: Case, example: Any, models: dict[str, str]) -> tuple[bool, Any]:
    key, row = None, example
    if case.keys in ("keyed", "per key") or (case.keys == "maybe" and isinstance(example, tuple)):
        if not (isinstance(example, tuple) and len(example) == 2):
            return False, (repr(example), ANY_ERROR)
        key, row = example
    if not isinstance(row, Row):
        return False, (repr(example), ANY_ERROR)
    if case.keys == "per key" and key not in MODELS:
        return False, (repr(example), "UnknownKeyError")
    if row.kind in ERRORS:
        return False, (repr(example), ERRORS[row.kind])
    return True, (key, models[key if case.keys == "per key" else "a"], row.n)


def _expected_function_failure(case: Case, n: int) -> tuple[str, int] | None:
    """Return the stage whose functions fail for a row, and the row's number."""
    for stage, divisor, count in (
        ("preprocess", PREPROCESS_DIVISOR, case.n_preprocess),
        ("postprocess", POSTPROCESS_DIVISOR, case.n_postprocess),
    ):
        if any(n % (divisor + number) == 0 for number in range(count)):
            return stage, n
    return None
