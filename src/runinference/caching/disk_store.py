"""Results of models in a folder, which the processes of a machine share."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from runinference.extras import need

#: Time in seconds that an operation waits for other processes.
_TIMEOUT_SECS = 5
#: After this time in seconds, claims of processes that died are removed from the folder. No call takes longer.
_MAX_CLAIM_SECS = 7 * 86_400


class DiskStore:
    """A store in a folder of a local disk, based on diskcache.

    Args:
        folder: The folder, which is created if it doesn't exist, for this user only.
        max_bytes: Maximum size of the folder. The results that were stored first are removed first.
        max_age_secs: Time in seconds after which a result is removed; None for no limit.

    Raises:
        ImportError: diskcache isn't installed.
        Exception: The folder can't be created, read or written.
    """

    def __init__(self, folder: str, max_bytes: int, max_age_secs: float | None) -> None:
        diskcache = need("diskcache", extra="cache")

        class Disk(diskcache.Disk):  # type: ignore[misc, name-defined]
            """Reads bytes only: diskcache would unpickle data that another program stored."""

            def fetch(self, mode: int, filename: Any, value: Any, read: bool) -> Any:
                is_bytes = mode in (diskcache.core.MODE_RAW, diskcache.core.MODE_BINARY)
                return super().fetch(mode, filename, value, read) if is_bytes else None

        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._max_bytes, self._max_age_secs = max_bytes, max_age_secs
        self._cache = diskcache.Cache(
            folder,
            timeout=_TIMEOUT_SECS,
            disk=Disk,
            size_limit=max_bytes,
            eviction_policy="least-recently-stored",
        )
        self._path = os.path.join(folder, diskcache.core.DBNAME)
        self._file = self._identify_file()

    def _identify_file(self) -> tuple[int, int]:
        found = os.stat(self._path)
        return found.st_dev, found.st_ino

    def _check_file(self) -> None:
        """Raise an error if the folder was deleted or replaced, because SQLite would use the deleted file."""
        if self._identify_file() != self._file:
            raise FileNotFoundError(f"The folder of {self._path} was replaced.")

    def read(self, names: Sequence[str]) -> dict[str, Any]:
        self._check_file()
        found = ((name, self._cache.get(f"result/{name}")) for name in names)
        return {name: entry for name, entry in found if entry is not None}

    def write(self, entries: Mapping[str, bytes]) -> None:
        self._check_file()
        with self._cache.transact():
            for name, entry in entries.items():
                if len(entry) < self._max_bytes:
                    self._cache.set(f"result/{name}", entry, expire=self._max_age_secs)

    def claim(self, names: Sequence[str], owner: bytes) -> set[str]:
        with self._cache.transact():
            return {
                name
                for name in names
                if self._cache.add(f"claim/{name}", owner, expire=_MAX_CLAIM_SECS)
            }

    def read_claims(self, names: Sequence[str]) -> dict[str, bytes]:
        found = ((name, self._cache.get(f"claim/{name}")) for name in names)
        return {name: owner for name, owner in found if isinstance(owner, bytes)}

    def write_heartbeat(self, owner: bytes, heartbeat: bytes) -> None:
        if heartbeat:
            self._cache.set(f"heartbeat/{owner.hex()}", heartbeat, expire=_MAX_CLAIM_SECS)
        else:
            self._cache.delete(f"heartbeat/{owner.hex()}")

    def read_heartbeats(self, owners: Collection[bytes]) -> dict[bytes, bytes]:
        return {owner: self._cache.get(f"heartbeat/{owner.hex()}") or b"" for owner in owners}

    def release(self, claims: Mapping[str, bytes]) -> None:
        with self._cache.transact():
            for name, owner in claims.items():
                if self._cache.get(f"claim/{name}") == owner:
                    self._cache.delete(f"claim/{name}")

    def close(self) -> None:
        self._cache.close()
