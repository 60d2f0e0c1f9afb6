"""Handle batches that fail: stop the pipeline, or find exactly the elements that fail."""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from runinference.errors import (
    ChildDiedError,
    InferenceTimeoutError,
    ModelHostDiedError,
    ModelUnavailableError,
    PartialBatchError,
    PartialResult,
    RateLimitExceeded,
    describe,
    is_out_of_memory,
    shorten_text,
)
from runinference.handlers.repeatable_batch import (
    get_elements,
    select_elements,
    unrepeatable_error,
)
from runinference.handlers.suspects import find_suspects
from runinference.handlers.traceback_lines import format_traceback

#: Calls a model on a batch and returns one result per element.
Call = Callable[[Any], list[Any]]

#: Retries of a whole batch after a transient error, and the pause before the first one.
RETRIES = 3
FIRST_PAUSE_SECS = 0.1

#: The innermost frames, and the most lines, of the traceback in a dead letter.
_MAX_FRAMES = 50
_MAX_LINES = 200

UNCHANGED = object()


@dataclass(frozen=True)
class Failure:
    """The error of an element that has no result.

    Attributes:
        error: The error.
        example: The element as it came, if a failed call may have modified it; `UNCHANGED` otherwise.
    """

    error: BaseException
    example: Any = UNCHANGED

    def report(self) -> tuple[type, str, list[str]]:
        """Return type, message and traceback, in the form of Beam's dead letters, bounded and picklable.

        A class that can't be pickled is replaced by its closest base class that can. The message names the class.
        """
        kind, error = picklable_class(type(self.error)), self.error
        message = _safe_repr(error)
        if kind is not type(error):
            message = f"{type(error).__module__}.{type(error).__qualname__}: {message}"
        return kind, _to_text(message), _format_traceback(error)


def picklable_class(kind: type[BaseException]) -> type[BaseException]:
    """Return a class or, if it can't be pickled, its closest base class that can.

    >>> picklable_class(type("MadeAtRunTime", (KeyError,), {}))
    <class 'KeyError'>
    """
    find: Any = _find_picklable_class
    try:
        return find(kind)  # type: ignore[no-any-return]
    except Exception:  # the class can't be hashed
        return find.__wrapped__(kind)  # type: ignore[no-any-return]


@lru_cache(maxsize=256)
def _find_picklable_class(kind: Any) -> Any:
    return next(base for base in kind.__mro__ if _can_be_pickled(base))


def _can_be_pickled(kind: type) -> bool:
    try:
        return pickle.loads(pickle.dumps(kind)) is kind
    except Exception:
        return False


def _safe_repr(error: BaseException) -> str:
    try:
        return str(repr(error))  # repr can return a subclass of str
    except Exception as failure:
        return f"{describe(error)} (its repr() raises {type(failure).__name__})"


def _format_traceback(error: BaseException) -> list[str]:
    try:
        lines = format_traceback(error, _MAX_FRAMES)
    except Exception as failure:
        return [f"{describe(error)} (its traceback can't be formatted: {describe(failure, 300)})\n"]
    if len(lines) > _MAX_LINES:
        lines = [*lines[: _MAX_LINES // 2], "...\n", *lines[-_MAX_LINES // 2 :]]
    return [_to_text(line) for line in lines]


def _to_text(text: str) -> str:
    r"""Shorten a text, and escape lone surrogates, which can't be encoded.

    >>> _to_text("a \ud800")
    'a \\ud800'
    """
    return shorten_text(text).encode(errors="backslashreplace").decode()


class FailFastPolicy:
    """Raise the first error, which stops the pipeline or makes the runner retry the bundle."""

    caught: tuple[type[BaseException], ...] = ()
    repeats_calls = False

    def attempt(self, call: Call, batch: Any) -> list[Any]:
        """Return the results of a batch."""
        try:
            return call(batch)
        except (PartialBatchError, ModelUnavailableError) as error:
            failed: BaseException = (
                error.first_error if isinstance(error, PartialBatchError) else error
            )
        if isinstance(failed, ModelUnavailableError):
            failed = failed.reason
        raise failed  # outside of the except clause, which would set its context


class DeadLetterPolicy:
    """Turn each failing element into a `Failure`, and return the results of all other elements.

    A batch that fails is bisected until only the failing elements remain. If the error shows which elements are
    probably bad, the model is first called on each of them alone. After a transient error, such as a broken
    connection, the whole batch is retried first. Failures that take long, because a model hangs or an endpoint is
    down, are limited: if too many occur in a row without any success, all elements that are still undecided fail.

    Args:
        caught: The exception types to handle. Others are raised.
        sleep: Waits for a number of seconds.
    """

    repeats_calls = True

    def __init__(
        self,
        caught: type[BaseException] | tuple[type[BaseException], ...],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.caught = caught if isinstance(caught, tuple) else (caught,)
        self._sleep = sleep

    def attempt(self, call: Call, batch: Any) -> list[Any]:
        """Return one result or `Failure` per element of a batch, which can be any sequence with slices."""
        return self._call_with_retries(call, batch, FailureBudget(len(batch)))

    def _call_with_retries(
        self,
        call: Call,
        batch: Any,
        budget: FailureBudget,
        retries: int = RETRIES,
        use_suspects: bool = True,
    ) -> list[Any]:
        pause = FIRST_PAUSE_SECS
        for left in reversed(range(retries + 1)):
            try:
                results = call(batch)
            except PartialBatchError as error:
                failed: BaseException = error
            except self.caught as error:
                failed = error
            else:
                budget.reset()
                return results
            if isinstance(failed, PartialBatchError):  # the handler retries its parts itself
                break
            if not is_transient(failed) or unrepeatable_error(batch, failed):
                break
            if left and retries > 1:
                self._sleep(pause * random.uniform(0.5, 1.5))
                pause *= 2
        # Outside of the except clause, so that later errors don't get this one as their context.
        if isinstance(failed, PartialBatchError):
            for part in failed.parts:
                if part.error is not None and not isinstance(part.error, self.caught):
                    raise part.error
        return self._bisect(call, batch, failed, budget, use_suspects)

    def _bisect(
        self,
        call: Call,
        batch: Any,
        error: BaseException,
        budget: FailureBudget,
        use_suspects: bool = True,
    ) -> list[Any]:
        if isinstance(error, PartialBatchError):
            if len(error.parts) > 1:
                return self._split_by_part(call, batch, error.parts, budget)
            error = error.first_error
        if isinstance(error, ModelUnavailableError):
            if error.stops_pipeline:
                raise error.reason
            return [Failure(error.reason)] * len(batch)
        if isinstance(error, ModelHostDiedError):  # a call could end the next host, too
            return [Failure(error)] * len(batch)
        if len(batch) == 1 or not budget.spend(error):
            return [Failure(error)] * len(batch)
        if unrepeatable := unrepeatable_error(batch, error):
            return [Failure(unrepeatable)] * len(batch)
        if use_suspects and (suspects := find_suspects(error, get_elements(batch))):
            return self._call_suspects(call, batch, suspects, budget)
        middle = (len(batch) + 1) // 2
        halves = batch[:middle], batch[middle:]
        # After retries of the whole batch failed, only single elements are retried, once and without a pause.
        exhausted = is_transient(error)
        retries = [int(len(half) == 1) if exhausted else RETRIES for half in halves]
        return [
            outcome
            for half, n in zip(halves, retries, strict=True)
            for outcome in self._call_with_retries(call, half, budget, n)
        ]

    def _call_suspects(
        self, call: Call, batch: Any, suspects: Sequence[int], budget: FailureBudget
    ) -> list[Any]:
        """Call the model on each suspect alone, and on all others together. If the others fail, bisect them."""
        alone = [
            self._call_with_retries(call, batch[index : index + 1], budget) for index in suspects
        ]
        others = sorted(set(range(len(batch))).difference(suspects))
        outcomes = self._call_with_retries(
            call, select_elements(batch, others), budget, use_suspects=False
        )
        for index, outcome in zip(suspects, alone, strict=True):
            outcomes[index:index] = outcome
        return outcomes

    def _split_by_part(
        self, call: Call, batch: Any, parts: Sequence[PartialResult], budget: FailureBudget
    ) -> list[Any]:
        """Keep the results of parts that succeeded, bisect those that failed, and call those not sent yet.

        If the model was unavailable for every part that was sent, the others are not sent.
        """
        sent = [part for part in parts if part.results is not None or part.error is not None]
        unavailable = [p.error for p in sent if isinstance(p.error, ModelUnavailableError)]
        if unavailable and len(unavailable) == len(sent):
            return [Failure(unavailable[0])] * len(batch)
        first_error = next(part.error for part in sent if part.error is not None)
        outcomes: list[Any] = []
        n_unsent = 0
        for size, results, error in [*parts, PartialResult(0, [], None)]:
            if results is None and error is None:
                n_unsent += size
                continue
            if n_unsent:
                unsent = batch[len(outcomes) : len(outcomes) + n_unsent]
                if unrepeatable := unrepeatable_error(unsent, first_error):
                    outcomes += [Failure(unrepeatable)] * n_unsent
                else:
                    outcomes += self._call_with_retries(call, unsent, budget, 0)
                n_unsent = 0
            if error is not None:
                failed = batch[len(outcomes) : len(outcomes) + size]
                results = self._bisect(call, failed, error, budget)
            outcomes += results or []
        return outcomes


class FailureBudget:
    """The number of slow failures that a batch may have before one of its calls succeeds."""

    def __init__(self, n_elements: int) -> None:
        self._limit = self._left = 4 * n_elements.bit_length()

    def reset(self) -> None:
        """Restore the full budget after a call that succeeded."""
        self._left = self._limit

    def spend(self, error: BaseException) -> bool:
        """Count a slow failure. Return whether more attempts are allowed."""
        if isinstance(error, (InferenceTimeoutError, ChildDiedError)) or is_transient(error):
            self._left -= 1
        return self._left > 0


_TRANSIENT = (ConnectionError, TimeoutError, RateLimitExceeded)
_TRANSIENT_CODES = frozenset({408, 425, 429, 500, 502, 503, 504})


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may succeed later: after a broken connection, a timeout, an overloaded server.

    >>> is_transient(ConnectionResetError("peer went away")), is_transient(ValueError("bad row"))
    (True, False)
    """
    if isinstance(error, InferenceTimeoutError):  # the model hangs, not the connection
        return False
    if isinstance(error, _TRANSIENT):
        return True
    response = _get(error, "response")
    codes = [_get(owner, name) for owner in (error, response) for name in ("status_code", "code")]
    return any(code in _TRANSIENT_CODES for code in codes if isinstance(code, int))


def _get(owner: Any, name: str) -> Any:
    """Return an attribute, or None if there is none or a property of a user's class raises."""
    try:
        return getattr(owner, name, None)
    except Exception:
        return None


def halved_on_out_of_memory(
    call: Call, batch: Any, on_out_of_memory: Callable[[Any], None]
) -> list[Any]:
    """Return the results of a batch, halving it until it fits; report each batch that does not fit."""
    try:
        return call(batch)
    except Exception as error:
        cause = error.first_error if isinstance(error, PartialBatchError) else error
        if len(batch) < 2 or not is_out_of_memory(cause) or unrepeatable_error(batch, cause):
            raise
        on_out_of_memory(batch)
    middle = (len(batch) + 1) // 2
    first = halved_on_out_of_memory(call, batch[:middle], on_out_of_memory)
    return first + halved_on_out_of_memory(call, batch[middle:], on_out_of_memory)
