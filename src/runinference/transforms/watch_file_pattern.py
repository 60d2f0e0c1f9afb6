"""Watches files for a new model, and names it to a running pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

from runinference.errors import OptionError
from runinference.handlers.model_update import ModelMetadata
from runinference.handlers.options import KeywordsChecked
from runinference.serving.model_watcher import metadata_for_path, newest_file


class WatchFilePattern(KeywordsChecked, beam.PTransform):  # type: ignore[misc]
    """Emits a ``ModelMetadata`` for each file that appears under a pattern while the pipeline runs.

    ``RunInference(watch_model_pattern=...)`` does not need it: its workers look for themselves.

    Give a new model a new name: write it elsewhere, and move it there when it is complete. Files that were there
    before the pipeline began are not emitted: until one appears, the handler's own model serves.
    """

    def __init__(
        self, file_pattern: str, interval: float = 360, stop_timestamp: Any = MAX_TIMESTAMP
    ) -> None:
        """Says what to watch, and how often.

        Args:
            file_pattern: A path on any file system that Beam reads, with ``*``, ``?`` and ``[...]``.
            interval: Seconds from one look to the next.
            stop_timestamp: When to look for the last time.
        """
        super().__init__()
        self.file_pattern = file_pattern
        self.interval = interval
        self.stop_timestamp = stop_timestamp

    def expand(self, begin: Any) -> beam.PCollection:
        return (
            begin
            | "EachInterval"
            >> PeriodicImpulse(
                start_timestamp=Timestamp.now(),
                stop_timestamp=self.stop_timestamp,
                fire_interval=self.interval,
            )
            | "Look" >> beam.FlatMap(lambda _: newest_file(self.file_pattern))
            | "InOneState" >> beam.WithKeys("").with_output_types(tuple[str, Any])
            | "KeepNewest" >> beam.ParDo(_Newest(Timestamp.now()))
        )


class _Newest(beam.DoFn):  # type: ignore[misc]
    """Lets the newest file pass, once; the first time, only if it is newer than the pipeline."""

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


class AsLatest(beam.pvalue.AsSideInput):  # type: ignore[misc]
    """A side input of which the element with the latest timestamp counts; None where there is none.

    A singleton would do where a runner replaces an element by the next, and is an error where it keeps both.
    """

    def __init__(self, updates: beam.PCollection) -> None:
        super().__init__(updates | "WithTimestamp" >> beam.Map(_with_timestamp))

    def __repr__(self) -> str:
        return f"AsLatest({self.pvalue})"

    @staticmethod
    def _from_runtime_iterable(stamped: Iterable[tuple[int, Any]], options: Any) -> Any:
        latest: dict[str, Any] = {}
        at = None
        for micros, update in stamped:
            if at is None or micros > at:
                at, latest = micros, {}
            if micros == at:
                latest[repr(update)] = update
        if len(latest) > 1:
            raise OptionError(
                f"{len(latest)} model refreshes have the same timestamp: {', '.join(latest)}. Give each a "
                "timestamp of its own, or emit one."
            )
        return next(iter(latest.values()), None)


def _with_timestamp(update: Any, at: Any = beam.DoFn.TimestampParam) -> tuple[int, Any]:
    return at.micros, update
