"""Format tracebacks like the standard library, but format equal frames of many errors only once."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from types import CodeType, TracebackType

_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"

#: The standard library adds suggestions or further lines to the messages of these errors.
_WITH_DETAILS = (SyntaxError, NameError, AttributeError, ImportError)

_Frames = tuple[tuple[CodeType, int], ...]  # the code and the current instruction of each frame
_MAX_FORMATTED = 256
_FORMATTED: dict[_Frames, list[str]] = {}


def format_traceback(error: BaseException, max_frames: int) -> list[str]:
    """Return the lines of ``traceback.format_exception`` for an error, with its innermost frames."""
    chain = list(_iter_chain(error))
    if any(map(_has_details, (each for _, each in chain))):
        return traceback.format_exception(
            type(error), error, error.__traceback__, limit=-max_frames
        )
    lines: list[str] = []
    for connection, each in reversed(chain):
        lines += [connection] if connection else []
        if each.__traceback__ is not None:
            lines.append("Traceback (most recent call last):\n")
            lines += _format_frames(each.__traceback__, max_frames)
        lines.append(_format_message(each))
    return lines


def _iter_chain(error: BaseException) -> Iterator[tuple[str, BaseException]]:
    """Yield an error, its cause or context, and so on, each with the text that connects it to the next one."""
    following: BaseException | None = error
    seen: set[int] = set()
    while following is not None:
        error, connection = following, ""
        seen.add(id(error))
        if (following := error.__cause__) is not None and id(following) not in seen:
            connection = _CAUSE
        elif (following := error.__context__) is not None and id(following) not in seen:
            connection = "" if error.__suppress_context__ else _CONTEXT
        following = following if connection else None
        yield connection, error


def _has_details(error: BaseException) -> bool:
    is_group = hasattr(error, "exceptions")
    return isinstance(error, _WITH_DETAILS) or is_group or hasattr(error, "__notes__")


def _format_frames(trace: TracebackType, max_frames: int) -> list[str]:
    frames = [(each.tb_frame.f_code, each.tb_lasti) for each in _iter_frames(trace)]
    key = tuple(frames[-max_frames:])
    if key not in _FORMATTED:
        if len(_FORMATTED) >= _MAX_FORMATTED:
            _FORMATTED.clear()
        _FORMATTED[key] = traceback.format_tb(trace, limit=-max_frames)
    return _FORMATTED[key]


def _iter_frames(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _format_message(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("__main__", "builtins"):
        name = f"{kind.__module__}.{name}"
    try:
        message = str(error)
    except Exception:
        message = "<exception str() failed>"  # as in the standard library
    return f"{name}: {message}\n" if message else f"{name}\n"
