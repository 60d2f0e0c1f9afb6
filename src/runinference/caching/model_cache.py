"""A cache of loaded models: least recently used (LRU) eviction, with limits on count and memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from runinference.checks import check_int, check_seconds


class CachedModel(Protocol):
    """A model that a cache can hold."""

    n_bytes: int

    def close(self) -> None:
        """Free the model. The cache calls this once, after the last user released the model."""


@dataclass(frozen=True)
class CacheLimits:
    """The limits of a cache.

    Attributes:
        max_models: The maximum number of models; None for no limit.
        max_bytes: The maximum number of bytes of all models; None for no limit. A single model may exceed it.
        wait_secs: Seconds to wait for a model to be released if all loaded models are in use. After that time,
            the new model is loaded beyond the limits. A value of 0 does not wait.
    """

    max_models: int | None = None
    max_bytes: int | None = None
    wait_secs: float = 300.0

    def on_worker(self) -> CacheLimits:
        """Return the limits on the worker that calls this."""
        return self

    def __post_init__(self) -> None:
        for name in ("max_models", "max_bytes"):
            if getattr(self, name) is not None:
                check_int(f"The {name} of a model cache", getattr(self, name))
        check_seconds("The wait_timeout_seconds of a model cache", self.wait_secs, may_be_0=True)


class ModelCache:
    """A thread-safe cache of models, by name.

    The first thread that acquires a model loads it, and other threads that acquire the same model wait. If a limit
    is reached, the least recently used model is evicted. Models in use are never evicted, and a model counts until
    it is closed.

    >>> class Model:
    ...     n_bytes = 1
    ...     def close(self): print("closed")
    >>> cache = ModelCache(CacheLimits(max_models=1))
    >>> with cache.acquire("a", Model) as model:
    ...     pass
    >>> with cache.acquire("b", Model) as model:
    ...     pass
    closed
    """

    def __init__(self, limits: CacheLimits) -> None:
        self._limits = limits
        self._is_unlimited = limits.max_models is None and limits.max_bytes is None
        self._entries: OrderedDict[Hashable, CacheEntry] = OrderedDict()
        self._closing: list[CacheEntry] = []
        self._sizes: dict[Hashable, int] = {}
        self._changed = threading.Condition()
        self._evictions = 0

    def acquire(
        self, name: Hashable, load: Callable[[], Any], *, exceed_limits: bool = False
    ) -> ModelUse:
        """Use a model until the end of a ``with`` block, and load it if the cache does not hold it.

        With ``exceed_limits``, load it at once even if no other model can be evicted. A model refresh needs this,
        because the old model stays in use until the new one is loaded. This also applies to another thread that
        loads it, and that would otherwise wait for the old model.
        """
        entry = self._start_use(name, exceed_limits)
        if entry.model is None:
            try:
                with entry.load_lock:
                    if entry.model is None:
                        self._load(entry, load)
            except BaseException:
                self._end_use(entry)
                raise
        return ModelUse(entry, self._end_use)

    def expire(self, name: Hashable) -> None:
        """Close a model when it is released, unless it is acquired again first."""
        with self._changed:
            if entry := self._entries.get(name):
                entry.expired = True
            self._sizes.pop(name, None)
        self._close(self._remove_while(self._next_expired))

    def invalidate(self, name: Hashable, model: Any) -> None:
        """Remove a model that hangs. Pass None if it hangs while loading.

        The next thread to acquire it reloads it. If the cache already holds another model under the
        name, that one stays.
        """
        with self._changed:
            entry = self._entries.get(name)
            if entry is None or entry.model is not model:
                return
            del self._entries[name]
            unused = entry.users == 0 and model is not None
            self._changed.notify_all()
        if unused:  # otherwise its last user closes it
            model.close()

    def drain_evictions(self) -> int:
        """Return the number of evictions since the last call."""
        if not self._evictions:
            return 0
        with self._changed:
            evictions, self._evictions = self._evictions, 0
            return evictions

    def has_loaded(self, name: Hashable) -> bool:
        """Return whether the cache holds a model, which may be evicted before it is acquired."""
        with self._changed:
            entry = self._entries.get(name)
            return entry is not None and entry.model is not None

    def has_room_for(self, name: Hashable) -> bool:
        """Return whether a model is loaded, or can be loaded without evicting another one.

        A model whose size is not known yet is expected to be as large as the others are on average.
        """
        if self._is_unlimited:
            return True
        with self._changed:
            entry = self._entries.get(name)
            if entry is not None and (entry.model is not None or entry.is_loading):
                return True
            sizes = self._sizes
            expected = sizes.get(name, sum(sizes.values()) // len(sizes) if sizes else 1)
            return self._fits(expected, self._closing)

    def names(self) -> list[Hashable]:
        """Return the names of the loaded models, least recently used first."""
        with self._changed:
            return [name for name, entry in self._entries.items() if entry.model is not None]

    def _start_use(self, name: Hashable, exceed_limits: bool) -> CacheEntry:
        with self._changed:
            entry = self._entries.get(name)
            if entry is None:
                entry = self._entries[name] = CacheEntry(name)
            entry.users += 1
            entry.expired = False
            if exceed_limits and not entry.may_exceed_limits:
                entry.may_exceed_limits = True
                self._changed.notify_all()
            self._entries.move_to_end(name)
            return entry

    def _load(self, entry: CacheEntry, load: Callable[[], Any]) -> None:
        self._make_room(entry)
        try:
            model = load()
            self._sizes[entry.name] = int(model.n_bytes)
            entry.model = model
        finally:
            with self._changed:
                entry.is_loading = False
                self._changed.notify_all()

    def _end_use(self, entry: CacheEntry) -> None:
        with self._changed:
            entry.users -= 1
            is_current = self._entries.get(entry.name) is entry
            if is_current and entry.users == 0 and entry.model is None:
                del self._entries[entry.name]
            invalid = entry.model if not is_current and entry.users == 0 else None
            self._changed.notify_all()
        if invalid is not None:
            invalid.close()
        if entry.expired or not self._is_unlimited:
            self._close(self._remove_while(lambda: self._next_expired() or self._next_excess(None)))

    def _make_room(self, new: CacheEntry) -> None:
        deadline = time.monotonic() + self._limits.wait_secs
        while True:
            self._close(self._remove_while(lambda: self._next_excess(new)))
            with self._changed:
                remaining = deadline - time.monotonic()
                may_load = self._may_load_now(new) and self._fits(self._size_of(new), self._closing)
                if remaining <= 0 or may_load or new.may_exceed_limits:
                    new.is_loading = True
                    new.expected_bytes = self._sizes.get(new.name, 0)
                    return
                if self._next_excess(new) is None:
                    self._changed.wait(remaining)

    def _remove_while(self, choose: Callable[[], CacheEntry | None]) -> list[CacheEntry]:
        """Remove entries for as long as ``choose`` returns one. They count until they are closed."""
        removed = []
        with self._changed:
            while entry := choose():
                removed.append(self._entries.pop(entry.name))
                self._closing.append(removed[-1])
            self._evictions += sum(not entry.expired for entry in removed)
        return removed

    def _close(self, removed: list[CacheEntry]) -> None:
        for entry in removed:
            try:
                entry.model.close()
            finally:
                with self._changed:
                    self._closing.remove(entry)
                    self._changed.notify_all()

    def _next_excess(self, new: CacheEntry | None) -> CacheEntry | None:
        """Return the entry to evict so that the models, with a new one, fit the limits."""
        return None if self._fits(self._size_of(new)) else next(self._unused(), None)

    def _next_expired(self) -> CacheEntry | None:
        return next((entry for entry in self._unused() if entry.expired), None)

    def _unused(self) -> Iterator[CacheEntry]:
        """Yield the entries with a loaded model that is not in use, least recently used first."""
        for entry in self._entries.values():
            if entry.users == 0 and entry.model is not None:
                yield entry

    def _may_load_now(self, new: CacheEntry) -> bool:
        """Return False for a model of unknown size while others load, because loading measures its size."""
        size_matters = self._limits.max_bytes is not None and new.name not in self._sizes
        return not size_matters or not any(entry.is_loading for entry in self._entries.values())

    def _size_of(self, new: CacheEntry | None) -> int | None:
        """Return the expected bytes of a model that is not loaded yet; None for no model."""
        return None if new is None else self._sizes.get(new.name, 1)

    def _fits(self, new_bytes: int | None, closing: Sequence[CacheEntry] = ()) -> bool:
        """Return whether the models, with a new one if its bytes are given, keep the limits."""
        max_models, max_bytes = self._limits.max_models, self._limits.max_bytes
        if self._is_unlimited:
            return True
        held = [e for e in self._entries.values() if e.model is not None or e.is_loading]
        held += closing
        n_models = len(held) + (new_bytes is not None)
        if max_models is not None and n_models > max_models:
            return False
        if max_bytes is None or n_models <= 1:
            return True
        n_bytes = sum(entry.n_bytes for entry in held)
        return n_bytes + (new_bytes or 0) <= max_bytes


class ModelUse:
    """The use of a model, which keeps the model loaded until the end of a ``with`` block.

    Attributes:
        model: The model.
    """

    __slots__ = ("_end", "_entry", "model")

    def __init__(self, entry: CacheEntry, end: Callable[[CacheEntry], None]) -> None:
        self.model = entry.model
        self._entry, self._end = entry, end

    def __enter__(self) -> Any:
        return self.model

    def __exit__(self, *_: Any) -> None:
        self.release()

    def release(self) -> None:
        """End the use. Call this once, unless the use is a ``with`` block."""
        self._end(self._entry)


class CacheEntry:
    """A model in a cache, with the number of its users."""

    def __init__(self, name: Hashable) -> None:
        self.name = name
        self.model: Any = None
        self.users = 0
        self.expired = False
        self.is_loading = False
        self.may_exceed_limits = False
        self.expected_bytes = 0
        self.load_lock = threading.Lock()

    @property
    def n_bytes(self) -> int:
        return self.expected_bytes if self.model is None else int(self.model.n_bytes)
