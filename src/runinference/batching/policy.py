"""Batch limits: the batching options of a handler as one immutable value."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

from runinference.checks import (
    check_callable,
    check_int,
    check_mapping,
    check_number,
    check_positive,
    check_seconds,
)
from runinference.errors import ElementError, OptionError, UnknownOptionError, suggest

#: Beam's default bucket boundaries.
DEFAULT_BUCKET_BOUNDARIES = (16, 32, 64, 128, 256, 512)
#: Beam's maximum number of elements.
DEFAULT_MAX_BATCH_SIZE = 10_000
#: Input bytes of a batch. Activations need several times as much memory.
DEFAULT_MAX_BATCH_BYTES = 64 << 20

# Beam uses these to tune BatchElements. They are accepted so that handlers written for Beam run, and ignored.
_IGNORED_OPTIONS = (
    "clock",
    "record_metrics",
    "target_batch_duration_secs",
    "target_batch_duration_secs_including_fixed_cost",
    "target_batch_overhead",
    "variance",
)


@dataclass(frozen=True)
class BatchPolicy:
    """The limits of a batch. A batch is emitted before an element would exceed one of them.

    Attributes:
        min_batch_size: Minimum number of elements, if that many are available.
        max_batch_size: Maximum number of elements.
        max_batch_bytes: Maximum bytes of data.
        max_batch_weight: Maximum weight, in the units of ``element_size_fn``.
        element_size_fn: Returns the weight of an element. Without it, each element weighs 1.
        length_fn: Returns the length of an element. A batch holds elements of one length bucket.
        bucket_boundaries: The lengths at which buckets begin, ascending.
        max_padded_size: Maximum padded size, the longest length times the number of elements. Elements are
            sorted by length within a window, longest first, before they are divided into batches.
        max_batch_duration_secs: Maximum seconds that an element waits for others across bundles.
    """

    min_batch_size: int = 1
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    max_batch_bytes: int = DEFAULT_MAX_BATCH_BYTES
    max_batch_weight: float | None = None
    element_size_fn: Callable[[Any], float] | None = None
    length_fn: Callable[[Any], int] | None = None
    bucket_boundaries: tuple[float, ...] = ()
    max_padded_size: int | None = None
    max_batch_duration_secs: float | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> BatchPolicy:
        """Create a policy from Beam's batching keywords. Options that are ``None`` are ignored."""
        used = options.keys() - _IGNORED_OPTIONS
        given = {name: options[name] for name in used if options[name] is not None}
        known = [field.name for field in fields(cls)]
        for name in given.keys() - known:
            nearest = suggest(name, [*known, *_IGNORED_OPTIONS])
            raise UnknownOptionError(f"Batching has no option {name!r}.{nearest}")
        if "length_fn" in given and "max_padded_size" not in given:
            given.setdefault("bucket_boundaries", DEFAULT_BUCKET_BOUNDARIES)
        if "bucket_boundaries" in given:
            given["bucket_boundaries"] = _check_boundaries(given["bucket_boundaries"])
        if "min_batch_size" in given:
            check_int("min_batch_size", given["min_batch_size"])
            given.setdefault("max_batch_size", max(given["min_batch_size"], DEFAULT_MAX_BATCH_SIZE))
        policy = cls(**given)
        if policy.element_size_fn is None or policy.max_batch_weight:
            return policy
        return policy._limited_by_weight()

    def __post_init__(self) -> None:
        for name in ("min_batch_size", "max_batch_size", "max_batch_bytes", "max_padded_size"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), -sys.maxsize)
                check_positive(name, getattr(self, name))
        if self.max_batch_weight is not None:
            check_positive("max_batch_weight", self.max_batch_weight)
        if self.max_batch_duration_secs is not None:
            check_seconds("max_batch_duration_secs", self.max_batch_duration_secs)
        for name, function in (
            ("element_size_fn", self.element_size_fn),
            ("batch_length_fn", self.length_fn),
        ):
            if function is not None:
                check_callable(name, function)
        self._check_sizes()
        self._check_lengths()

    def _check_sizes(self) -> None:
        if self.min_batch_size > self.max_batch_size:
            raise OptionError(
                f"min_batch_size ({self.min_batch_size}) is greater than max_batch_size ({self.max_batch_size})."
            )
        if self.max_padded_size is not None and self.min_batch_size > self.max_padded_size:
            raise OptionError(
                f"min_batch_size ({self.min_batch_size}) elements exceed max_padded_size "
                f"({self.max_padded_size}) even at a length of 1. To fix this, lower one or raise the other."
            )

    def _check_lengths(self) -> None:
        boundaries = self.bucket_boundaries
        if self.length_fn is None and (boundaries or self.max_padded_size):
            option = "batch_bucket_boundaries" if boundaries else "max_padded_size"
            raise OptionError(
                f"{option} needs batch_length_fn, which returns the length of an element."
            )

    def _limited_by_weight(self) -> BatchPolicy:
        """Use ``max_batch_size`` as the maximum weight, as Beam does."""
        return replace(
            self,
            # The weight determines the batch, alone or with the padded size.
            min_batch_size=DEFAULT_MAX_BATCH_SIZE if self.max_padded_size is None else 1,
            max_batch_size=DEFAULT_MAX_BATCH_SIZE,
            max_batch_weight=self.max_batch_size,
        )

    @property
    def has_only_size_limits(self) -> bool:
        """Whether only the number of elements and bytes are limited, so that any elements can share a batch."""
        others = (self.length_fn, self.element_size_fn, self.max_batch_weight)
        return all(option is None for option in others)

    def length(self, element: Any) -> int:
        """Return the length of an element, or 0 without ``length_fn``."""
        return 0 if self.length_fn is None else _measure(self.length_fn, element, "batch_length_fn")

    def weight(self, element: Any) -> float:
        """Return the weight of an element, which is 1 without ``element_size_fn``."""
        function = self.element_size_fn
        return 1 if function is None else _measure(function, element, "element_size_fn")

    def bucket(self, element: Any) -> int:
        """Return the index of the length bucket of an element."""
        return bisect_right(self.bucket_boundaries, self.length(element))

    def padded_size(self, batch: Sequence[Any]) -> int | None:
        """Return the longest length times the number of elements, or None without ``max_padded_size``."""
        if self.max_padded_size is None:
            return None
        return len(batch) * max(map(self.length, batch), default=0)


def _measure(function: Callable[[Any], Any], element: Any, name: str) -> Any:
    """Return the length or weight of an element, or raise `ElementError` unless it is a number of at least 0."""
    measured = function(element)
    try:
        if measured >= 0:  # False for NaN
            return measured
    except TypeError:
        pass
    raise ElementError(
        f"{name} returned {measured!r} for an element of type {type(element).__name__}. To fix this, return a "
        "number of at least 0."
    )


def _check_boundaries(boundaries: Any) -> tuple[float, ...]:
    """Return the boundaries of length buckets, or raise `OptionError` unless they are positive and ascending."""
    # An iterator, which can be read once only, is not a list.
    not_lists = (str, bytes, Mapping, Iterator)
    is_list = isinstance(boundaries, Iterable) and not isinstance(boundaries, not_lists)
    values = tuple(boundaries) if is_list else ()
    for value in values:
        check_number("Each of batch_bucket_boundaries", value)
    if not values or any(b <= a for a, b in pairwise((0, *values))):
        raise OptionError(
            "batch_bucket_boundaries must be a list of positive, ascending lengths, but is "
            f"{list(values) if is_list else boundaries!r}."
        )
    return values


def resolve_policy(handler: Any) -> BatchPolicy:
    """Return the batch policy of any object with Beam's handler methods.

    A wrapper around another handler has the options of that handler, unless it sets them.
    """
    given = handler.batch_elements_kwargs()
    check_mapping("The result of batch_elements_kwargs()", given)
    options = dict(given)
    wrapped = getattr(handler, "_unkeyed", None)  # Beam's wrappers use this name, too
    # BatchElements has no such parameters, so batch_elements_kwargs() leaves them out.
    for name in ("max_batch_bytes", "max_padded_size"):
        options[name] = getattr(handler, f"_{name}", getattr(wrapped, f"_{name}", None))
    return BatchPolicy.from_options(options)
