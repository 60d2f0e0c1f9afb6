"""Where records go that fail: they stop the pipeline, or come out beside the results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.transforms import window

from runinference.errors import OptionError, TooManyFailuresError


class RunInferenceDLQ(NamedTuple):
    """The records that failed, by the step they failed in.

    Each is ``(record, (type, message, traceback))``: the record that went into the step, the error's class, its
    ``repr``, and the lines of its traceback. It has the window and timestamp of its element.

    Attributes:
        failed_inferences: Examples that have no prediction.
        failed_preprocessing: Elements, one PCollection for each preprocessing function, in their order.
        failed_postprocessing: Predictions, one PCollection for each postprocessing function, in their order.
    """

    failed_inferences: Any
    failed_preprocessing: Sequence[Any]
    failed_postprocessing: Sequence[Any]


@dataclass(frozen=True)
class ExceptionHandling:
    """How failing records are set aside.

    Attributes:
        exc_class: The errors that are; others stop the pipeline.
        use_subprocess: Whether the model runs in a process of its own, which may crash.
        threshold: The share of records that may fail.
        timeout: Seconds for loading a model, and for a call.
    """

    exc_class: type[BaseException] | tuple[type[BaseException], ...] = Exception
    use_subprocess: bool = False
    threshold: float = 1
    timeout: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise OptionError(
                f"threshold is the share of records that may fail, from 0 to 1, and is {self.threshold!r}."
            )
        if self.timeout is not None and self.timeout <= 0:
            raise OptionError(f"timeout must be greater than 0 seconds, and is {self.timeout!r}.")


def apply_functions(
    elements: beam.PCollection,
    functions: Iterable[Callable[[Any], Any]],
    step: str,
    handling: ExceptionHandling | None,
) -> tuple[beam.PCollection, list[beam.PCollection]]:
    """Applies functions one after another; elements that fail come out aside if they are handled."""
    aside = []
    for index, function in enumerate(functions):
        label, apply = f"BeamML_RunInference_{step}-{index}", beam.Map(function)
        if handling is None:
            elements = elements | label >> apply
        else:
            elements, failed = elements | label >> apply.with_exception_handling(
                exc_class=handling.exc_class,
                use_subprocess=handling.use_subprocess,
                timeout=handling.timeout,
            )
            aside.append(failed)
    return elements, aside


class FailureThreshold(beam.PTransform):  # type: ignore[misc]
    """Stops the pipeline when more than a share of the records has failed.

    Its input is a tuple: the PCollection of good records first, then those of failed ones.
    Records are counted within their windows; in a stream without windows, within each minute.
    """

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self._threshold = threshold

    def expand(self, good_and_failed: tuple[beam.PCollection, ...]) -> Any:
        good, *failed = good_and_failed
        counts = [good | "Good" >> beam.Map(lambda _: (0, 1))]
        counts += [
            letters | f"Failed-{index}" >> beam.Map(lambda _: (1, 1))
            for index, letters in enumerate(failed)
        ]
        counts = counts | beam.Flatten()
        if not counts.is_bounded and isinstance(counts.windowing.windowfn, window.GlobalWindows):
            counts = counts | beam.WindowInto(window.FixedWindows(60))
        totals = counts | beam.CombineGlobally(_sum_pairs).without_defaults()
        return totals | "Check" >> beam.Map(_check, self._threshold)


def _sum_pairs(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    failed = total = 0
    for one_failed, one in pairs:
        failed, total = failed + one_failed, total + one
    return failed, total


def _check(counts: tuple[int, int], threshold: float) -> None:
    failed, total = counts
    if failed > total * threshold:
        raise TooManyFailuresError(
            f"{failed} of {total} records failed, a share of {failed / total:.3g}, above the threshold of "
            f"{threshold}. Look at the dead letters, or raise the threshold of with_exception_handling."
        )
