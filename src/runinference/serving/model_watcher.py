"""Watch a file pattern for new models, inside each worker process."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from apache_beam.io.filesystems import FileSystems
from apache_beam.utils.timestamp import MAX_TIMESTAMP

from runinference.errors import OptionError
from runinference.handlers.model_update import ModelMetadata

_LOGGER = logging.getLogger(__name__)

#: The time of the last change and the size of each known file, by path.
KnownFiles = Mapping[str, tuple[float, int]]

#: The largest number of files that a pipeline is built with. With more, files are new if they changed since then.
_MAX_KNOWN_FILES = 10_000


@dataclass(frozen=True)
class WatchConfig:
    """What to watch, and how often.

    Attributes:
        pattern: A path on any file system that Beam supports, with ``*``, ``?`` and ``[...]``.
        interval: Seconds between checks.
        began: When the pipeline was built, in seconds since the epoch.
        until: When to stop checking, in seconds since the epoch.
        known: The files that existed when the pipeline was built. None if they could not be listed: then, files
            that changed before ``began`` are known at the first check.
    """

    pattern: str
    interval: float
    began: float
    until: float
    known: tuple[tuple[str, tuple[float, int]], ...] | None = None

    @classmethod
    def create(
        cls, pattern: str, interval: float | None = None, stop_timestamp: Any = None
    ) -> WatchConfig:
        """List the files that exist now.

        Raises:
            OptionError: The stop time has passed, or no file system supports the pattern.
        """
        now = time.time()
        interval = 360 if interval is None else float(interval)
        until = float(MAX_TIMESTAMP if stop_timestamp is None else stop_timestamp)
        if until <= now:
            raise OptionError(
                f"stop_timestamp is {now - until:.0f} seconds ago, so {pattern!r} would never be polled. To fix "
                "this, set a time in the future."
            )
        try:
            FileSystems.get_filesystem(pattern)
        except ValueError as error:
            raise OptionError(
                f"The pattern {pattern!r} has no known file system: {error}"
            ) from error
        return cls(pattern, interval, now, until, _list_known(pattern))


class ModelWatcher:
    """A thread-safe poll for the newest file of a pattern: one thread checks, the others use the last result."""

    def __init__(self, watch: WatchConfig, now: Callable[[], float] = time.time) -> None:
        self._watch = watch
        self._now = now
        self._known: KnownFiles | None = None
        self._metadata: ModelMetadata | None = None
        self._next_check = 0.0
        self._check_lock = threading.Lock()

    def poll_latest(self) -> ModelMetadata | None:
        """Return the file that appeared or changed last since the pipeline began, or None.

        The same object is returned until there is a newer one.
        """
        now = self._now()
        if self._next_check <= now <= self._watch.until and self._check_lock.acquire(False):
            try:
                self._next_check = now + self._watch.interval
                self._check()
            finally:
                self._check_lock.release()
        return self._metadata

    def _check(self) -> None:
        new, self._known = find_new_files(self._watch, self._known)
        if new:
            self._metadata = new[-1]


def find_new_files(
    watch: WatchConfig, known: KnownFiles | None
) -> tuple[list[ModelMetadata], KnownFiles | None]:
    """Return the files that appeared or changed since the last check, oldest first, and all known files.

    A file that was moved under the pattern is new, even if it changed long ago. A listing that fails is logged,
    and finds nothing.

    Args:
        watch: The pattern.
        known: The files that were known after the last check; None before the first one.
    """
    try:
        files = _list_files(watch.pattern)
    except Exception as error:
        _LOGGER.error("Cannot look for %r: %s", watch.pattern, error)
        return [], known
    if known is None and watch.known is not None:
        known = dict(watch.known)
    elif known is None:
        known = _by_path(file for file in files if file.last_updated_in_seconds <= watch.began)
    found = _by_path(files)
    new = [path for path, stamp in found.items() if known.get(path) != stamp]
    new.sort(key=lambda path: (found[path][0], path))
    return [_make_metadata(path) for path in new], {**known, **found} if new else known


def _list_files(pattern: str) -> list[Any]:
    return [file for match in FileSystems.match([pattern]) for file in match.metadata_list]


def _list_known(pattern: str) -> tuple[tuple[str, tuple[float, int]], ...] | None:
    try:
        files = _list_files(pattern)
    except Exception as error:
        _LOGGER.warning("Cannot list the files of %r: %s", pattern, error)
        return None
    return tuple(_by_path(files).items()) if len(files) <= _MAX_KNOWN_FILES else None


def _by_path(files: Iterable[Any]) -> dict[str, tuple[float, int]]:
    return {file.path: (file.last_updated_in_seconds, file.size_in_bytes) for file in files}


def _make_metadata(path: str) -> ModelMetadata:
    """Return the metadata of a model file; its name is the file name without extension."""
    return ModelMetadata(model_id=path, model_name=os.path.splitext(os.path.basename(path))[0])
