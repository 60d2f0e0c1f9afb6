"""Check that a custom handler meets the requirements of ``ModelHandler``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from runinference.errors import RunInferenceError
from runinference.handlers.key_mapping import check_handler_object
from runinference.handlers.model_handler import ModelHandlerLike
from runinference.testing.checks import CHECKS, CheckContext, CheckFailed, CheckSkipped
from runinference.testing.compare import format_error
from runinference.testing.compare import same as same_results

__all__ = ["Fault", "HandlerFaultsError", "Report", "check_handler"]


class Fault(NamedTuple):
    """A check that a handler failed.

    Attributes:
        check: The name of the check that failed.
        wrong: What the handler does wrong.
        hint: How to fix it.
    """

    check: str
    wrong: str
    hint: str


class Report(NamedTuple):
    """The result of ``check_handler`` for a handler that failed no check.

    Attributes:
        passed: The names of the checks that passed.
        skipped: Why each skipped check was skipped, by the name of the check. Usually the argument that it needs.
    """

    passed: tuple[str, ...]
    skipped: Mapping[str, str]


class HandlerFaultsError(RunInferenceError, AssertionError):
    """A handler failed one or more checks. The message lists all faults.

    Attributes:
        faults: The failed checks.
    """

    __module__ = "runinference.testing"  # the public name, which tracebacks show
    faults: tuple[Fault, ...] = ()


def check_handler(
    handler: ModelHandlerLike,
    examples: Iterable[Any],
    *,
    inference_args: dict[str, Any] | None = None,
    bad_example: Any = ...,
    updated_path: str | None = None,
    same: Callable[[Any, Any], bool] | None = None,
) -> Report:
    """Check a model handler: run it on examples in several ways, without a pipeline, and compare the results.

    >>> from runinference import ModelHandler
    >>> class Doubler(ModelHandler[int, int, object]):
    ...     def load_model(self):
    ...         return lambda numbers: [2 * n for n in numbers]
    ...     def run_inference(self, batch, model, inference_args=None):
    ...         return model(batch)
    >>> report = check_handler(Doubler(), [1, 2, 3])
    >>> report.passed[:4]
    ('loading', 'splitting', 'batching', 'order')
    >>> report.skipped
    {'errors': 'needs bad_example', 'updates': 'needs updated_path'}

    Args:
        handler: The handler: a ``ModelHandler``, or any object with the methods of Beam's ``ModelHandler``.
        examples: Three or more preprocessed examples with different results.
        inference_args: Keyword arguments for each model call.
        bad_example: An example that the model cannot process. Required to check errors.
        updated_path: The path of another model, with other results. Required to check model updates.
        same: Returns whether two results are equal. By default, numbers may differ by a few parts in 100,000,
            because results depend slightly on the batch size, or by a few percent in half precision. Only the
            ``inference`` of a ``PredictionResult`` is compared.

    Raises:
        HandlerFaultsError: The handler failed one or more checks. The error is an ``AssertionError`` that lists
            the faults and how to fix them.
        ValueError: There are fewer than three examples, or ``handler`` is not a handler.
    """
    check_handler_object(handler, "check_handler")
    examples = list(examples)
    if len(examples) < 3:
        raise ValueError(
            f"check_handler needs three examples or more, with different results, not {len(examples)}."
        )
    context = CheckContext(
        handler, examples, inference_args, same or same_results, bad_example, updated_path
    )
    faults: list[Fault] = []
    passed: list[str] = []
    skipped: dict[str, str] = {}
    for name, check in CHECKS.items():
        try:
            check(context)
        except CheckSkipped as reason:
            skipped[name] = str(reason)
        except CheckFailed as failed:
            faults.append(Fault(name, *failed.args))
        except Exception as error:
            fix = "See the error, which handler.predict() raises, too."
            faults.append(Fault(name, format_error(error), fix))
        else:
            passed.append(name)
        if faults and len(passed) < 2:  # the other checks need the results of the first two
            break
    if not faults:
        return Report(tuple(passed), skipped)
    n_checks = len(passed) + len(faults)
    lines = [f"{type(handler).__name__} fails {len(faults)} of {n_checks} checks:"]
    lines += [f"  {name}: {wrong}\n    Fix: {fix}" for name, wrong, fix in faults]
    failure = HandlerFaultsError("\n".join(lines))
    failure.faults = tuple(faults)
    raise failure
