"""Where a model lives: loaded once in a process, lent to its threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from apache_beam.utils.shared import Shared

from runinference.batching import AdaptiveSize, BatchPolicy

ModelT = TypeVar("ModelT")


class Shelf(Generic[ModelT]):
    """The place of one model in this process, and of what is known about calling it.

    Threads that come while the model loads wait for it; a load that fails leaves the place empty, and the
    next that comes tries again.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self.batch_size = AdaptiveSize(policy)
        self._lock = threading.Lock()
        self._loaded: list[ModelT] = []

    @contextmanager
    def lease(self, load: Callable[[], ModelT]) -> Iterator[ModelT]:
        """Lends the model for the length of the block, loading it first if need be."""
        with self._lock:
            if not self._loaded:
                self._loaded.append(load())
            model = self._loaded[0]
        yield model


class ShelfOfProcess:
    """Finds the shelf of a step in whatever process asks.

    Made with the transform and sent to the workers with it: all copies of it in a process find the same
    shelf. A shelf holds any model, also one that cannot be weakly referenced, such as a dictionary.
    """

    def __init__(self) -> None:
        self._shared = Shared()

    def open(self, policy: BatchPolicy) -> Shelf[Any]:
        """The shelf; it lives as long as somebody holds it."""
        shelf: Shelf[Any] = self._shared.acquire(lambda: Shelf(policy))
        return shelf
