"""Watch a file pattern for new models, as a transform."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Duration, Timestamp

from runinference.checks import check_seconds, check_text
from runinference.errors import OptionError
from runinference.handlers.options import KeywordsChecked
from runinference.serving.model_watcher import WatchConfig, find_new_files


class WatchFilePattern(KeywordsChecked, beam.PTransform):  # type: ignore[misc]
    """Emit a ``ModelMetadata`` for each new file that matches a pattern while the pipeline runs.

    ``RunInference(watch_model_pattern=...)`` does not need this transform: its workers poll the pattern
    themselves.

    Give each new model a new file name. Write the file elsewhere, and move it into place when it is complete.
    Files that exist when the pipeline is built are not emitted, unless they change later. Until a new file
    appears, the handler's own model is used. If several files appear between two polls, the one that changed last
    is emitted last. If the files cannot be listed, the error is logged, and they are listed again at the next
    poll.
    """

    def __init__(
        self,
        file_pattern: str,
        interval: float = 360,
        stop_timestamp: Timestamp | float = MAX_TIMESTAMP,
    ) -> None:
        """Create the transform.

        Args:
            file_pattern: A path on any file system that Beam supports, with the wildcards ``*``, ``?`` and
                ``[...]``.
            interval: Seconds between polls, greater than 0.
            stop_timestamp: Time of the last poll: a Beam ``Timestamp``, or seconds since the epoch. By default,
                polling never stops.

        Raises:
            OptionError: The interval is not greater than 0, the stop time has passed, or no file system supports
                the pattern.
        """
        super().__init__()
        check_text("file_pattern", file_pattern)
        check_seconds("interval", interval)
        check_timestamp("stop_timestamp", stop_timestamp)
        self.file_pattern = file_pattern
        self.interval = interval
        self.stop_timestamp = stop_timestamp
        self._watch = WatchConfig.create(file_pattern, interval, stop_timestamp)

    def expand(self, begin: Any) -> beam.PCollection:
        watch = self._watch
        impulse = PeriodicImpulse(Timestamp.of(watch.began), self.stop_timestamp, watch.interval)
        return (
            begin
            | "EachInterval" >> impulse
            | "SingleKey" >> beam.WithKeys("").with_output_types(tuple[str, Any])
            | "EmitNewFiles" >> beam.ParDo(EmitNewFiles(watch))
        )


def check_timestamp(name: str, value: Any) -> None:
    """Raise `OptionError` unless a value is a Beam ``Timestamp`` or a number of seconds since the epoch."""
    try:
        Timestamp.of(value)
    except (TypeError, ValueError, OverflowError):
        raise OptionError(
            f"{name} must be a Timestamp or a number of seconds since the epoch, but is {value!r}."
        ) from None


class EmitNewFiles(beam.DoFn):  # type: ignore[misc]
    """Emit the files that appeared since the last poll, oldest first, each with its own timestamp."""

    KNOWN = ReadModifyWriteStateSpec("known", beam.coders.FastPrimitivesCoder())

    def __init__(self, watch: WatchConfig) -> None:
        self._watch = watch

    def process(
        self,
        _: Any,
        timestamp: Any = beam.DoFn.TimestampParam,
        known: Any = beam.DoFn.StateParam(KNOWN),
    ) -> Iterator[TimestampedValue]:
        before = known.read()
        new, after = find_new_files(self._watch, before)
        if after is not before:
            known.write(after)
        for index, metadata in enumerate(new):
            yield TimestampedValue(metadata, timestamp + Duration(micros=index))
