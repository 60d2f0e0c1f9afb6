"""Watch a file pattern for new models, inside each worker process."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from apache_beam.io.filesystems import FileSystems

from runinference.handlers.model_update import ModelMetadata

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class WatchConfig:
    """The configuration of a `ModelWatcher`.

    Attributes:
        pattern: A path on any file system that Beam supports, with ``*``, ``?`` and ``[...]``.
        interval: Seconds between checks.
        began: Start of the pipeline in seconds since the epoch. Older files are ignored.
        until: When to stop checking, in seconds since the epoch.
    """

    pattern: str
    interval: float
    began: float
    until: float


class ModelWatcher:
    """A thread-safe poll for the newest file of a pattern: one thread checks, the others use the last result."""

    def __init__(self, watch: WatchConfig, now: Callable[[], float] = time.time) -> None:
        self._watch = watch
        self._now = now
        self._newest: tuple[float, str] = (watch.began, "")
        self._metadata: ModelMetadata | None = None
        self._next_check = 0.0
        self._check_lock = threading.Lock()

    def poll_latest(self) -> ModelMetadata | None:
        """Return the newest file since the pipeline began; the same object until there is a newer one."""
        now = self._now()
        if self._next_check <= now <= self._watch.until and self._check_lock.acquire(False):
            try:
                self._next_check = now + self._watch.interval
                self._check()
            finally:
                self._check_lock.release()
        return self._metadata

    def _check(self) -> None:
        try:
            found = newest_file(self._watch.pattern)
        except Exception as error:
            _LOGGER.error("Cannot look for %r: %s", self._watch.pattern, error)
            return
        for metadata in found:
            version = (metadata.last_updated_in_seconds, metadata.path)
            if version > self._newest:
                self._newest = version
                self._metadata = metadata_for_path(metadata.path)


def newest_file(pattern: str) -> list[Any]:
    """Return the metadata of the newest file that matches a pattern, as a list of at most one."""
    [match] = FileSystems.match([pattern])
    files = match.metadata_list
    return [max(files, key=lambda file: (file.last_updated_in_seconds, file.path))] if files else []


def metadata_for_path(path: str) -> ModelMetadata:
    """Return the metadata of a model file; its name is the file name without extension."""
    return ModelMetadata(model_id=path, model_name=os.path.splitext(os.path.basename(path))[0])
