"""Batch elements in memory, within the limits of a policy."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from math import inf
from operator import itemgetter
from typing import Any, Generic, TypeVar

import numpy as np

from runinference.batching.adaptive_size import AdaptiveSize
from runinference.batching.element_size import size_in_bytes
from runinference.batching.policy import (
    DEFAULT_MAX_BATCH_BYTES,
    DEFAULT_MAX_BATCH_SIZE,
    BatchPolicy,
)

ItemT = TypeVar("ItemT")

#: With a maximum padded size, a window has at least this many elements, with a total length of at least this
#: many maximum sizes, before it is sorted by length and divided into batches. The last batches of a window have
#: the most padding. For lengths distributed like those of texts, the padded size is about
#: 1 + 1.7 / WINDOW_BUDGETS times the total length.
WINDOW_ELEMENTS = 1_024
WINDOW_BUDGETS = 32


class Batch(list[ItemT]):
    """The items of a batch.

    Attributes:
        elements: The element of each item.
        opened: The time at which the first item was added, in nanoseconds.
    """

    __slots__ = ("elements", "opened")
    opened: int

    def __init__(self, items: Iterable[ItemT] = (), elements: Iterable[Any] = ()) -> None:
        super().__init__(items)
        self.elements = [*elements]


class Batcher(Generic[ItemT]):
    """A collector of items that emits a batch when it is full.

    An item is any value that belongs to an element, such as its window and timestamp. Each length bucket has its
    own batch, in arrival order, or sorted by length with a maximum padded size.

    Args:
        policy: The limits of a batch.
        size: The maximum number of elements.
        now: Returns the time when the current element came, in nanoseconds.
    """

    def __new__(cls, policy: BatchPolicy, *_: Any) -> Batcher[ItemT]:
        return super().__new__(_PlainBatcher if policy.has_only_size_limits else cls)

    def __init__(
        self, policy: BatchPolicy, size: AdaptiveSize, now: Callable[[], int] = time.time_ns
    ) -> None:
        self._policy = policy
        kind = _ArrivalOrderBucket if policy.max_padded_size is None else _LengthSortedBucket
        self._buckets: dict[int, _ArrivalOrderBucket[ItemT] | _LengthSortedBucket[ItemT]]
        self._buckets = defaultdict(lambda: kind(policy, size, now))

    def add(self, element: Any, item: ItemT) -> Sequence[Batch[ItemT]]:
        """Add an element with its item. Return the batches that are full now."""
        policy = self._policy
        length, weight = policy.length(element), policy.weight(element)
        bucket = self._buckets[bisect_right(policy.bucket_boundaries, length)]
        return bucket.add(element, item, length, size_in_bytes(element), weight)

    def flush(self) -> Sequence[Batch[ItemT]]:
        """Remove and return the remaining batches."""
        return [batch for bucket in self._buckets.values() for batch in bucket.flush()]


class _PlainBatcher(Batcher[ItemT]):
    """A batcher that limits only elements and bytes. It takes a third of the time per element."""

    def __init__(
        self, policy: BatchPolicy, size: AdaptiveSize, now: Callable[[], int] = time.time_ns
    ) -> None:
        self._max_bytes = policy.max_batch_bytes
        self._size = size
        self._now = now
        self._items: Batch[ItemT] = Batch()
        self._n_bytes = 0

    def add(self, element: Any, item: ItemT) -> Sequence[Batch[ItemT]]:
        is_array = type(element) is np.ndarray and not element.dtype.hasobject
        element_bytes = element.nbytes if is_array else size_in_bytes(element)  # saves a call
        n_bytes = self._n_bytes + element_bytes
        full: Sequence[Batch[ItemT]] = ()
        if n_bytes > self._max_bytes and self._items:
            full, n_bytes = self.flush(), element_bytes
        items = self._items
        if not items:
            items.opened = self._now()
        items.append(item)
        items.elements.append(element)
        self._n_bytes = n_bytes
        return [*full, *self.flush()] if len(items) >= self._size.current else full

    def flush(self) -> Sequence[Batch[ItemT]]:
        items, self._items, self._n_bytes = self._items, Batch(), 0
        return [items] if items else ()


class _ArrivalOrderBucket(Generic[ItemT]):
    """A batch in arrival order. It is full at its size, or if the next item would exceed a limit."""

    __slots__ = ("_max_bytes", "_max_weight", "_n_bytes", "_now", "_size", "_weight", "items")

    def __init__(self, policy: BatchPolicy, size: AdaptiveSize, now: Callable[[], int]) -> None:
        self._max_bytes = policy.max_batch_bytes
        self._max_weight = inf if policy.max_batch_weight is None else policy.max_batch_weight
        self._size = size
        self._now = now
        self._reset()

    def _reset(self) -> None:
        self.items: Batch[ItemT] = Batch()
        self._n_bytes = 0
        self._weight: float = 0

    def add(
        self, element: Any, item: ItemT, length: int, n_bytes: int, weight: float
    ) -> Sequence[Batch[ItemT]]:
        full: Sequence[Batch[ItemT]] = ()
        n_bytes += self._n_bytes
        weight += self._weight
        if (n_bytes > self._max_bytes or weight > self._max_weight) and self.items:
            n_bytes -= self._n_bytes
            weight -= self._weight
            full = self.flush()
        if not self.items:
            self.items.opened = self._now()
        self.items.append(item)
        self.items.elements.append(element)
        self._n_bytes = n_bytes
        self._weight = weight
        return [*full, *self.flush()] if len(self.items) >= self._size.current else full

    def flush(self) -> Sequence[Batch[ItemT]]:
        items = self.items
        self._reset()
        return [items] if items else ()


#: Length, bytes, weight, arrival, the element, and its item.
_Entry = tuple[int, int, float, int, Any, ItemT]


class _LengthSortedBucket(Generic[ItemT]):
    """A window of items, divided into batches of similar length, longest first.

    The shortest items, fewer than a batch, stay for the next window.
    """

    def __init__(self, policy: BatchPolicy, size: AdaptiveSize, now: Callable[[], int]) -> None:
        self._size = size
        self._now = now
        self._min_total_length = WINDOW_BUDGETS * (policy.max_padded_size or 0)
        self._max_bytes = max(DEFAULT_MAX_BATCH_BYTES, policy.max_batch_bytes)
        self._batch: _ArrivalOrderBucket[_Entry[ItemT]] = _ArrivalOrderBucket(policy, size, now)
        self._start_window([])

    def _start_window(self, rest: list[_Entry[ItemT]]) -> None:
        self._window = rest
        self._total_length = sum(length for length, *_ in rest)
        self._n_bytes = sum(n_bytes for _, n_bytes, *_ in rest)

    def add(
        self, element: Any, item: ItemT, length: int, n_bytes: int, weight: float
    ) -> Sequence[Batch[ItemT]]:
        self._window.append((length, n_bytes, weight, self._now(), element, item))
        self._total_length += length
        self._n_bytes += n_bytes
        if not self._is_full():
            return ()
        full, rest = self._divide()
        self._start_window(rest if full else [])
        return _get_items(full or [rest])

    def flush(self) -> Sequence[Batch[ItemT]]:
        full, rest = self._divide()
        self._start_window([])
        return _get_items([*full, rest] if rest else full)

    def _is_full(self) -> bool:
        n = len(self._window)
        return (
            (n >= WINDOW_ELEMENTS and self._total_length >= self._min_total_length)
            or n >= DEFAULT_MAX_BATCH_SIZE
            or self._n_bytes >= self._max_bytes
        )

    def _divide(self) -> tuple[list[list[_Entry[ItemT]]], list[_Entry[ItemT]]]:
        """Return the full batches of the window, and the rest."""
        full: list[list[_Entry[ItemT]]] = []
        batch = self._batch
        max_padded_size = self._size.max_padded_size or 0
        for entry in sorted(self._window, key=itemgetter(0), reverse=True):
            if batch.items and batch.items[0][0] * (len(batch.items) + 1) > max_padded_size:
                full += batch.flush()
            full += batch.add(None, entry, *entry[:3])
        rest = batch.flush()
        return full, rest[0] if rest else []


def _get_items(batches: list[list[_Entry[ItemT]]]) -> list[Batch[ItemT]]:
    return [_make_batch(entries) for entries in batches]


def _make_batch(entries: list[_Entry[ItemT]]) -> Batch[ItemT]:
    batch = Batch((entry[-1] for entry in entries), (entry[-2] for entry in entries))
    batch.opened = min(entry[3] for entry in entries)
    return batch
