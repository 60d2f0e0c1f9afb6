"""Whether to try a request again, and how long to wait before that: rules and small values, no Beam."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from runinference.errors import (
    BatchShapeError,
    ElementError,
    EndpointRefusedError,
    OptionError,
    ResultMismatchError,
    UnusableAnswerError,
)


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a request is tried again: longer each time, and never all at once.

    With the defaults, a request that keeps failing is tried again after at most 0.5, 2, 8, 32 and 120 seconds.

    >>> Backoff(jitter=0).seconds(retry=3, error=TimeoutError())
    8.0

    Attributes:
        initial_secs: Seconds before the first retry.
        multiplier: Each wait is so many times the one before.
        max_secs: No wait is longer.
        jitter: The part of a wait that is left to chance, from 0 (none) to 1: requests that failed together
            are not tried again together.
        max_retry_after_secs: A server that asks for a longer pause than this is not asked again.

    Raises:
        OptionError: A value is out of range.
    """

    initial_secs: float = 0.5
    multiplier: float = 4
    max_secs: float = 120
    jitter: float = 0.5
    max_retry_after_secs: float = 600

    def __post_init__(self) -> None:
        for name in ("initial_secs", "max_secs", "max_retry_after_secs"):
            at_least(0, f"Backoff: {name}", getattr(self, name))
        at_least(1, "Backoff: multiplier", self.multiplier)
        if not 0 <= self.jitter <= 1:
            raise OptionError(f"Backoff: jitter must be from 0 to 1, and is {self.jitter!r}.")

    def seconds(self, retry: int, error: BaseException) -> float:
        """Seconds to wait before a retry, counted from 1: what the server asked for, or ever longer ones."""
        chance = random.random() * self.jitter
        asked = retry_after(error)
        if asked is not None:
            return asked + self.initial_secs * chance
        try:
            longest = min(self.max_secs, self.initial_secs * float(self.multiplier) ** (retry - 1))
        except OverflowError:
            longest = self.max_secs
        return longest * (1 - chance)


def retry_after(error: BaseException) -> float | None:
    """The seconds after which the server wants to be asked again, if the error carries what it said.

    That is the error's ``retry_after``, or the header ``Retry-After`` in ``error.response.headers`` or
    ``error.headers``: a number of seconds or a date, as HTTP has it (RFC 9110, 10.2.3).

    >>> class Busy(Exception):
    ...     retry_after = "2"
    >>> retry_after(Busy())
    2.0
    """
    said = getattr(error, "retry_after", None)
    for source in (getattr(error, "response", None), error):
        headers = getattr(source, "headers", None)
        if said is None and headers is not None and hasattr(headers, "get"):
            said = headers.get("Retry-After") or headers.get("retry-after")
    return _seconds(said)


def _seconds(said: Any) -> float | None:
    if isinstance(said, timedelta):
        said = said.total_seconds()
    try:
        seconds = float(said)
    except (TypeError, ValueError, OverflowError):
        seconds = _seconds_until(said)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _seconds_until(date: Any) -> float:
    try:
        moment = parsedate_to_datetime(date)
    except (TypeError, ValueError, AttributeError, IndexError):
        return math.nan
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return (moment - datetime.now(timezone.utc)).total_seconds()


# What another try does not mend: faults of the program or of its data, and of an answer that is whole.
NON_RETRYABLE = (
    AttributeError,
    BatchShapeError,
    ElementError,
    EndpointRefusedError,
    ImportError,
    NameError,
    NotImplementedError,
    OptionError,
    ResultMismatchError,
    TypeError,
    UnusableAnswerError,
)
_REFUSED_FOR_NOW = {408, 409, 425, 429}


def worth_retrying(error: Exception) -> bool:
    """Whether another try may help; the default ``retry_filter``.

    It may not when the server refused the request as it is (an HTTP status from 400 to 499, but for 408, 409, 425
    and 429), or when the error is a fault of the program or its data, such as a ``TypeError`` or an
    ``ElementError``.
    """
    status = _status(error)
    if status is not None and 400 <= status < 500:
        return status in _REFUSED_FOR_NOW
    return not isinstance(error, NON_RETRYABLE)


def _status(error: Exception) -> int | None:
    """The HTTP status that an error of the usual clients carries."""
    for source in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            status = getattr(source, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return int(status)
    return None


def at_least(least: float, name: str, value: float) -> None:
    """Raises an ``OptionError`` for an option that is smaller than ``least``."""
    if value < least:
        raise OptionError(f"{name} must be at least {least}, and is {value!r}.")
