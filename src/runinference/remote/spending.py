"""Limits on the tokens and the cost of requests, counted in each process."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any

from runinference.checks import check_int, check_positive
from runinference.errors import (
    EndpointError,
    EndpointUnreachableError,
    NotCalledError,
    OptionError,
)
from runinference.remote.request_rate import RequestRate
from runinference.remote.shared_rate import RateStore, SharedRequestRate
from runinference.remote.token_usage import (
    Prices,
    TokenEstimator,
    TokenUsage,
    check_prices,
    guess_usage,
)

_logger = logging.getLogger(__name__)
#: Maximum number of handlers with limits whose counts a process keeps.
_MAX_LEDGERS = 1_000
#: The relative difference that is due to rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class SpendingLimits:
    """The limits of a handler, see ``OpenAIEndpointModelHandler``. Its copies in a process count together.

    Raises:
        OptionError: A value is invalid, or ``max_cost`` has no ``prices``.
    """

    prices: Prices | None = None
    max_tokens_total: int | None = None
    max_cost: float | None = None
    max_requests_per_minute: int | None = None
    max_tokens_per_minute: int | None = None
    rate_store: RateStore | None = None
    _name: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        check_prices(self.prices)
        for name in ("max_tokens_total", "max_requests_per_minute", "max_tokens_per_minute"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name))
        if self.max_cost is not None:
            check_positive("max_cost", self.max_cost)
            if self.prices is None:
                raise OptionError(
                    "max_cost needs prices. To fix this, pass prices=Prices(input=..., output=...), per million "
                    "tokens."
                )

        if self.rate_store is not None and not self.has_rate:
            raise OptionError(
                "rate_limit_store has no effect without max_requests_per_minute or max_tokens_per_minute. To fix "
                "this, set one of them, or leave it out."
            )

    @property
    def has_rate(self) -> bool:
        """Whether there is a limit on the rate."""
        return self.max_requests_per_minute is not None or self.max_tokens_per_minute is not None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to limit and nothing to count."""
        return self.prices is None and not self.has_maximum and not self.has_rate

    @property
    def has_maximum(self) -> bool:
        """Whether there is a limit on the total."""
        return self.max_tokens_total is not None or self.max_cost is not None

    def without_maximum(self) -> SpendingLimits:
        """Return limits on the rate alone, which are counted separately."""
        return replace(self, max_tokens_total=None, max_cost=None, _name=uuid.uuid4().hex)

    def get_ledger(self) -> Ledger | None:
        """Return the tokens and the cost of this process; None if there is nothing to count."""
        if self.is_empty:
            return None
        key = os.getpid(), self._name  # the locks of a parent process may be held
        with _lock:
            if key not in _ledgers:
                _ledgers[key] = Ledger(self)
            _ledgers.move_to_end(key)
            if len(_ledgers) > _MAX_LEDGERS:
                _ledgers.popitem(last=False)
            return _ledgers[key]


class Ledger:
    """The tokens that a process has used and those that it has reserved for requests in flight."""

    def __init__(self, limits: SpendingLimits) -> None:
        self._limits = limits
        rates = limits.max_requests_per_minute, limits.max_tokens_per_minute
        store = limits.rate_store
        self._rate = RequestRate(*rates) if store is None else SharedRequestRate(*rates, store)
        self._estimator = TokenEstimator()
        self._changed = threading.Condition()
        self._used = _Amount()
        self._reserved = _Reserved()
        self._reserved_for_batches = _Reserved()
        self._warnings: set[str] = set()

    def reserve(
        self, n_bytes: int, n_outputs: int, max_output: float | None, *, batch: bool = False
    ) -> Reservation:
        """Reserve the estimated tokens of a request.

        A request that would fit without the requests in flight waits for them. The first one is sent alone,
        because nothing is known about its tokens. Requests in the batch API take hours, so they never wait, and no
        request waits for them.

        Args:
            n_bytes: Size of the input in bytes.
            n_outputs: Number of texts that the model generates.
            max_output: Maximum number of tokens of each text, or None.
            batch: Whether it is sent with the batch API.

        Raises:
            NotCalledError: The request would exceed a limit.
        """
        with self._changed:
            while True:
                usage = self._estimator.estimate(n_bytes, n_outputs, max_output)
                reservation = Reservation(self, usage, n_bytes, n_outputs, batch)
                others = self._reserved_for_batches.amount
                error = self._check(
                    reservation, others + self._reserved.amount if batch else others
                )
                if error is not None:
                    self._warn_once("limit", str(error))
                    raise error
                if batch or not self._reserved.n or self._fits(reservation):
                    break
                self._changed.wait()
            self._get_reserved(reservation).add(self._measure(reservation, usage))
        try:
            if not batch:
                self._rate.acquire(usage.total)
        except BaseException:
            reservation.cancel()
            raise
        return reservation

    def _fits(self, reservation: Reservation) -> bool:
        if not self._limits.has_maximum:
            return True
        in_flight = self._reserved.amount + self._reserved_for_batches.amount
        return self._estimator.is_informed and self._check(reservation, in_flight) is None

    def _check(self, reservation: Reservation, in_flight: _Amount) -> NotCalledError | None:
        """Return the error for a request that would exceed a limit, together with an amount in flight, or None."""
        limits, used = self._limits, self._used
        needed = self._measure(reservation, reservation.usage)
        total = used + in_flight
        # Without reported tokens, the required amount is unknown.
        if self._estimator.is_informed or reservation.batch:
            total += needed
        for name, maximum, now, then, more in (
            ("max_tokens_total", limits.max_tokens_total, used.tokens, total.tokens, needed.tokens),
            ("max_cost", limits.max_cost, used.cost, total.cost, needed.cost),
        ):
            if maximum is None:
                continue
            rounding = maximum * _ROUNDING
            if then > maximum + rounding or now >= maximum - rounding:
                return NotCalledError(
                    f"The request wasn't sent, because it would exceed {name}={maximum}: {now:.6g} is used in "
                    f"this process, and the request needs about {more:.3g}. To fix this, raise the limit. With "
                    "exception handling, elements that weren't sent become dead letters, which you can run again."
                )
        return None

    def _get_reserved(self, reservation: Reservation) -> _Reserved:
        return self._reserved_for_batches if reservation.batch else self._reserved

    def _measure(self, reservation: Reservation, usage: TokenUsage) -> _Amount:
        prices = self._limits.prices
        return _Amount(usage.total, 0 if prices is None else usage.cost(prices, reservation.batch))

    def settle(self, reservation: Reservation, usage: TokenUsage, is_reported: bool = False) -> int:
        """Replace a reservation with the actual usage. Return its cost in millionths, without losing fractions."""
        with self._changed:
            before = self._used
            self._used += self._measure(reservation, usage)
            self._get_reserved(reservation).remove(self._measure(reservation, reservation.usage))
            if is_reported:
                self._estimator.record(reservation.n_bytes, reservation.n_outputs, usage)
            after = self._used
            self._changed.notify_all()
        if not reservation.batch:
            self._rate.correct(usage.total - reservation.usage.total)
        return round(after.cost * 1e6) - round(before.cost * 1e6)

    def guess(self, reservation: Reservation, response: Any) -> TokenUsage:
        """Return the approximate tokens of a request whose response reports none."""
        self._warn_once(
            "usage",
            "The server doesn't report the tokens of requests (usage). Limits and costs are based on the length "
            "of texts.",
        )
        return guess_usage(reservation.n_bytes, response)

    def _warn_once(self, topic: str, message: str) -> None:
        if topic not in self._warnings:
            self._warnings.add(topic)
            _logger.warning("%s", message)


@dataclass(frozen=True)
class _Amount:
    tokens: float = 0
    cost: float = 0

    def __add__(self, other: _Amount) -> _Amount:
        return _Amount(self.tokens + other.tokens, self.cost + other.cost)


class _Reserved:
    """The sum of the reservations of requests in flight, and their number."""

    def __init__(self) -> None:
        self.n = 0
        self.amount = _Amount()

    def add(self, amount: _Amount) -> None:
        self.n += 1
        self.amount += amount

    def remove(self, amount: _Amount) -> None:
        self.n -= 1
        # Without requests in flight, the sum is 0, despite rounding errors.
        self.amount = self.amount + _Amount(-amount.tokens, -amount.cost) if self.n else _Amount()


class Reservation:
    """The tokens that are reserved for a request, until its actual usage replaces them.

    Attributes:
        usage: The estimated tokens.
        n_bytes: Size of the input in bytes.
        n_outputs: Number of texts that the model generates.
        batch: Whether the request is sent with the batch API.
    """

    def __init__(
        self, ledger: Ledger, usage: TokenUsage, n_bytes: int, n_outputs: int, batch: bool
    ) -> None:
        self.usage = usage
        self.n_bytes = n_bytes
        self.n_outputs = n_outputs
        self.batch = batch
        self._ledger = ledger
        self._is_settled = False

    def settle(self, usage: TokenUsage | None, response: Any) -> int:
        """Count the tokens of a response, and return their cost in millionths of the currency of the prices.

        Args:
            usage: The tokens that the response reports, or None. They are then estimated from the length of texts.
            response: The response.
        """
        if usage is None:
            usage = self._ledger.guess(self, response)
        return self._settle(usage, is_reported=True)

    def fail(self, error: BaseException) -> int:
        """End a request without a response, and return its cost in millionths.

        If the server may have processed it, because the connection broke or a time limit passed, the estimate
        counts.
        """
        unknown = isinstance(error, EndpointError) and error.status_code is None
        unknown = unknown and not isinstance(error, EndpointUnreachableError)
        return self._settle(self.usage if unknown else TokenUsage())

    def cancel(self) -> None:
        """End a request that the server didn't process."""
        self._settle(TokenUsage())

    def _settle(self, usage: TokenUsage, is_reported: bool = False) -> int:
        if self._is_settled:
            return 0
        self._is_settled = True
        return self._ledger.settle(self, usage, is_reported)


_lock = threading.Lock()
_ledgers: OrderedDict[tuple[int, str], Ledger] = OrderedDict()
