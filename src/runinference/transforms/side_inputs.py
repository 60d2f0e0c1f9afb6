"""Side inputs of the inference step: inference arguments and model updates from the pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsSideInput

from runinference.errors import OptionError, describe_value
from runinference.transforms.coders import PredictionResultCoder

#: Writes arrays and tensors as raw bytes, and pickles what is no primitive.
_CODER = PredictionResultCoder()


def encode(value: Any) -> bytes:
    """Return the bytes of a side input.

    Equal bytes mean equal values of equal types. ``==`` is ambiguous for arrays, and takes 1 and True as equal.
    """
    return bytes(_CODER.encode(value))


def decode(encoded: bytes) -> Any:
    """Return the value that ``encode`` got."""
    return _CODER.decode(encoded)


def are_same_arguments(one: Any, other: Any) -> bool:
    """Return whether two side inputs have equal values of equal types; False if they cannot be compared."""
    try:
        return one is other or encode(one) == encode(other)
    except Exception:  # a value that cannot be pickled
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


@dataclass(frozen=True)
class ConflictingUpdates:
    """Different model updates with one timestamp."""

    updates: list[Any]

    def error(self) -> OptionError:
        """Return the error that describes the updates."""
        described = ", ".join(map(describe_value, self.updates[:5]))
        return OptionError(
            f"{len(self.updates)} model refreshes have the same timestamp: {described}. To fix this, emit one "
            "refresh for each timestamp."
        )


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
        latest: list[Any] = []
        for micros, update in stamped:
            if micros == last and not any(_are_equal(update, other) for other in latest):
                latest.append(update)
        if len(latest) > 1:
            return ConflictingUpdates(latest)
        return latest[0] if latest else None


def _are_equal(one: Any, other: Any) -> bool:
    try:
        return one is other or bool(one == other)
    except Exception:  # an __eq__ that raises, or that returns an array
        return False


def _with_timestamp(update: Any, timestamp: Any = beam.DoFn.TimestampParam) -> tuple[int, Any]:
    return timestamp.micros, update


class SideInputEncoder:
    """Encodes the side inputs of elements, and keeps the last result, since most elements come with the same."""

    def __init__(self) -> None:
        self._last: tuple[Any, Any] = (None, None)
        self._encoded: bytes | None = None

    def encode(self, update: Any, arguments: Any) -> bytes | None:
        """Return a model update and inference arguments as bytes, or None if there are none."""
        if update is not self._last[0] or arguments is not self._last[1]:
            has_any = update is not None or arguments is not None
            self._encoded = encode((update, arguments)) if has_any else None
            self._last = (update, arguments)
        return self._encoded
