"""Read results from a store, and let one worker call the model for each result that is missing."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from runinference.caching.guarded_store import GuardedStore

#: Returns the values of the entries that exist, by name.
Read = Callable[[Sequence[str]], dict[str, Any]]
#: Calls the model for names. The second argument stores entries, and ends the claims of their names.
Call = Callable[[list[str], Callable[[Mapping[str, "bytes | None"]], None]], None]

_FIRST_POLL_SECS = 0.005
_MAX_POLL_SECS = 0.2
#: Maximum number of consecutive attempts to claim a name without an owner. If all fail, the store is damaged.
_MAX_ATTEMPTS = 100
#: Number of heartbeats of a worker within the time after which its claims expire.
_N_HEARTBEATS = 5


class SharedCalls:
    """Calls a model once for each name, across threads, processes and machines that use the same store.

    A worker claims the names that it calls the model for, and others wait for its results. To prevent deadlocks,
    it finishes its calls and ends its claims before it waits for others. While a call runs, its worker stores
    heartbeats. If they stop, the worker has died, and its claims are ignored. The waiting worker measures the time
    since the last heartbeat, so clocks may differ or change.

    Args:
        store: The store.
        claim_secs: Time in seconds from the last heartbeat of a worker until its claims expire.
        max_call_secs: Time in seconds after which heartbeats stop, because the call was abandoned; None for no
            limit.
    """

    def __init__(
        self, store: GuardedStore, claim_secs: float, max_call_secs: float | None = None
    ) -> None:
        self._store, self._claim_secs, self._max_call_secs = store, claim_secs, max_call_secs

    def resolve(
        self, names: Sequence[str], read: Read, call: Call, before_waiting: Callable[[], None]
    ) -> dict[str, Any]:
        """Read the values of different names, and call the model for the others.

        Args:
            names: The names.
            read: Returns the values that the store has, by name.
            call: Calls the model for some of the names.
            before_waiting: Called before this thread waits for the results of others.

        Returns:
            The values that were read, by name.
        """
        found = read(names)
        missing = [name for name in names if name not in found]
        attempts = 0
        while missing:
            owner = uuid.uuid4().bytes
            claimed = self._store.claim(missing, owner)
            attempts = 0 if claimed else attempts + 1
            if attempts == _MAX_ATTEMPTS:  # claims that can be neither read nor replaced
                claimed = set(missing)
            with _Claims(
                self._store, claimed, owner, self._claim_secs, self._max_call_secs
            ) as claims:
                # Another worker may have stored a result after the first read.
                stored = read([name for name in missing if name in claimed])
                claims.end(stored)
                found.update(stored)
                wanted = [name for name in missing if name in claimed and name not in stored]
                if wanted:
                    claims.keep_alive()
                    call(wanted, claims.finish)
            missing = [name for name in missing if name not in claimed]
            if missing:
                before_waiting()
                found.update(stored := self._wait(missing, read))
                attempts = 0 if stored else attempts
                missing = [name for name in missing if name not in stored]
        return found

    def _wait(self, names: Sequence[str], read: Read) -> dict[str, Any]:
        """Wait until the store has the results of all names, or a name without a result can be claimed."""
        found: dict[str, Any] = {}
        seen: dict[
            bytes, tuple[bytes, float]
        ] = {}  # the last heartbeat of each owner, and when it was first seen
        pause = _FIRST_POLL_SECS
        while True:
            waiting = [name for name in names if name not in found]
            claims = self._store.read_claims(waiting)
            found.update(read([name for name in waiting if name not in claims]))
            if len(found) == len(names) or any(
                name not in claims and name not in found for name in waiting
            ):
                return found
            now = time.monotonic()
            for owner, heartbeat in self._store.read_heartbeats({*claims.values()}).items():
                if owner not in seen or seen[owner][0] != heartbeat:
                    seen[owner] = heartbeat, now
            dead = {owner for owner, (_, since) in seen.items() if now - since > self._claim_secs}
            if expired := {name: owner for name, owner in claims.items() if owner in dead}:
                self._store.release(expired)
                return found
            time.sleep(pause)
            pause = min(2 * pause, _MAX_POLL_SECS)


class _Claims:
    """The claims of one call, which end with it."""

    def __init__(
        self,
        store: GuardedStore,
        names: Iterable[str],
        owner: bytes,
        claim_secs: float,
        max_call_secs: float | None,
    ) -> None:
        self._store, self._owner = store, owner
        self._claims: dict[str, bytes] = dict.fromkeys(names, owner)
        self._claim_secs, self._max_call_secs = claim_secs, max_call_secs
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> _Claims:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        with self._lock:
            self._end([*self._claims])

    def keep_alive(self) -> None:
        """Send heartbeats from another thread until the claims end."""
        threading.Thread(
            target=self._send_heartbeats, daemon=True, name="runinference-cache-claims"
        ).start()

    def end(self, names: Iterable[str]) -> None:
        """End the claims of names."""
        with self._lock:
            self._end([*names])

    def finish(self, entries: Mapping[str, bytes | None]) -> None:
        """Store the entries of names, and end their claims. A result that can't be stored has no entry."""
        stored = {name: entry for name, entry in entries.items() if entry is not None}
        if stored:
            self._store.write(stored)
        self.end(entries)

    def _end(self, names: Sequence[str]) -> None:
        claims = {name: self._claims.pop(name) for name in names if name in self._claims}
        if claims:
            self._store.release(claims)

    def _send_heartbeats(self) -> None:
        start = time.monotonic()
        number = 0
        while not self._ended.wait(self._claim_secs / _N_HEARTBEATS):
            if self._max_call_secs is not None and time.monotonic() - start > self._max_call_secs:
                return
            number += 1
            self._store.write_heartbeat(self._owner, str(number).encode())
        if number:
            self._store.write_heartbeat(self._owner, b"")
