"""Which elements share a call of the model: pure rules, no Beam.

A `BatchPolicy` says how large a batch may get, a `Gatherer` collects elements under it, and an
`AdaptiveSize` finds a good number of elements by measuring, where the options leave it open.
"""

from __future__ import annotations

import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from runinference.errors import OptionError, UnknownOptionError, nearest

ItemT = TypeVar("ItemT")

#: Where one bucket of lengths ends when a length function comes without boundaries; Beam's values.
BUCKETS = (16, 32, 64, 128, 256, 512)
#: Beam lets a batch grow to as many elements; so do we, within the bytes below.
MOST_ELEMENTS = 10_000
#: Input bytes in a batch. Activations take a multiple of it.
MOST_BYTES = 64 << 20

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


def size_in_bytes(value: Any) -> int:
    """The bytes of data in one element: of arrays and tensors exactly, of the rest as Python holds it.

    >>> size_in_bytes(("key", {"ids": np.zeros(8, np.int64)}))
    122
    """
    nbytes = getattr(value, "nbytes", None)
    if nbytes is not None:
        return int(nbytes)
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
        max_duration_secs: Seconds an element may wait for others across bundles.
    """

    min_size: int = 1
    max_size: int = MOST_ELEMENTS
    max_bytes: int = MOST_BYTES
    max_weight: float | None = None
    weigh: Callable[[Any], float] | None = None
    measure: Callable[[Any], int] | None = None
    boundaries: tuple[int, ...] = ()
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
            raise UnknownOptionError(f"Batching has no option {name!r}.{nearest(name, known)}")
        if "measure" in fields:
            fields.setdefault("boundaries", BUCKETS)
        if "boundaries" in fields:
            fields["boundaries"] = tuple(fields["boundaries"])
        if "max_size" not in fields and fields.get("min_size", 0) > MOST_ELEMENTS:
            fields["max_size"] = fields["min_size"]
        return cls(**fields)

    def __post_init__(self) -> None:
        for name in ("min_size", "max_size", "max_bytes", "max_weight", "max_duration_secs"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise OptionError(f"{_NAMES[name]} must be greater than 0, and is {value!r}.")
        if self.min_size > self.max_size:
            raise OptionError(
                f"min_batch_size ({self.min_size}) is greater than max_batch_size ({self.max_size})."
            )
        if self.weigh is not None and self.max_weight is None:
            raise OptionError("element_size_fn has no effect alone: give max_batch_weight too.")
        if self.boundaries and self.measure is None:
            raise OptionError(
                "batch_bucket_boundaries needs batch_length_fn, which gives an element's length."
            )
        if any(b <= a for a, b in zip((0, *self.boundaries), self.boundaries, strict=False)):
            raise OptionError(
                f"batch_bucket_boundaries must be positive and ascending, and are {list(self.boundaries)}."
            )

    def bucket(self, element: Any) -> int:
        """Which elements may share a batch with this one: those of the same bucket."""
        return 0 if self.measure is None else bisect_right(self.boundaries, self.measure(element))


_FIELDS = {
    "min_batch_size": "min_size",
    "max_batch_size": "max_size",
    "max_batch_bytes": "max_bytes",
    "max_batch_weight": "max_weight",
    "element_size_fn": "weigh",
    "length_fn": "measure",
    "bucket_boundaries": "boundaries",
    "max_batch_duration_secs": "max_duration_secs",
}
_NAMES = {field: name for name, field in _FIELDS.items()}


def policy_of(handler: Any) -> BatchPolicy:
    """The policy a handler asks for; works for any object with Beam's handler methods."""
    options = dict(handler.batch_elements_kwargs())
    if (max_bytes := getattr(handler, "_max_batch_bytes", None)) is not None:
        options["max_batch_bytes"] = max_bytes
    return BatchPolicy.of(options)


class Gatherer(Generic[ItemT]):
    """Collects elements, and hands on a batch whenever one is full.

    What is collected are items: anything that travels with its element, such as a window and a timestamp.
    """

    def __init__(self, policy: BatchPolicy, size: AdaptiveSize) -> None:
        self._policy = policy
        self._size = size
        self._open: dict[int, _Open[ItemT]] = {}

    def add(self, element: Any, item: ItemT) -> Sequence[list[ItemT]]:
        """Takes one element with its item; gives the batches that are full now, mostly none."""
        full: Sequence[list[ItemT]] = ()
        policy = self._policy
        bucket = policy.bucket(element)
        batch = self._open.get(bucket)
        n_bytes = size_in_bytes(element)
        weight = policy.weigh(element) if policy.weigh is not None else 1
        if batch is not None and (
            batch.n_bytes + n_bytes > policy.max_bytes
            or (policy.max_weight is not None and batch.weight + weight > policy.max_weight)
        ):
            full = [batch.items]
            batch = None
        if batch is None:
            batch = self._open[bucket] = _Open()
        batch.items.append(item)
        batch.n_bytes += n_bytes
        batch.weight += weight
        if len(batch.items) >= self._size.now:
            del self._open[bucket]
            full = [*full, batch.items]
        return full

    def flush(self) -> Sequence[list[ItemT]]:
        """Gives what is left, and forgets it."""
        left, self._open = self._open, {}
        return [batch.items for batch in left.values()]


class _Open(Generic[ItemT]):
    """A batch that still grows."""

    __slots__ = ("items", "n_bytes", "weight")

    def __init__(self) -> None:
        self.items: list[ItemT] = []
        self.n_bytes = 0
        self.weight: float = 0


class AdaptiveSize:
    """How many elements to put in a batch, found by measuring; one for each model of a process.

    Sizes double from the smallest allowed while a larger one makes an element at least a tenth cheaper. The
    size settles on the smallest that is within a twentieth of the best seen: on a processor, a large model
    is often fastest in small batches. The first call of a model is not counted: it warms caches up.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self.now = policy.min_size
        self._most = policy.max_size
        self._cost: dict[int, float] = {}
        self._calls = -1
        self._worse = 0
        self._lock = threading.Lock()
        self.settled = policy.min_size == policy.max_size

    def record(self, n_elements: int, seconds: float) -> None:
        """Learns from one call of the model with ``n_elements`` that took ``seconds``."""
        if self.settled:
            return
        with self._lock:
            self._calls += 1
            if self._calls == 0 or n_elements != self.now or self.settled:
                return
            self._cost[self.now] = min(seconds / n_elements, self._cost.get(self.now, float("inf")))
            if self._calls >= _CALLS_PER_SIZE:
                self._grow()

    def _grow(self) -> None:
        self._calls = 0
        smaller = [cost for size, cost in self._cost.items() if size < self.now]
        gained = not smaller or self._cost[self.now] < 0.9 * min(smaller)
        self._worse = 0 if gained else self._worse + 1
        if self._worse == _WORSE_IN_A_ROW or self.now >= self._most:
            best = min(self._cost.values())
            self.now = min(size for size, cost in self._cost.items() if cost <= 1.05 * best)
            self.settled = True
        else:
            self.now = min(2 * self.now, self._most)


_CALLS_PER_SIZE = 2
_WORSE_IN_A_ROW = 2
