"""Side inputs of the inference step: inference arguments and model updates from the pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsSideInput

from runinference.errors import OptionError


def are_same_arguments(one: Any, other: Any) -> bool:
    """Return whether two side-input values are equal. False for arrays, because their comparison is ambiguous."""
    try:
        return bool(one == other)
    except ValueError:
        return False


def to_inference_args(handler: Any, arguments: Any) -> dict[str, Any]:
    """Return the value of a side input as the arguments of a call, or raise if the handler rejects them."""
    if not isinstance(arguments, Mapping):
        raise OptionError(
            f"inference_args from the pipeline must be a dictionary, but the side input has {arguments!r:.60}. To "
            "fix this, use beam.pvalue.AsDict(pairs of name and value), or AsSingleton of a dictionary."
        )
    handler.validate_inference_args(arguments)
    return dict(arguments)


class AsLatest(AsSideInput):  # type: ignore[misc]
    """A side input whose value is the element with the latest timestamp, or None if there is no element.

    ``AsSingleton`` raises on runners that keep both an element and its replacement.
    """

    def __init__(self, updates: beam.PCollection) -> None:
        super().__init__(updates | "WithTimestamp" >> beam.Map(_with_timestamp))

    def __repr__(self) -> str:
        return f"AsLatest({self.pvalue})"

    @staticmethod
    def _from_runtime_iterable(stamped: Iterable[tuple[int, Any]], options: Any) -> Any:
        stamped = list(stamped)
        last = max((micros for micros, _ in stamped), default=0)
        latest = {repr(update): update for micros, update in stamped if micros == last}
        if len(latest) > 1:
            raise OptionError(
                f"{len(latest)} model refreshes have the same timestamp: {', '.join(latest)}. To fix this, emit "
                "one refresh for each timestamp."
            )
        return next(iter(latest.values()), None)


def _with_timestamp(update: Any, timestamp: Any = beam.DoFn.TimestampParam) -> tuple[int, Any]:
    return timestamp.micros, update
