"""Dead letters: exception handling, the dead-letter queue, and the failure threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms import window

from runinference.checks import check_bool, check_number, check_seconds
from runinference.errors import OptionError, TooManyFailuresError
from runinference.handlers.error_policy import Failure
from runinference.transforms.parameters import copy_parameters

_FAILED = "bad"


class RunInferenceDLQ(NamedTuple):
    """The dead-letter queue: the elements that failed, grouped by the step that failed.

    Each dead letter is ``(element, (type, message, traceback))``: the input of the step, the error's class, its
    ``repr``, and the lines of its traceback. A dead letter has the window and timestamp of its element.

    Attributes:
        failed_inferences: The PCollection of examples for which inference failed.
        failed_preprocessing: One PCollection of elements for each preprocessing function, in order.
        failed_postprocessing: One PCollection of predictions for each postprocessing function, in order.
    """

    failed_inferences: beam.PCollection
    failed_preprocessing: Sequence[beam.PCollection]
    failed_postprocessing: Sequence[beam.PCollection]


@dataclass(frozen=True)
class ExceptionHandling:
    """The options of ``with_exception_handling``.

    Attributes:
        exc_class: The errors that become dead letters. Others fail the pipeline.
        use_subprocess: Whether the model runs in a subprocess.
        threshold: Maximum share of elements that may fail, from 0 to 1.
        timeout: Maximum seconds to load a model and call it once; None for no limit.
    """

    exc_class: type[BaseException] | tuple[type[BaseException], ...] = Exception
    use_subprocess: bool = False
    threshold: float = 1
    timeout: float | None = None

    def __post_init__(self) -> None:
        classes = self.exc_class if isinstance(self.exc_class, tuple) else (self.exc_class,)
        if not classes or not all(
            isinstance(each, type) and issubclass(each, BaseException) for each in classes
        ):
            raise OptionError(
                f"exc_class must be an exception class or a tuple of them, but is {self.exc_class!r}."
            )
        check_bool("use_subprocess", self.use_subprocess)
        check_number("threshold", self.threshold)
        if self.threshold > 1:
            raise OptionError(
                f"threshold is the share of elements that may fail, from 0 to 1, but is {self.threshold!r}."
            )
        if self.timeout is not None:
            check_seconds("timeout", self.timeout)


def apply_functions(
    elements: beam.PCollection,
    functions: Iterable[Callable[[Any], Any]],
    step: str,
    handling: ExceptionHandling | None,
) -> tuple[beam.PCollection, list[beam.PCollection]]:
    """Apply functions in order, and return the results and the dead letters of each function."""
    dead_letters = []
    for index, function in enumerate(functions):
        label, apply = f"BeamML_RunInference_{step}-{index}", beam.Map(function)
        if handling is None:
            elements = elements | label >> apply
            continue
        apply.type_check_inputs(elements)
        guarded = beam.FlatMap(_return_failures(function, handling.exc_class))
        guarded = guarded.with_output_types(apply.infer_output_type(elements.element_type))
        elements, failed = elements | label >> guarded.with_exception_handling(
            dead_letter_tag=_FAILED,
            exc_class=handling.exc_class,
            use_subprocess=handling.use_subprocess,
            timeout=handling.timeout,
        )
        dead_letters.append(failed)
    return elements, dead_letters


def _return_failures(
    function: Callable[..., Any], caught: type[BaseException] | tuple[type[BaseException], ...]
) -> Callable[..., list[Any]]:
    """Return a function whose errors are dead letters in the form of `Failure`, which can always be pickled.

    Beam creates the dead letters of what happens outside of the function: a crash of a subprocess or a timeout.
    """

    def apply(element: Any, *args: Any, **kwargs: Any) -> list[Any]:
        try:
            return [function(element, *args, **kwargs)]
        except caught as error:
            return [TaggedOutput(_FAILED, (element, Failure(error).report()))]

    # Beam reads the types from ``beam.Map(function)``.
    copy_parameters(function, apply)
    return apply


class FailureThreshold(beam.PTransform):  # type: ignore[misc]
    """Fail the pipeline if the share of failed elements exceeds a threshold.

    The input is a tuple: the PCollection of results, then the PCollections of dead letters. Records are counted
    per window, and in a stream in the global window per minute.
    """

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self._threshold = threshold

    def expand(self, records: tuple[beam.PCollection, ...]) -> Any:
        good, *failed = records
        counts = [good | "Good" >> beam.Map(lambda _: (0, 1))]
        counts += [
            letters | f"Failed-{index}" >> beam.Map(lambda _: (1, 1))
            for index, letters in enumerate(failed)
        ]
        counts = counts | beam.Flatten()
        if not counts.is_bounded and isinstance(counts.windowing.windowfn, window.GlobalWindows):
            counts = counts | beam.WindowInto(window.FixedWindows(60))
        totals = counts | beam.CombineGlobally(_sum_counts).without_defaults()
        return totals | "Check" >> beam.Map(_check_threshold, self._threshold)


def _sum_counts(counts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    failed = total = 0
    for n_failed, n in counts:
        failed, total = failed + n_failed, total + n
    return failed, total


def _check_threshold(counts: tuple[int, int], threshold: float) -> None:
    failed, total = counts
    if failed > total * threshold:
        raise TooManyFailuresError(
            f"{failed} of {total} elements failed, a share of {failed / total:.3g}, above the threshold of "
            f"{threshold}. Look at the dead letters, or raise the threshold of with_exception_handling."
        )
