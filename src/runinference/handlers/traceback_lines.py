"""Format tracebacks with the standard library, but equal frames of many errors only once."""

from __future__ import annotations

import traceback
from functools import lru_cache
from types import CodeType, TracebackType

_HEADER = "Traceback (most recent call last):\n"


def format_traceback(error: BaseException, max_frames: int) -> list[str]:
    """Return the lines of ``traceback.format_exception`` for an error, with its innermost frames."""
    trace = error.__traceback__
    has_context = error.__context__ is not None and not error.__suppress_context__
    is_group = hasattr(error, "exceptions")
    if trace is None or error.__cause__ is not None or has_context or is_group:
        return traceback.format_exception(type(error), error, trace, limit=-max_frames)
    message = traceback.format_exception(type(error), error, trace, limit=0)
    if message[0] == _HEADER:  # not in every version of Python
        del message[0]
    return [_HEADER, *_format_frames(_Frames(trace), max_frames), *message]


class _Frames:
    """The frames of a traceback, which are equal if they have the same code and the same current instructions."""

    def __init__(self, trace: TracebackType) -> None:
        self.trace: TracebackType | None = trace
        self._key = _get_instructions(trace)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frames) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _get_instructions(trace: TracebackType | None) -> tuple[tuple[CodeType, str, int], ...]:
    found = []
    while trace is not None:
        code = trace.tb_frame.f_code  # equal code can be in different files
        found.append((code, code.co_filename, trace.tb_lasti))
        trace = trace.tb_next
    return tuple(found)


@lru_cache(maxsize=256)
def _format_frames(frames: _Frames, max_frames: int) -> list[str]:
    lines = traceback.format_tb(frames.trace, limit=-max_frames)
    frames.trace = None  # the cache must not keep the variables of the frames alive
    return lines
