"""Does a handler of your own keep its promises? ``check_handler`` says, and names the cure of what does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from runinference.errors import RunInferenceError
from runinference.testing.checks import CHECKS, Skipped, Trial, Wrong
from runinference.testing.compare import same as same_results
from runinference.testing.compare import told

__all__ = ["Fault", "HandlerFaultsError", "Report", "check_handler"]


class Fault(NamedTuple):
    """A promise that a handler does not keep.

    Attributes:
        check: Which check found it.
        wrong: What happened.
        cure: What helps.
    """

    check: str
    wrong: str
    cure: str


class Report(NamedTuple):
    """What was checked.

    Attributes:
        passed: The names of the checks that found nothing.
        skipped: Those that could not be made, each with what it needs.
    """

    passed: tuple[str, ...]
    skipped: Mapping[str, str]


class HandlerFaultsError(RunInferenceError, AssertionError):
    """A handler fails checks; the message lists them all. ``faults`` has them one by one."""

    faults: tuple[Fault, ...] = ()


def check_handler(
    handler: Any,
    examples: Sequence[Any],
    *,
    inference_args: dict[str, Any] | None = None,
    bad_example: Any = ...,
    updated_path: str | None = None,
    same: Callable[[Any, Any], bool] | None = None,
) -> Report:
    """Runs a handler on examples in several ways, without a pipeline, and compares.

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
        handler: Any object with the methods of a handler.
        examples: Three or more, with different results: what the handler gets, after preprocessing.
        inference_args: Arguments for the model's call.
        bad_example: One that the model cannot take. With it, errors are checked.
        updated_path: The path of another model, with other results. With it, updates are checked.
        same: Whether two results are the same. By default, numbers may differ by a few parts in 100,000, as
            those of batches of different sizes do, and only the ``inference`` of a ``PredictionResult`` counts.

    Raises:
        HandlerFaultsError: The handler fails checks. It is an ``AssertionError``, and lists what is wrong, with
            the cures.
        ValueError: Fewer than three examples.
    """
    if len(examples) < 3:
        raise ValueError(
            f"Give three examples or more, with different results, not {len(examples)}."
        )
    trial = Trial(
        handler, list(examples), inference_args, same or same_results, bad_example, updated_path
    )
    faults: list[Fault] = []
    passed: list[str] = []
    skipped: dict[str, str] = {}
    for name, check in CHECKS.items():
        try:
            check(trial)
        except Skipped as reason:
            skipped[name] = str(reason)
        except Wrong as wrong:
            faults.append(Fault(name, *wrong.args))
        except Exception as error:
            faults.append(Fault(name, told(error), "See the error; predict() raises it, too."))
        else:
            passed.append(name)
        if faults and name in ("loading", "splitting"):  # the other checks stand on these
            break
    if faults:
        raise _all_of(handler, faults, len(passed) + len(faults))
    return Report(tuple(passed), skipped)


def _all_of(handler: Any, faults: Sequence[Fault], n_checks: int) -> HandlerFaultsError:
    lines = [f"{type(handler).__name__} fails {len(faults)} of {n_checks} checks:"]
    lines += [f"  {name}: {wrong}\n    Cure: {cure}" for name, wrong, cure in faults]
    error = HandlerFaultsError("\n".join(lines))
    error.faults = tuple(faults)
    return error
