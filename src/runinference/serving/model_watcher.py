"""Looks for a new model file now and then, from inside a worker: any runner will do."""

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
    """What to look for.

    Attributes:
        pattern: A path on any file system that Beam reads, with ``*``, ``?`` and ``[...]``.
        interval: Seconds from one look to the next.
        began: Seconds since 1970; older files are of no interest.
        until: Seconds since 1970 when to look for the last time.
    """

    pattern: str
    interval: float
    began: float
    until: float


class ModelWatcher:
    """The newest file of a pattern, for all threads of a process; one of them looks, the others do not wait."""

    def __init__(self, watch: WatchConfig, now: Callable[[], float] = time.time) -> None:
        self._watch = watch
        self._now = now
        self._newest: tuple[float, str] = (watch.began, "")
        self._metadata: ModelMetadata | None = None
        self._due = 0.0
        self._looking = threading.Lock()

    def poll_latest(self) -> ModelMetadata | None:
        """Names the newest file that is younger than the pipeline; the same object while it is the newest."""
        now = self._now()
        if self._due <= now <= self._watch.until and self._looking.acquire(blocking=False):
            try:
                self._due = now + self._watch.interval
                self._look()
            finally:
                self._looking.release()
        return self._metadata

    def _look(self) -> None:
        try:
            found = newest_file(self._watch.pattern)
        except Exception as error:
            _LOGGER.error("Cannot look for %r: %s", self._watch.pattern, error)
            return
        for metadata in found:
            stamp = (metadata.last_updated_in_seconds, metadata.path)
            if stamp > self._newest:
                self._newest = stamp
                self._metadata = metadata_for_path(metadata.path)


def newest_file(pattern: str) -> list[Any]:
    """The metadata of the newest file under a pattern, or nothing where there is none."""
    [match] = FileSystems.match([pattern])
    files = match.metadata_list
    return [max(files, key=lambda file: (file.last_updated_in_seconds, file.path))] if files else []


def metadata_for_path(path: str) -> ModelMetadata:
    """Names the model in a file: by its path, and for people by the file's name without its ending."""
    return ModelMetadata(model_id=path, model_name=os.path.splitext(os.path.basename(path))[0])
