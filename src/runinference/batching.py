"""Which elements share a call of the model: pure rules, no Beam.

A `BatchPolicy` says how large a batch may get, a `Gatherer` collects elements under it, and an
`AdaptiveSize` finds a good number of elements by measuring, where the options leave it open, and remembers
what did not fit into memory.
"""

from __future__ import annotations

import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from operator import itemgetter
from typing import Any, Generic, TypeVar

from runinference.errors import OptionError, UnknownOptionError, nearest

ItemT = TypeVar("ItemT")

#: Where one bucket of lengths ends when a length function comes without boundaries; Beam's values.
BUCKETS = (16, 32, 64, 128, 256, 512)
#: Beam lets a batch grow to as many elements; so do we, within the bytes below.
MOST_ELEMENTS = 10_000
#: Input bytes in a batch. Activations take a multiple of it.
MOST_BYTES = 64 << 20
#: With a budget on padded size, so many elements are gathered before they are sorted by length and cut into
#: batches, and so many budgets of real size. The last batches of a window are the ones that pad most: on
#: lengths that vary like those of texts, padding is about 1 + 1.7 ÷ (budgets in the window).
WINDOW_ELEMENTS = 1_024
WINDOW_BUDGETS = 32

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

    >>> size_in_bytes([np.zeros(8), {1: np.zeros(8)}]) - size_in_bytes(1)
    128
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
        max_padded: The most padded size, longest times count, in the units of ``measure``. Elements are
            sorted by length within a window, longest first, before they are cut into batches.
        max_duration_secs: Seconds an element may wait for others across bundles.
    """

    min_size: int = 1
    max_size: int = MOST_ELEMENTS
    max_bytes: int = MOST_BYTES
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
            raise UnknownOptionError(f"Batching has no option {name!r}.{nearest(name, known)}")
        if "measure" in fields and "max_padded" not in fields:
            fields.setdefault("boundaries", BUCKETS)
        if "boundaries" in fields:
            fields["boundaries"] = tuple(fields["boundaries"])
        if "max_size" not in fields and fields.get("min_size", 0) > MOST_ELEMENTS:
            fields["max_size"] = fields["min_size"]
        return cls(**fields)

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
        if self.weigh is not None and self.max_weight is None:
            raise OptionError("element_size_fn has no effect alone: give max_batch_weight too.")
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


def policy_of(handler: Any) -> BatchPolicy:
    """The policy a handler asks for; works for any object with Beam's handler methods.

    A handler around another one has the options of that one, unless it has its own.
    """
    options = dict(handler.batch_elements_kwargs())
    inside = getattr(handler, "_unkeyed", None)  # as ours and Beam's call it
    for name in BEYOND_BEAM:
        options[name] = getattr(handler, f"_{name}", getattr(inside, f"_{name}", None))
    return BatchPolicy.of(options)


class Gatherer(Generic[ItemT]):
    """Collects elements, and hands on a batch whenever one is full.

    What is collected are items: anything that travels with its element, such as a window and a timestamp.
    Each bucket of lengths is gathered by itself: as elements come, or, under a budget on padded size, sorted.
    """

    def __new__(cls, policy: BatchPolicy, size: AdaptiveSize) -> Gatherer[ItemT]:
        plain = policy.measure is None and policy.weigh is None and policy.max_weight is None
        return super().__new__(_PlainGatherer if plain else cls)

    def __init__(self, policy: BatchPolicy, size: AdaptiveSize) -> None:
        self._policy = policy
        self._size = size
        self._buckets: dict[int, _AsTheyCome[ItemT] | _SortedByLength[ItemT]] = {}

    def add(self, element: Any, item: ItemT) -> Sequence[list[ItemT]]:
        """Takes one element with its item; gives the batches that are full now, mostly none."""
        policy = self._policy
        length = 0 if policy.measure is None else policy.measure(element)
        weight = 1 if policy.weigh is None else policy.weigh(element)
        number = bisect_right(policy.boundaries, length)
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = self._new_bucket()
        return bucket.add(item, length, size_in_bytes(element), weight)

    def flush(self) -> Sequence[list[ItemT]]:
        """Gives what is left, and forgets it."""
        return [batch for bucket in self._buckets.values() for batch in bucket.flush()]

    def _new_bucket(self) -> _AsTheyCome[ItemT] | _SortedByLength[ItemT]:
        kind = _AsTheyCome if self._policy.max_padded is None else _SortedByLength
        return kind(self._policy, self._size)


class _PlainGatherer(Gatherer[ItemT]):
    """For a policy that counts elements and bytes alone: the same, at a third of the price."""

    def __init__(self, policy: BatchPolicy, size: AdaptiveSize) -> None:
        self._max_bytes = policy.max_bytes
        self._size = size
        self._items: list[ItemT] = []
        self._n_bytes = 0

    def add(self, element: Any, item: ItemT) -> Sequence[list[ItemT]]:
        try:
            own = element.nbytes
        except AttributeError:
            own = size_in_bytes(element)
        full: Sequence[list[ItemT]] = ()
        n_bytes = self._n_bytes + own
        if n_bytes > self._max_bytes and self._items:
            full, n_bytes = self.flush(), own
        items = self._items
        items.append(item)
        self._n_bytes = n_bytes
        return [*full, *self.flush()] if len(items) >= self._size.now else full

    def flush(self) -> Sequence[list[ItemT]]:
        items, self._items, self._n_bytes = self._items, [], 0
        return [items] if items else ()


class _AsTheyCome(Generic[ItemT]):
    """One batch that grows until it has its size, or until the next item would pass a limit."""

    __slots__ = ("_max_bytes", "_max_weight", "_n_bytes", "_size", "_weight", "items")

    def __init__(self, policy: BatchPolicy, size: AdaptiveSize) -> None:
        self._max_bytes = policy.max_bytes
        self._max_weight = inf if policy.max_weight is None else policy.max_weight
        self._size = size
        self._start()

    def _start(self) -> None:
        self.items: list[ItemT] = []
        self._n_bytes = 0
        self._weight: float = 0

    def add(self, item: ItemT, length: int, n_bytes: int, weight: float) -> Sequence[list[ItemT]]:
        full: Sequence[list[ItemT]] = ()
        n_bytes += self._n_bytes
        weight += self._weight
        if (n_bytes > self._max_bytes or weight > self._max_weight) and self.items:
            n_bytes -= self._n_bytes
            weight -= self._weight
            full = self.flush()
        self.items.append(item)
        self._n_bytes = n_bytes
        self._weight = weight
        return [*full, *self.flush()] if len(self.items) >= self._size.now else full

    def flush(self) -> Sequence[list[ItemT]]:
        items = self.items
        self._start()
        return [items] if items else ()


_Entry = tuple[int, int, float, ItemT]  # length, bytes, weight, and the item


class _SortedByLength(Generic[ItemT]):
    """A window of items, cut into batches of similar length; the longest are handed on first.

    What is left of a window, less than a batch of its shortest, waits for the next one.
    """

    def __init__(self, policy: BatchPolicy, size: AdaptiveSize) -> None:
        self._size = size
        self._enough = WINDOW_BUDGETS * (policy.max_padded or 0)
        self._max_bytes = max(MOST_BYTES, policy.max_bytes)
        self._batch: _AsTheyCome[_Entry[ItemT]] = _AsTheyCome(policy, size)
        self._open([])

    def _open(self, left: list[_Entry[ItemT]]) -> None:
        self._window = left
        self._total = sum(length for length, *_ in left)
        self._n_bytes = sum(n_bytes for _, n_bytes, *_ in left)

    def add(self, item: ItemT, length: int, n_bytes: int, weight: float) -> Sequence[list[ItemT]]:
        self._window.append((length, n_bytes, weight, item))
        self._total += length
        self._n_bytes += n_bytes
        if not self._is_full():
            return ()
        full, left = self._cut()
        self._open(left if full else [])
        return _items(full or [left])

    def flush(self) -> Sequence[list[ItemT]]:
        full, left = self._cut()
        self._open([])
        return _items([*full, left] if left else full)

    def _is_full(self) -> bool:
        n = len(self._window)
        return (
            (n >= WINDOW_ELEMENTS and self._total >= self._enough)
            or n >= MOST_ELEMENTS
            or self._n_bytes >= self._max_bytes
        )

    def _cut(self) -> tuple[list[list[_Entry[ItemT]]], list[_Entry[ItemT]]]:
        """The full batches of the window, and what is left."""
        full: list[list[_Entry[ItemT]]] = []
        batch = self._batch
        budget = self._size.budget or 0
        for entry in sorted(self._window, key=itemgetter(0), reverse=True):
            if batch.items and batch.items[0][0] * (len(batch.items) + 1) > budget:
                full += batch.flush()
            full += batch.add(entry, *entry[:3])
        left = batch.flush()
        return full, left[0] if left else []


def _items(batches: list[list[_Entry[ItemT]]]) -> list[list[ItemT]]:
    return [[item for *_, item in batch] for batch in batches]


class AdaptiveSize:
    """How many elements to put in a batch, found by measuring; one for each model of a process.

    Sizes double from the smallest allowed while a larger one makes an element at least a tenth cheaper. The
    size settles on the smallest that is within a twentieth of the best seen: on a processor, a large model
    is often fastest in small batches. The first call of a model is not counted: it warms caches up. As a call
    may have been slow for reasons of its own, the search begins anew after 64 calls, from half the size, then
    after twice as many, and so on.

    A policy with a budget on padded size needs no search: the budget decides, up to the most elements.

    Attributes:
        now: The elements that a batch may have now.
        budget: The padded size that a batch may have now; None where the policy has no budget.
        settled: Whether the search is over, for now.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self._fixed = policy.min_size == policy.max_size or policy.max_padded is not None
        self.settled = self._fixed
        self._least, self._most = policy.min_size, policy.max_size
        self._wanted = policy.min_size if policy.max_padded is None else policy.max_size
        self._elements = _Limit(policy.max_size)
        self._padded = None if policy.max_padded is None else _Limit(policy.max_padded)
        self._cost: dict[int, float] = {}
        self._calls = 0
        self._warm = False
        self._worse = 0
        self._rest = self._next_rest = _FIRST_REST
        self._lock = threading.Lock()
        self._put_in_force()

    def record(self, n_elements: int, seconds: float) -> None:
        """Learns from one call of the model with ``n_elements`` that took ``seconds`` and went well."""
        if self._fixed and not self._limited:
            return
        with self._lock:
            if self._limited:
                self._went_well(n_elements)
            if self._warm and not self._fixed and n_elements == self._wanted:
                self._learn(seconds / n_elements)
            self._warm = True
            self._put_in_force()

    def out_of_memory(self, n_elements: int, padded_size: int | None = None) -> None:
        """Learns that a call with ``n_elements`` did not fit into memory.

        From now on a batch has at most half as many elements, if need be fewer than ``min_batch_size``. With
        ``padded_size``, as the policy's ``padded_size(batch)`` gives it, the budget is halved instead, so that
        batches of short elements stay as large as they were. After 32 calls that went well the limit doubles,
        until it is what the options say; each time that it proves too high, it waits twice as long before
        it doubles again. The limit is that of this process, and as old as the model.
        """
        with self._lock:
            if padded_size is None or self._padded is None:
                self._elements.halve(n_elements)
            else:
                self._padded.halve(padded_size)
            self._put_in_force()

    def _went_well(self, n_elements: int) -> None:
        if n_elements >= self.now:
            self._elements.went_well()
        if self._padded is not None:
            self._padded.went_well()

    def _put_in_force(self) -> None:
        self.now = min(self._wanted, self._elements.now)
        self.budget = None if self._padded is None else self._padded.now
        self._limited = self._elements.below or (self._padded is not None and self._padded.below)

    def _learn(self, cost: float) -> None:
        if self.settled:
            self._rest -= 1
            if self._rest == 0:
                self._search_again()
            return
        self._cost[self._wanted] = min(cost, self._cost.get(self._wanted, cost))
        self._calls += 1
        if self._calls >= _CALLS_PER_SIZE:
            self._grow()

    def _search_again(self) -> None:
        self._next_rest = min(2 * self._next_rest, _LONGEST_REST)
        self._rest = self._next_rest
        self._cost.clear()
        self._calls = self._worse = 0
        self._wanted = max(self._least, self._wanted // 2)
        self.settled = False

    def _grow(self) -> None:
        self._calls = 0
        smaller = [cost for size, cost in self._cost.items() if size < self._wanted]
        gained = not smaller or self._cost[self._wanted] < 0.9 * min(smaller)
        self._worse = 0 if gained else self._worse + 1
        if self._worse == _WORSE_IN_A_ROW or self._wanted >= self._most:
            best = min(self._cost.values())
            self._wanted = min(size for size, cost in self._cost.items() if cost <= 1.05 * best)
            self.settled = True
        else:
            self._wanted = min(2 * self._wanted, self._most)


class _Limit:
    """What fits into memory: halved where it did not, doubled again after calls that went well."""

    def __init__(self, most: int) -> None:
        self.now = self._most = most
        self._well = 0
        self._grown = False
        self._patience = _PATIENCE

    @property
    def below(self) -> bool:
        return self.now < self._most

    def halve(self, amount: int) -> None:
        self.now = min(self.now, max(1, amount // 2))
        if self._grown:
            self._patience = min(2 * self._patience, _MOST_PATIENCE)
        self._grown = False
        self._well = 0

    def went_well(self) -> None:
        self._well += 1
        if self._well >= self._patience:
            self.now = min(2 * self.now, self._most)
            self._grown = True
            self._well = 0


_CALLS_PER_SIZE = 3
_FIRST_REST = 64
_LONGEST_REST = 8_192
_WORSE_IN_A_ROW = 2
_PATIENCE = 32
_MOST_PATIENCE = 8_192
