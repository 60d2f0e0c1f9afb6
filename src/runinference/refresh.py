"""Watches files for a new model, and names it to a running pipeline."""

from __future__ import annotations

import os
from typing import Any

import apache_beam as beam
from apache_beam.io.fileio import EmptyMatchTreatment, MatchContinuously
from apache_beam.transforms import trigger, window
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

from runinference.options import refuse_unknown
from runinference.updates import ModelMetadata


class WatchFilePattern(beam.PTransform):  # type: ignore[misc]
    """Emits a ``ModelMetadata`` for each file that appears under a pattern while the pipeline runs.

    Give a new model a new name: write it elsewhere, and move it there when it is complete. Files that were there
    before the pipeline began are not emitted: until one appears, the handler's own model serves.
    """

    def __new__(cls, *args: Any, **options: Any) -> Any:
        refuse_unknown(cls, options)
        return super().__new__(cls)

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
            | "MatchContinuously"
            >> MatchContinuously(
                file_pattern=self.file_pattern,
                interval=self.interval,
                stop_timestamp=self.stop_timestamp,
                empty_match_treatment=EmptyMatchTreatment.DISALLOW,
            )
            | "TogetherInOneState" >> beam.WithKeys("")
            | "KeepNewest" >> beam.ParDo(_Newest(Timestamp.now()))
            | "ToGlobalWindow"
            >> beam.WindowInto(
                window.GlobalWindows(),
                trigger=trigger.Repeatedly(trigger.AfterProcessingTime(1)),
                accumulation_mode=trigger.AccumulationMode.DISCARDING,
            )
        )


class _Newest(beam.DoFn):  # type: ignore[misc]
    """Lets the newest file pass, once; the first time, only if it is newer than the pipeline."""

    NEWEST = ReadModifyWriteStateSpec("newest", beam.coders.FastPrimitivesCoder())

    def __init__(self, began: Timestamp) -> None:
        self._began = float(began.micros) / 1e6

    def process(self, element: Any, newest: Any = beam.DoFn.StateParam(NEWEST)) -> Any:
        _, metadata = element
        stamp = (metadata.last_updated_in_seconds, metadata.path)
        if stamp <= (newest.read() or (self._began, "")):
            return
        newest.write(stamp)
        name = os.path.splitext(os.path.basename(metadata.path))[0]
        yield ModelMetadata(model_id=metadata.path, model_name=name)
