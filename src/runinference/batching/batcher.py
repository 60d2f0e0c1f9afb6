"""Elements are collected, and handed on as a batch whenever one is full."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import inf
from operator import itemgetter
from typing import Any, Generic, TypeVar

from runinference.batching.adaptive_size import AdaptiveSize
from runinference.batching.policy import (
    DEFAULT_MAX_BATCH_BYTES,
    DEFAULT_MAX_BATCH_SIZE,
    BatchPolicy,
    size_in_bytes,
)

ItemT = TypeVar("ItemT")

#: With a budget on padded size, so many elements are gathered before they are sorted by length and cut into
#: batches, and so many budgets of real size. The last batches of a window are the ones that pad most: on
#: lengths that vary like those of texts, padding is about 1 + 1.7 ÷ (budgets in the window).
WINDOW_ELEMENTS = 1_024
WINDOW_BUDGETS = 32


class Batcher(Generic[ItemT]):
    """Collects elements, and hands on a batch whenever one is full.

    What is collected are items: anything that travels with its element, such as a window and a timestamp.
    Each bucket of lengths is gathered by itself: as elements come, or, under a budget on padded size, sorted.
    """

    def __new__(cls, policy: BatchPolicy, size: AdaptiveSize) -> Batcher[ItemT]:
        return super().__new__(_PlainBatcher if policy.has_only_size_limits else cls)

    def __init__(self, policy: BatchPolicy, size: AdaptiveSize) -> None:
        self._policy = policy
        self._size = size
        self._buckets: dict[int, _ArrivalOrderBucket[ItemT] | _LengthSortedBucket[ItemT]] = {}

    def add(self, element: Any, item: ItemT) -> Sequence[list[ItemT]]:
        """Takes one element with its item; gives the batches that are full now, mostly none."""
        policy = self._policy
        length = 0 if policy.length_fn is None else policy.length_fn(element)
        weight = 1 if policy.element_size_fn is None else policy.element_size_fn(element)
        number = bisect_right(policy.bucket_boundaries, length)
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = self._new_bucket()
        return bucket.add(item, length, size_in_bytes(element), weight)

    def flush(self) -> Sequence[list[ItemT]]:
        """Gives what is left, and forgets it."""
        return [batch for bucket in self._buckets.values() for batch in bucket.flush()]

    def _new_bucket(self) -> _ArrivalOrderBucket[ItemT] | _LengthSortedBucket[ItemT]:
        kind = _ArrivalOrderBucket if self._policy.max_padded_size is None else _LengthSortedBucket
        return kind(self._policy, self._size)


class _PlainBatcher(Batcher[ItemT]):
    """For a policy that counts elements and bytes alone: the same, at a third of the price."""

    def __init__(self, policy: BatchPolicy, size: AdaptiveSize) -> None:
        self._max_bytes = policy.max_batch_bytes
        self._size = size
        self._items: list[ItemT] = []
        self._n_bytes = 0

    def add(self, element: Any, item: ItemT) -> Sequence[list[ItemT]]:
        own = size_in_bytes(element)
        n_bytes = self._n_bytes + own
        full: Sequence[list[ItemT]] = ()
        if n_bytes > self._max_bytes and self._items:
            full, n_bytes = self.flush(), own
        items = self._items
        items.append(item)
        self._n_bytes = n_bytes
        return [*full, *self.flush()] if len(items) >= self._size.current else full

    def flush(self) -> Sequence[list[ItemT]]:
        items, self._items, self._n_bytes = self._items, [], 0
        return [items] if items else ()


class _ArrivalOrderBucket(Generic[ItemT]):
    """One batch that grows until it has its size, or until the next item would pass a limit."""

    __slots__ = ("_max_bytes", "_max_weight", "_n_bytes", "_size", "_weight", "items")

    def __init__(self, policy: BatchPolicy, size: AdaptiveSize) -> None:
        self._max_bytes = policy.max_batch_bytes
        self._max_weight = inf if policy.max_batch_weight is None else policy.max_batch_weight
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
        return [*full, *self.flush()] if len(self.items) >= self._size.current else full

    def flush(self) -> Sequence[list[ItemT]]:
        items = self.items
        self._start()
        return [items] if items else ()


_Entry = tuple[int, int, float, ItemT]  # length, bytes, weight, and the item


class _LengthSortedBucket(Generic[ItemT]):
    """A window of items, cut into batches of similar length; the longest are handed on first.

    What is left of a window, less than a batch of its shortest, waits for the next one.
    """

    def __init__(self, policy: BatchPolicy, size: AdaptiveSize) -> None:
        self._size = size
        self._enough = WINDOW_BUDGETS * (policy.max_padded_size or 0)
        self._max_bytes = max(DEFAULT_MAX_BATCH_BYTES, policy.max_batch_bytes)
        self._batch: _ArrivalOrderBucket[_Entry[ItemT]] = _ArrivalOrderBucket(policy, size)
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
            or n >= DEFAULT_MAX_BATCH_SIZE
            or self._n_bytes >= self._max_bytes
        )

    def _cut(self) -> tuple[list[list[_Entry[ItemT]]], list[_Entry[ItemT]]]:
        """The full batches of the window, and what is left."""
        full: list[list[_Entry[ItemT]]] = []
        batch = self._batch
        budget = self._size.max_padded_size or 0
        for entry in sorted(self._window, key=itemgetter(0), reverse=True):
            if batch.items and batch.items[0][0] * (len(batch.items) + 1) > budget:
                full += batch.flush()
            full += batch.add(entry, *entry[:3])
        left = batch.flush()
        return full, left[0] if left else []


def _items(batches: list[list[_Entry[ItemT]]]) -> list[list[ItemT]]:
    return [[item for *_, item in batch] for batch in batches]
