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


class Closeable(Protocol):
    """What lies on a shelf."""

    n_bytes: int

    def close(self) -> None:
        """Frees what the model holds; called once, after its last lease."""


@dataclass(frozen=True)
class Room:
    """How much a shelf may hold.

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
                raise OptionError(f"Room for {name} must be at least 1, and is {value!r}.")


class Shelf:
    """Lends models by name.

    A model is loaded when it is first asked for, by one thread at a time; others that ask for it wait, those
    that ask for another do not. Where there is no room, the model that was used least recently is put away
    first, but never one that is lent; it takes room until it is closed. A load that fails leaves nothing behind.

    >>> class Model:
    ...     n_bytes = 1
    ...     def close(self): print("put away")
    >>> shelf = Shelf(Room(models=1))
    >>> with shelf.lease("a", Model) as model:
    ...     pass
    >>> with shelf.lease("b", Model) as model:
    ...     pass
    put away
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._leaving: list[_Slot] = []
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
        slot = self._enter(name)
        try:
            with slot.loading:
                if slot.model is None:
                    self._load(slot, load, beside)
            yield slot.model
        finally:
            self._leave(slot)

    def retire(self, name: str) -> None:
        """Puts a model away after its last lease, unless it is asked for again before."""
        with self._changed:
            if slot := self._slots.get(name):
                slot.retired = True
        self._put_away(self._taken(lambda: self._first(lambda slot: slot.retired)))

    def give_up(self, name: str, model: Any) -> None:
        """Forgets a model that is stuck, or None for one that is stuck while it loads: who asks gets a fresh one.

        One that has taken its place by now stays.
        """
        with self._changed:
            slot = self._slots.get(name)
            if slot is None or slot.model is not model:
                return
            del self._slots[name]
            unused = slot.leases == 0 and model is not None
            self._changed.notify_all()
        if unused:  # else who leaves last closes it
            model.close()

    def take_evictions(self) -> int:
        """How many models were put away for others since this was last asked."""
        with self._changed:
            evictions, self._evictions = self._evictions, 0
            return evictions

    def names(self) -> list[str]:
        """The models that are loaded now, least recently used first."""
        with self._changed:
            return [name for name, slot in self._slots.items() if slot.model is not None]

    def _enter(self, name: str) -> _Slot:
        with self._changed:
            slot = self._slots.get(name)
            if slot is None:
                slot = self._slots[name] = _Slot(name)
            slot.leases += 1
            slot.retired = False
            self._slots.move_to_end(name)
            return slot

    def _load(self, slot: _Slot, load: Callable[[], Any], beside: bool) -> None:
        self._make_room(slot, wait=not beside)
        try:
            model = load()
            self._sizes[slot.name] = int(model.n_bytes)
            slot.model = model
        finally:
            with self._changed:
                slot.coming = False
                self._changed.notify_all()

    def _leave(self, slot: _Slot) -> None:
        with self._changed:
            slot.leases -= 1
            known = self._slots.get(slot.name) is slot
            if known and slot.leases == 0 and slot.model is None:
                del self._slots[slot.name]
            forgotten = slot.model if not known and slot.leases == 0 else None
            self._changed.notify_all()
        if forgotten is not None:
            forgotten.close()
        self._put_away(self._taken(lambda: self._first(lambda s: s.retired) or self._excess(None)))

    def _make_room(self, newcomer: _Slot, wait: bool) -> None:
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

    def _taken(self, choose: Callable[[], _Slot | None]) -> list[_Slot]:
        """Takes slots off the shelf as long as ``choose`` finds one; they still take room."""
        taken = []
        with self._changed:
            while slot := choose():
                taken.append(self._slots.pop(slot.name))
                self._leaving.append(taken[-1])
            self._evictions += sum(not slot.retired for slot in taken)
        return taken

    def _put_away(self, taken: list[_Slot]) -> None:
        for slot in taken:
            try:
                slot.model.close()
            finally:
                with self._changed:
                    self._leaving.remove(slot)
                    self._changed.notify_all()

    def _excess(self, newcomer: _Slot | None) -> _Slot | None:
        """The slot to put away next so that the room suffices, if it does not."""
        return None if self._fits(newcomer) else self._first(lambda slot: True)

    def _first(self, wanted: Callable[[_Slot], bool]) -> _Slot | None:
        """The least recently used model that is not lent, among those wanted."""
        for slot in self._slots.values():
            if slot.leases == 0 and slot.model is not None and wanted(slot):
                return slot
        return None

    def _is_known(self, newcomer: _Slot) -> bool:
        """Whether a model may be loaded beside others: one of unknown size loads alone, to be measured."""
        known = self._room.n_bytes is None or newcomer.name in self._sizes
        return known or not any(slot.coming for slot in self._slots.values())

    def _fits(self, newcomer: _Slot | None, leaving: Sequence[_Slot] = ()) -> bool:
        held = [slot for slot in self._slots.values() if slot.model is not None or slot.coming]
        held += leaving
        n_models = len(held) + (newcomer is not None)
        n_bytes = sum(slot.n_bytes for slot in held)
        most_models, most_bytes = self._room.models, self._room.n_bytes
        if most_models is not None and n_models > most_models:
            return False
        if most_bytes is None or n_models <= 1:
            return True
        return n_bytes + (self._sizes.get(newcomer.name, 1) if newcomer else 0) <= most_bytes


class _Slot:
    """The place of one model."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model: Any = None
        self.leases = 0
        self.retired = False
        self.coming = False
        self.expected = 0
        self.loading = threading.Lock()

    @property
    def n_bytes(self) -> int:
        return self.expected if self.model is None else int(self.model.n_bytes)
