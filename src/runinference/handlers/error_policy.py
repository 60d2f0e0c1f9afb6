"""What happens when a batch fails: it stops the pipeline, or exactly its failing elements are set aside."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from runinference.errors import (
    InferenceTimeoutError,
    ModelUnavailableError,
    Part,
    RateLimitExceeded,
    is_out_of_memory,
    parts_of,
    tell_parts,
)

#: Calls a model on a batch: one result for each element, or an error.
Call = Callable[[Any], list[Any]]


#: How often a batch is tried again whole after an error that may pass, and how long the first pause is.
RETRIES = 3
FIRST_PAUSE_SECS = 0.1


@dataclass(frozen=True)
class Failure:
    """Why an element has no result."""

    error: BaseException

    def report(self) -> tuple[type, str, list[str]]:
        """Type, message and traceback, in the form of Beam's dead letters."""
        lines = traceback.format_exception(type(self.error), self.error, self.error.__traceback__)
        return type(self.error), repr(self.error), lines


class FailFastPolicy:
    """An error stops the pipeline, or the bundle, as the runner will have it."""

    caught: tuple[type[BaseException], ...] = ()

    def attempt(self, call: Call, batch: Any) -> list[Any]:
        """The results of a batch."""
        try:
            return call(batch)
        except ModelUnavailableError as error:
            raise (error.__cause__ or error) from None


class DeadLetterPolicy:
    """A failing element becomes a [Failure][runinference.handlers.error_policy.Failure]; all others get their results.

    A batch that fails is divided until what fails stands alone. An error that may pass, such as a broken
    connection, is tried again on the whole batch first. Where each failure costs much, because the model is
    stuck or an endpoint is down, only so many are spent in a row; if none of a batch's elements gets a result
    meanwhile, what is then undecided is set aside.
    """

    def __init__(
        self,
        caught: type[BaseException] | tuple[type[BaseException], ...],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.caught = caught if isinstance(caught, tuple) else (caught,)
        self._sleep = sleep

    def attempt(self, call: Call, batch: Any) -> list[Any]:
        """One result or Failure for each element of a batch: of anything that can be sliced."""
        return self._retried(call, batch, FailureBudget(len(batch)))

    def _retried(
        self, call: Call, batch: Any, patience: FailureBudget, retries: int = RETRIES
    ) -> list[Any]:
        pause = FIRST_PAUSE_SECS
        for left in reversed(range(retries + 1)):
            try:
                return patience.renewed_by(call(batch))
            except self.caught as error:
                failed = error
            if parts_of(failed) or not is_transient(failed):  # parts were tried again already
                break
            if left and retries > 1:
                self._sleep(pause * random.uniform(0.5, 1.5))
                pause *= 2
        # Not while the error is handled: those that follow have nothing to do with it, and would tell of it.
        return self._divided(call, batch, failed, patience)

    def _divided(
        self, call: Call, batch: Any, error: BaseException, patience: FailureBudget
    ) -> list[Any]:
        if len(parts := parts_of(error)) > 1:
            return self._by_part(call, batch, parts, patience)
        if isinstance(error, ModelUnavailableError):
            return [Failure(error.__cause__ or error)] * len(batch)
        if len(batch) == 1 or not patience.spend(error):
            return [Failure(error)] * len(batch)
        middle = (len(batch) + 1) // 2
        halves = batch[:middle], batch[middle:]
        # Where all was tried again in vain, it is so once more, at once, only for each element alone.
        tried = is_transient(error)
        retries = [int(len(half) == 1) if tried else RETRIES for half in halves]
        return [
            outcome
            for half, n in zip(halves, retries, strict=True)
            for outcome in self._retried(call, half, patience, n)
        ]

    def _by_part(
        self, call: Call, batch: Any, parts: list[Part], patience: FailureBudget
    ) -> list[Any]:
        """Keeps what a batch that was sent in parts has got, sends what was not sent, and divides the rest.

        Where each part that was sent found the model unavailable, those that were not would find the same.
        """
        sent = [part for part in parts if part.results is not None or part.error is not None]
        unavailable = [p.error for p in sent if isinstance(p.error, ModelUnavailableError)]
        if len(unavailable) == len(sent):
            return [Failure(unavailable[0])] * len(batch)
        outcomes: list[Any] = []
        unsent = 0
        for size, results, error in [*parts, Part(0, [], None)]:
            if results is None and error is None:
                unsent += size
                continue
            if unsent:
                its = batch[len(outcomes) : len(outcomes) + unsent]
                outcomes += self._retried(call, its, patience, 0)
                unsent = 0
            if error is not None:
                its = batch[len(outcomes) : len(outcomes) + size]
                results = self._divided(call, its, tell_parts(error, []), patience)
            outcomes += results or []
        return outcomes


class FailureBudget:
    """How many dear failures a batch may still have before one of its calls succeeds."""

    def __init__(self, n_elements: int) -> None:
        self._most = self._left = 4 * n_elements.bit_length()

    def renewed_by(self, results: list[Any]) -> list[Any]:
        """The results of a call, which show that the model answers."""
        self._left = self._most
        return results

    def spend(self, error: BaseException) -> bool:
        if isinstance(error, InferenceTimeoutError) or is_transient(error):
            self._left -= 1
        return self._left > 0


_TRANSIENT = (ConnectionError, TimeoutError, RateLimitExceeded)
_TRANSIENT_CODES = frozenset({408, 425, 429, 500, 502, 503, 504})


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: a broken connection, a time-out, a server under load.

    >>> is_transient(ConnectionResetError("peer went away")), is_transient(ValueError("bad row"))
    (True, False)
    """
    if isinstance(error, InferenceTimeoutError):  # ours: the model was given up, not the connection
        return False
    if isinstance(error, _TRANSIENT):
        return True
    response = getattr(error, "response", None)
    codes = (
        getattr(where, name, None)
        for where in (error, response)
        for name in ("status_code", "code")
    )
    return any(code in _TRANSIENT_CODES for code in codes if isinstance(code, int))


def halved_on_out_of_memory(
    call: Call, batch: Any, too_large: Callable[[Any], None]
) -> Iterator[Any]:
    """The results of a batch, in halves of halves where memory does not suffice for more.

    Args:
        call: Calls the model.
        batch: The elements.
        too_large: Is told each batch that memory did not suffice for.
    """
    try:
        results: Any = call(batch)
    except Exception as error:
        if len(batch) < 2 or not is_out_of_memory(error):
            raise
        too_large(batch)
        results = None
    if results is not None:
        yield from results
        return
    middle = (len(batch) + 1) // 2
    yield from halved_on_out_of_memory(call, batch[:middle], too_large)
    yield from halved_on_out_of_memory(call, batch[middle:], too_large)
