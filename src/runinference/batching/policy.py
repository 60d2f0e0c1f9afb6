"""Which elements may share a call of the model: the options for batching, as one value. No Beam.

`gathering` collects elements under a policy; `sizing` finds how many, where the options leave it open.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from runinference.errors import OptionError, UnknownOptionError, suggest

#: Where one bucket of lengths ends when a length function comes without boundaries; Beam's values.
DEFAULT_BUCKET_BOUNDARIES = (16, 32, 64, 128, 256, 512)
#: Beam lets a batch grow to as many elements; so do we, within the bytes below.
DEFAULT_MAX_BATCH_SIZE = 10_000
#: Input bytes in a batch. Activations take a multiple of it.
DEFAULT_MAX_BATCH_BYTES = 64 << 20

# How BatchElements is tuned: understood, so that a handler written for Beam runs here, but of no effect,
# because sizes are found by another rule.
_TUNING = frozenset(
    {
        "target_batch_overhead",
        "target_batch_duration_secs",
        "target_batch_duration_secs_including_fixed_cost",
        "variance",
        "clock",
        "record_metrics",
    }
)

# What has neither parts nor `nbytes`: told by a look at the type, as elements and their keys mostly are.
_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})


def size_in_bytes(value: Any) -> int:
    """The bytes of data in one element: of arrays and tensors exactly, of the rest as Python holds it.

    >>> size_in_bytes([np.zeros(8), {1: np.zeros(8)}]) - size_in_bytes(1)
    128
    """
    kind = type(value)
    if kind in _PLAIN:
        return sys.getsizeof(value)
    if kind is tuple or kind is list:
        return sum(map(size_in_bytes, value))
    try:
        nbytes = getattr(value, "nbytes", None)
    except RuntimeError:  # a sparse tensor of PyTorch's: its values, and where they stand
        return int(value._nnz() * (value.element_size() + 8 * value.dim()))
    if type(nbytes) is int:
        return nbytes
    if isinstance(nbytes, Integral):  # else it is a field of the user's
        return int(nbytes)
    num_elements = getattr(getattr(value, "shape", None), "num_elements", None)
    if num_elements is not None and num_elements() is not None:  # a tensor of TensorFlow's
        return int(num_elements() * value.dtype.size)
    if isinstance(value, (tuple, list)):
        return sum(map(size_in_bytes, value))
    if isinstance(value, Mapping):
        return sum(size_in_bytes(k) + size_in_bytes(v) for k, v in value.items())
    memory_usage = getattr(value, "memory_usage", None)
    if callable(memory_usage):
        usage = memory_usage(deep=True)
        return int(usage if isinstance(usage, int) else usage.sum())
    return sys.getsizeof(value)


@dataclass(frozen=True)
class BatchPolicy:
    """How large a batch may get. A batch is handed on before any of the limits would be passed.

    Attributes:
        min_size: The fewest elements, as far as there are as many.
        max_size: The most elements.
        max_bytes: The most bytes of data.
        max_weight: The most weight, in the units of ``weigh``.
        weigh: The weight of one element; without it each weighs 1.
        measure: The length of one element; those of one bucket share a batch.
        boundaries: Where buckets begin, ascending.
        max_padded: The most padded size, longest times count, in the units of ``measure``. Elements are
            sorted by length within a window, longest first, before they are cut into batches.
        max_duration_secs: Seconds an element may wait for others across bundles.
    """

    min_size: int = 1
    max_size: int = DEFAULT_MAX_BATCH_SIZE
    max_bytes: int = DEFAULT_MAX_BATCH_BYTES
    max_weight: float | None = None
    weigh: Callable[[Any], float] | None = None
    measure: Callable[[Any], int] | None = None
    boundaries: tuple[int, ...] = ()
    max_padded: int | None = None
    max_duration_secs: float | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> BatchPolicy:
        """The policy that Beam's keywords for batching describe.

        Raises:
            UnknownOptionError: A keyword is not known.
            OptionError: Two keywords contradict each other, or a value is out of range.
        """
        given = {name: v for name, v in options.items() if v is not None and name not in _TUNING}
        fields = {field: given.pop(name) for name, field in _FIELDS.items() if name in given}
        for name in given:
            known = [*_FIELDS, *sorted(_TUNING)]
            raise UnknownOptionError(f"Batching has no option {name!r}.{suggest(name, known)}")
        if "measure" in fields and "max_padded" not in fields:
            fields.setdefault("boundaries", DEFAULT_BUCKET_BOUNDARIES)
        if "boundaries" in fields:
            fields["boundaries"] = tuple(fields["boundaries"])
        if "max_size" not in fields and fields.get("min_size", 0) > DEFAULT_MAX_BATCH_SIZE:
            fields["max_size"] = fields["min_size"]
        policy = cls(**fields)
        return policy if policy.weigh is None or policy.max_weight else policy._sized_by_weight()

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise OptionError(f"{_NAMES[name]} must be greater than 0, and is {value!r}.")
        self._check_sizes()
        self._check_lengths()

    def _check_sizes(self) -> None:
        if self.min_size > self.max_size:
            raise OptionError(
                f"min_batch_size ({self.min_size}) is greater than max_batch_size ({self.max_size})."
            )
        if self.max_padded is not None and self.min_size > self.max_padded:
            raise OptionError(
                f"min_batch_size ({self.min_size}) elements are longer than max_padded_size "
                f"({self.max_padded}) even at a length of 1: lower the one or raise the other."
            )

    def _check_lengths(self) -> None:
        for name in ("boundaries", "max_padded"):
            if getattr(self, name) and self.measure is None:
                raise OptionError(
                    f"{_OPTIONS[name]} needs batch_length_fn, which gives an element's length."
                )
        if any(b <= a for a, b in zip((0, *self.boundaries), self.boundaries, strict=False)):
            raise OptionError(
                f"batch_bucket_boundaries must be positive and ascending, and are {list(self.boundaries)}."
            )

    def _sized_by_weight(self) -> BatchPolicy:
        """As in Beam, sizes are in the units of ``weigh`` where no weight is given; it alone decides."""
        least = (
            DEFAULT_MAX_BATCH_SIZE if self.max_padded is None else 1
        )  # the padded size decides, too
        return replace(
            self, min_size=least, max_size=DEFAULT_MAX_BATCH_SIZE, max_weight=self.max_size
        )

    @property
    def plain(self) -> bool:
        """Whether only elements and bytes count, and any elements may share a batch."""
        return self.measure is None and self.weigh is None and self.max_weight is None

    def length(self, element: Any) -> int:
        """The length of an element; 0 where lengths do not matter."""
        return 0 if self.measure is None else self.measure(element)

    def bucket(self, element: Any) -> int:
        """Which elements may share a batch with this one: those of the same bucket."""
        return bisect_right(self.boundaries, self.length(element))

    def padded_size(self, batch: Sequence[Any]) -> int | None:
        """The size of a batch after padding, longest times count; None where it has no budget."""
        if self.max_padded is None:
            return None
        return len(batch) * max(map(self.length, batch), default=0)


_FIELDS = {
    "min_batch_size": "min_size",
    "max_batch_size": "max_size",
    "max_batch_bytes": "max_bytes",
    "max_batch_weight": "max_weight",
    "element_size_fn": "weigh",
    "length_fn": "measure",
    "bucket_boundaries": "boundaries",
    "max_padded_size": "max_padded",
    "max_batch_duration_secs": "max_duration_secs",
}
_NAMES = {field: name for name, field in _FIELDS.items()}
_OPTIONS = {**_NAMES, "boundaries": "batch_bucket_boundaries"}
_POSITIVE = ("min_size", "max_size", "max_bytes", "max_weight", "max_padded", "max_duration_secs")

#: The options for batching that Beam's BatchElements does not know: attributes of the handler, underscored.
BEYOND_BEAM = ("max_batch_bytes", "max_padded_size")


def resolve_policy(handler: Any) -> BatchPolicy:
    """The policy a handler asks for; works for any object with Beam's handler methods.

    A handler around another one has the options of that one, unless it has its own.
    """
    options = dict(handler.batch_elements_kwargs())
    inside = getattr(handler, "_unkeyed", None)  # as ours and Beam's call it
    for name in BEYOND_BEAM:
        options[name] = getattr(handler, f"_{name}", getattr(inside, f"_{name}", None))
    return BatchPolicy.of(options)
