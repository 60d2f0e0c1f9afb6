"""Retries with exponential backoff."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from runinference.checks import check_number, check_seconds
from runinference.errors import (
    BatchShapeError,
    ElementError,
    EndpointRefusedError,
    NotCalledError,
    OptionError,
    RateLimitExceeded,
    ResultMismatchError,
    UnusableAnswerError,
)
from runinference.extras import need


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff with jitter: the wait before each retry.

    With the defaults, a request that keeps failing is retried after at most 0.5, 2, 8, 32 and 120 seconds.

    >>> Backoff(jitter=0).seconds(retry=3, error=TimeoutError())
    8.0

    Attributes:
        initial_secs: Seconds to wait before the first retry.
        multiplier: Factor between each wait and the next.
        max_secs: Maximum wait in seconds.
        jitter: Random share of each wait, from 0 (none) to 1. It spreads retries of requests that failed together.
        max_retry_after_secs: Maximum ``Retry-After`` in seconds. If a server asks to wait longer, the request
            isn't retried.

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
            check_seconds(f"Backoff: {name}", getattr(self, name), may_be_0=True)
        check_number("Backoff: jitter", self.jitter)
        check_number("Backoff: multiplier", self.multiplier, 1)
        if self.jitter > 1:
            raise OptionError(f"Backoff: jitter must be from 0 to 1, but is {self.jitter!r}.")

    def seconds(self, retry: int, error: BaseException) -> float:
        """Return the seconds to wait before a retry, at least the error's ``retry_after``.

        Args:
            retry: The number of the retry. The first is 1.
            error: The error of the last attempt.
        """
        jitter = random.random() * self.jitter
        requested = retry_after(error)
        if requested is not None:
            return requested + self.initial_secs * jitter
        try:
            wait = min(self.max_secs, self.initial_secs * float(self.multiplier) ** (retry - 1))
        except OverflowError:
            wait = self.max_secs
        return wait * (1 - jitter)


def retry_after(error: BaseException) -> float | None:
    """Return how many seconds the server asked to wait before a retry, or None if it didn't ask.

    Reads the error's attribute ``retry_after``, or the header ``Retry-After`` of ``error.response.headers`` or
    ``error.headers``. The value is a number of seconds or an HTTP date (RFC 9110, section 10.2.3).

    >>> from runinference import retry_after
    >>> class Busy(Exception):
    ...     retry_after = "2"
    >>> retry_after(Busy())
    2.0
    """
    value = getattr(error, "retry_after", None)
    for source in (getattr(error, "response", None), error):
        headers = getattr(source, "headers", None)
        if value is None and headers is not None and hasattr(headers, "get"):
            value = headers.get("Retry-After") or headers.get("retry-after")
    return _parse_seconds(value)


def _parse_seconds(value: Any) -> float | None:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = _seconds_until(value)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _seconds_until(date: Any) -> float:
    try:
        moment = parsedate_to_datetime(date)
    except (TypeError, ValueError, AttributeError, IndexError):
        return math.nan
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return (moment - datetime.now(timezone.utc)).total_seconds()


# Errors that are never retried: bugs, invalid input, and complete but invalid responses.
NON_RETRYABLE = (
    AttributeError,
    BatchShapeError,
    ElementError,
    EndpointRefusedError,
    ImportError,
    NameError,
    NotCalledError,
    NotImplementedError,
    OptionError,
    ResultMismatchError,
    TypeError,
    UnusableAnswerError,
)
_MAX_LOGGED = 2_000  # characters of an error in a log
_RETRYABLE_CLIENT_ERRORS = {408, 409, 425, 429}


def worth_retrying(error: Exception) -> bool:
    """Return whether a retry may succeed. This is the default ``retry_filter``.

    Returns False for an HTTP status from 400 to 499 other than 408, 409, 425 and 429, and for bugs and invalid
    input, such as a ``TypeError`` or an ``ElementError``.

    Args:
        error: The error of a request. Its HTTP status is read from the error or its response.
    """
    if isinstance(error, NON_RETRYABLE) or getattr(error, "code", None) == "insufficient_quota":
        return False
    status = _get_status(error)
    return status is None or not 400 <= status < 500 or status in _RETRYABLE_CLIENT_ERRORS


def _get_status(error: Exception) -> int | None:
    """Return the HTTP status that errors of common HTTP clients have."""
    for source in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            status = getattr(source, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return int(status)
    return None


@dataclass(frozen=True)
class RetryPolicy:
    """A limit on retries, for ``RateLimitExceeded`` and errors that ``retry_filter`` accepts."""

    num_retries: int
    retry_filter: Callable[[Exception], bool]
    backoff: Backoff
    logger: logging.Logger
    sleep: Callable[[float], None]

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return ``function(*args)``, or raise its last error."""
        if not self.num_retries:
            return function(*args)
        tenacity = need("tenacity", extra="remote")
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._may_retry),
            stop=tenacity.stop_after_attempt(self.num_retries + 1),
            wait=lambda state: self.backoff.seconds(
                state.attempt_number, state.outcome.exception()
            ),
            before_sleep=self._log_retry,
            sleep=self.sleep,
            reraise=True,
        )
        return retrying(function, *args)

    def _may_retry(self, error: BaseException) -> bool:
        if isinstance(error, RateLimitExceeded):
            return True
        if not isinstance(error, Exception) or isinstance(error, NotCalledError):
            return False
        if not self.retry_filter(error):
            return False
        requested = retry_after(error)
        return requested is None or requested <= self.backoff.max_retry_after_secs

    def _log_retry(self, state: Any) -> None:
        self.logger.warning(
            "A request failed; retry %d of %d in %.2f s: %s",
            state.attempt_number,
            self.num_retries,
            state.next_action.sleep,
            describe_error(state.outcome.exception()),
        )


def describe_error(error: BaseException) -> str:
    """Return the start of an error's repr, or its type if the repr fails."""
    try:
        text = repr(error)
    except Exception:
        text = f"{type(error).__name__}, whose repr can't be shown"
    return text if len(text) <= _MAX_LOGGED else f"{text[:_MAX_LOGGED]} ..."
