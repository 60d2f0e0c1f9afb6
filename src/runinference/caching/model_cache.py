"""The models that a process holds: loaded once, lent while they are used, put away when there is no room."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from runinference.errors import OptionError


class CachedModel(Protocol):
    """What lies on a cache."""

    n_bytes: int

    def close(self) -> None:
        """Frees what the model holds; called once, after its last lease."""


@dataclass(frozen=True)
class CacheLimits:
    """How much a cache may hold.

    Attributes:
        models: The most models; None for any number.
        n_bytes: The most bytes of models, as far as each alone is smaller; None for any number.
        wait_secs: Seconds to wait for another lease to end where nothing can be put away. When they are over,
            the model is loaded all the same. A value of 0 does not wait.
    """

    models: int | None = None
    n_bytes: int | None = None
    wait_secs: float = 300.0

    def __post_init__(self) -> None:
        for name in ("models", "n_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"CacheLimits for {name} must be at least 1, and is {value!r}.")


class ModelCache:
    """Lends models by name.

    A model is loaded when it is first asked for, by one thread at a time; others that ask for it wait, those
    that ask for another do not. Where there is no room, the model that was used least recently is put away
    first, but never one that is lent; it takes room until it is closed. A load that fails leaves nothing behind.

    >>> class Model:
    ...     n_bytes = 1
    ...     def close(self): print("put away")
    >>> cache = ModelCache(CacheLimits(models=1))
    >>> with cache.lease("a", Model) as model:
    ...     pass
    >>> with cache.lease("b", Model) as model:
    ...     pass
    put away
    """

    def __init__(self, room: CacheLimits) -> None:
        self._room = room
        self._entries: OrderedDict[str, CacheEntry] = OrderedDict()
        self._leaving: list[CacheEntry] = []
        self._sizes: dict[str, int] = {}
        self._changed = threading.Condition()
        self._evictions = 0

    @contextmanager
    def lease(self, name: str, load: Callable[[], Any], *, beside: bool = False) -> Iterator[Any]:
        """Lends the model of a name for the length of the block.

        Args:
            name: Of the model.
            load: Makes the model, if it is not here.
            beside: Load it even where there is no room, because another must not be put away before this one
                is known to be good.
        """
        entry = self._enter(name)
        try:
            with entry.loading:
                if entry.model is None:
                    self._load(entry, load, beside)
            yield entry.model
        finally:
            self._leave(entry)

    def expire(self, name: str) -> None:
        """Puts a model away after its last lease, unless it is asked for again before."""
        with self._changed:
            if entry := self._entries.get(name):
                entry.expired = True
        self._put_away(self._taken(lambda: self._first(lambda entry: entry.expired)))

    def invalidate(self, name: str, model: Any) -> None:
        """Forgets a model that is stuck, or None for one that is stuck while it loads: who asks gets a fresh one.

        One that has taken its place by now stays.
        """
        with self._changed:
            entry = self._entries.get(name)
            if entry is None or entry.model is not model:
                return
            del self._entries[name]
            unused = entry.users == 0 and model is not None
            self._changed.notify_all()
        if unused:  # else who leaves last closes it
            model.close()

    def drain_evictions(self) -> int:
        """How many models were put away for others since this was last asked."""
        with self._changed:
            evictions, self._evictions = self._evictions, 0
            return evictions

    def names(self) -> list[str]:
        """The models that are loaded now, least recently used first."""
        with self._changed:
            return [name for name, entry in self._entries.items() if entry.model is not None]

    def _enter(self, name: str) -> CacheEntry:
        with self._changed:
            entry = self._entries.get(name)
            if entry is None:
                entry = self._entries[name] = CacheEntry(name)
            entry.users += 1
            entry.expired = False
            self._entries.move_to_end(name)
            return entry

    def _load(self, entry: CacheEntry, load: Callable[[], Any], beside: bool) -> None:
        self._make_room(entry, wait=not beside)
        try:
            model = load()
            self._sizes[entry.name] = int(model.n_bytes)
            entry.model = model
        finally:
            with self._changed:
                entry.coming = False
                self._changed.notify_all()

    def _leave(self, entry: CacheEntry) -> None:
        with self._changed:
            entry.users -= 1
            known = self._entries.get(entry.name) is entry
            if known and entry.users == 0 and entry.model is None:
                del self._entries[entry.name]
            forgotten = entry.model if not known and entry.users == 0 else None
            self._changed.notify_all()
        if forgotten is not None:
            forgotten.close()
        self._put_away(self._taken(lambda: self._first(lambda s: s.expired) or self._excess(None)))

    def _make_room(self, newcomer: CacheEntry, wait: bool) -> None:
        deadline = time.monotonic() + (self._room.wait_secs if wait else 0)
        while True:
            self._put_away(self._taken(lambda: self._excess(newcomer)))
            with self._changed:
                patience = deadline - time.monotonic()
                if patience <= 0 or (
                    self._is_known(newcomer) and self._fits(newcomer, self._leaving)
                ):
                    newcomer.coming = True
                    newcomer.expected = self._sizes.get(newcomer.name, 0)
                    return
                if self._excess(newcomer) is None:
                    self._changed.wait(patience)

    def _taken(self, choose: Callable[[], CacheEntry | None]) -> list[CacheEntry]:
        """Takes entries off the cache as long as ``choose`` finds one; they still take room."""
        taken = []
        with self._changed:
            while entry := choose():
                taken.append(self._entries.pop(entry.name))
                self._leaving.append(taken[-1])
            self._evictions += sum(not entry.expired for entry in taken)
        return taken

    def _put_away(self, taken: list[CacheEntry]) -> None:
        for entry in taken:
            try:
                entry.model.close()
            finally:
                with self._changed:
                    self._leaving.remove(entry)
                    self._changed.notify_all()

    def _excess(self, newcomer: CacheEntry | None) -> CacheEntry | None:
        """The entry to put away next so that the room suffices, if it does not."""
        return None if self._fits(newcomer) else self._first(lambda entry: True)

    def _first(self, wanted: Callable[[CacheEntry], bool]) -> CacheEntry | None:
        """The least recently used model that is not lent, among those wanted."""
        for entry in self._entries.values():
            if entry.users == 0 and entry.model is not None and wanted(entry):
                return entry
        return None

    def _is_known(self, newcomer: CacheEntry) -> bool:
        """Whether a model may be loaded beside others: one of unknown size loads alone, to be measured."""
        known = self._room.n_bytes is None or newcomer.name in self._sizes
        return known or not any(entry.coming for entry in self._entries.values())

    def _fits(self, newcomer: CacheEntry | None, leaving: Sequence[CacheEntry] = ()) -> bool:
        held = [
            entry for entry in self._entries.values() if entry.model is not None or entry.coming
        ]
        held += leaving
        n_models = len(held) + (newcomer is not None)
        n_bytes = sum(entry.n_bytes for entry in held)
        most_models, most_bytes = self._room.models, self._room.n_bytes
        if most_models is not None and n_models > most_models:
            return False
        if most_bytes is None or n_models <= 1:
            return True
        return n_bytes + (self._sizes.get(newcomer.name, 1) if newcomer else 0) <= most_bytes


class CacheEntry:
    """The place of one model."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model: Any = None
        self.users = 0
        self.expired = False
        self.coming = False
        self.expected = 0
        self.loading = threading.Lock()

    @property
    def n_bytes(self) -> int:
        return self.expected if self.model is None else int(self.model.n_bytes)
