"""Watch a file pattern for new models, as a transform."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

from runinference.checks import check_positive, check_text
from runinference.errors import OptionError
from runinference.handlers.model_update import ModelMetadata
from runinference.handlers.options import KeywordsChecked
from runinference.serving.model_watcher import metadata_for_path, newest_file


class WatchFilePattern(KeywordsChecked, beam.PTransform):  # type: ignore[misc]
    """Emit a ``ModelMetadata`` for each new file that matches a pattern while the pipeline runs.

    ``RunInference(watch_model_pattern=...)`` does not need this transform: its workers poll the pattern
    themselves.

    Give each new model a new file name. Write the file elsewhere, and move it into place when it is complete.
    Files that are older than the pipeline are not emitted. Until a new file appears, the handler's own model is
    used.
    """

    def __init__(
        self, file_pattern: str, interval: float = 360, stop_timestamp: Any = MAX_TIMESTAMP
    ) -> None:
        """Create the transform.

        Args:
            file_pattern: A path on any file system that Beam reads, with ``*``, ``?`` and ``[...]``.
            interval: Seconds between polls.
            stop_timestamp: When to poll for the last time.
        """
        super().__init__()
        check_text("file_pattern", file_pattern)
        check_positive("interval", interval, " seconds")
        check_timestamp("stop_timestamp", stop_timestamp)
        self.file_pattern = file_pattern
        self.interval = interval
        self.stop_timestamp = stop_timestamp

    def expand(self, begin: Any) -> beam.PCollection:
        impulse = PeriodicImpulse(Timestamp.now(), self.stop_timestamp, self.interval)
        return (
            begin
            | "EachInterval" >> impulse
            | "Poll" >> beam.FlatMap(lambda _: newest_file(self.file_pattern))
            | "SingleKey" >> beam.WithKeys("").with_output_types(tuple[str, Any])
            | "KeepNewest" >> beam.ParDo(KeepNewest(Timestamp.now()))
        )


def check_timestamp(name: str, value: Any) -> None:
    """Raise `OptionError` unless a value is a Beam ``Timestamp`` or a number of seconds since the epoch."""
    try:
        Timestamp.of(value)
    except (TypeError, ValueError, OverflowError):
        raise OptionError(
            f"{name} must be a Timestamp or a number of seconds since the epoch, but is {value!r}."
        ) from None


class KeepNewest(beam.DoFn):  # type: ignore[misc]
    """Emit a file that is newer than the pipeline and than all files before it."""

    NEWEST = ReadModifyWriteStateSpec("newest", beam.coders.FastPrimitivesCoder())

    def __init__(self, began: Timestamp) -> None:
        self._began = float(began.micros) / 1e6

    def process(
        self, element: Any, newest: Any = beam.DoFn.StateParam(NEWEST)
    ) -> Iterator[ModelMetadata]:
        _, metadata = element
        stamp = (metadata.last_updated_in_seconds, metadata.path)
        if stamp <= (newest.read() or (self._began, "")):
            return
        newest.write(stamp)
        yield metadata_for_path(metadata.path)
