"""A store of results whose failures don't fail a call. It is paused if it is down, full, read-only or damaged."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from runinference.errors import describe

_T = TypeVar("_T")
_LOGGER = logging.getLogger(__name__)

#: Seconds for which a store isn't used after the first failure, and the maximum after several failures in a row.
_FIRST_PAUSE_SECS = 1.0
_MAX_PAUSE_SECS = 60.0


class ResultStore(Protocol):
    """Stores results by name, and which worker is calling the model for a name."""

    def read(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the entries that exist, by name."""

    def write(self, entries: Mapping[str, bytes]) -> None:
        """Store entries by name."""

    def claim(self, names: Sequence[str], owner: bytes) -> set[str]:
        """Set the owner of the names that have none, and return these."""

    def read_claims(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the owners of the names that have one."""

    def write_heartbeat(self, owner: bytes, heartbeat: bytes) -> None:
        """Store a value that shows that an owner is alive. An empty value deletes it."""

    def read_heartbeats(self, owners: Collection[bytes]) -> dict[bytes, bytes]:
        """Return the last value of each owner; an empty one if there is none."""

    def release(self, claims: Mapping[str, bytes]) -> None:
        """Remove the owner of the names that still have the given one."""

    def close(self) -> None:
        """Close files and connections."""


class GuardedStore:
    """A store whose failures are counted, and logged once, instead of being raised.

    After a failure, the operation is skipped for some time, which doubles with each failure in a row. If reading
    fails, all operations are skipped. Then the store is opened again, which creates a folder that was deleted.

    Args:
        open_store: Opens the store. Called on first use, and again after a failure.
        place: Where the store is, for the log, without secrets.
    """

    def __init__(self, open_store: Callable[[], ResultStore], place: str) -> None:
        self._open, self._place = open_store, place
        self._store: ResultStore | None = None
        self._lock = threading.RLock()  # the garbage collector may close the store in any thread
        # For each operation, the end of the pause, and the length of the next one.
        self._pauses: dict[str, tuple[float, float]] = {}
        self._has_warned = False
        self._errors = 0

    def read(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the entries that exist, by name; nothing if the store fails."""
        return self._try("read", lambda store: store.read(names), {}) if names else {}

    def write(self, entries: Mapping[str, bytes]) -> None:
        """Store entries by name."""
        self._try("write", lambda store: store.write(entries), None)

    def claim(self, names: Sequence[str], owner: bytes) -> set[str]:
        """Set the owner of the names that have none, and return these; all names if the store fails."""
        return self._try("claim", lambda store: store.claim(names, owner), set(names))

    def read_claims(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the owners of the names that have one; nothing if the store fails."""
        return self._try("claim", lambda store: store.read_claims(names), {})

    def write_heartbeat(self, owner: bytes, heartbeat: bytes) -> None:
        """Store a value that shows that an owner is alive. An empty value deletes it."""
        self._try("claim", lambda store: store.write_heartbeat(owner, heartbeat), None)

    def read_heartbeats(self, owners: Collection[bytes]) -> dict[bytes, bytes]:
        """Return the last value of each owner; an empty one if there is none, or if the store fails."""
        default = dict.fromkeys(owners, b"")
        return self._try("claim", lambda store: store.read_heartbeats(owners), default)

    def release(self, claims: Mapping[str, bytes]) -> None:
        """Remove the owner of the names that still have the given one."""
        self._try("claim", lambda store: store.release(claims), None)

    def report_damaged(self, error: Exception) -> None:
        """Count and log an entry that can't be used. Another result replaces it."""
        self._count(f"An entry of the cache {self._place} is ignored", error)

    def drain_errors(self) -> int:
        """Return how many operations have failed since the last call."""
        with self._lock:
            errors, self._errors = self._errors, 0
        return errors

    def close(self) -> None:
        """Close files and connections."""
        with self._lock:
            store, self._store = self._store, None
        if store is not None:
            try:
                store.close()
            except Exception:
                _LOGGER.debug("Closing the cache %s failed", self._place, exc_info=True)

    def _try(self, name: str, operate: Callable[[ResultStore], _T], default: _T) -> _T:
        now = time.monotonic()
        if any(self._pauses.get(each, (0, 0))[0] > now for each in ("read", name)):
            return default
        try:
            result = operate(self._get())
        except ImportError:
            raise
        except Exception as error:
            with self._lock:
                self._store = None  # other threads may still use it
            _, seconds = self._pauses.get(name, (0, _FIRST_PAUSE_SECS))
            self._pauses[name] = time.monotonic() + seconds, min(2 * seconds, _MAX_PAUSE_SECS)
            self._count(
                f"The cache {self._place} failed, and the model is called without it", error
            )
            return default
        self._pauses.pop(name, None)
        return result

    def _get(self) -> ResultStore:
        with self._lock:
            if self._store is None:
                self._store = self._open()
            return self._store

    def _count(self, message: str, error: Exception) -> None:
        with self._lock:
            self._errors += 1
            is_first, self._has_warned = not self._has_warned, True
        level = logging.WARNING if is_first else logging.DEBUG
        _LOGGER.log(level, "%s: %s", message, describe(error, 300))
