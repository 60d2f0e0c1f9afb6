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
from runinference.remote.token_usage import (
    Prices,
    TokenEstimator,
    TokenUsage,
    check_prices,
    guess_usage,
)

_logger = logging.getLogger(__name__)
#: The most handlers with limits whose counts a process keeps.
_MAX_LEDGERS = 1_000


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

    def without_maximum(self) -> SpendingLimits:
        """Return limits on the rate alone, which are counted separately."""
        return replace(self, max_tokens_total=None, max_cost=None, _name=uuid.uuid4().hex)

    def get_ledger(self) -> Ledger | None:
        """Return what this process has spent; None if there is nothing to count."""
        if all(value is None for name, value in vars(self).items() if name != "_name"):
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
        self._rate = RequestRate(limits.max_requests_per_minute, limits.max_tokens_per_minute)
        self._estimator = TokenEstimator()
        self._changed = threading.Condition()
        self._tokens = 0.0
        self._cost = 0.0
        self._reserved: list[Charge] = []
        self._has_warned = False

    def charge(
        self, n_bytes: int, n_outputs: int, max_output: float | None, *, batch: bool = False
    ) -> Charge:
        """Reserve the estimated tokens of a request.

        A request that would fit without those in flight waits for them. The first one is sent alone, because
        nothing is known about its tokens. A request in the batch API never waits.

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
                charge = Charge(self, usage, n_bytes, n_outputs, batch)
                self._check(charge, [])
                if batch or not self._reserved or self._fits(charge):
                    break
                self._changed.wait()
            if batch:
                self._check(charge, self._reserved)
            self._reserved.append(charge)
        try:
            if not batch:
                self._rate.acquire(usage.total)
        except BaseException:
            self._release(charge, TokenUsage())
            raise
        return charge

    def _fits(self, charge: Charge) -> bool:
        limits = self._limits
        if limits.max_tokens_total is None and limits.max_cost is None:
            return True
        if not self._estimator.is_informed:
            return False
        try:
            self._check(charge, self._reserved)
        except NotCalledError:
            return False
        return True

    def _check(self, charge: Charge, in_flight: list[Charge]) -> None:
        """Raise ``NotCalledError`` if a request exceeds a limit, together with some in flight."""
        limits = self._limits
        # The size of the first request is unknown.
        is_known = self._estimator.is_informed or charge.batch
        charges = [*in_flight, charge] if is_known else in_flight
        tokens = self._tokens + sum(each.usage.total for each in charges)
        if limits.max_tokens_total is not None and (
            tokens > limits.max_tokens_total or self._tokens >= limits.max_tokens_total
        ):
            raise NotCalledError(
                f"The request wasn't sent, because it would exceed max_tokens_total={limits.max_tokens_total}: "
                f"{self._tokens:.0f} tokens are used in this process, and the request needs about "
                f"{charge.usage.total:.0f}. {_HINT}"
            )
        if limits.max_cost is not None and limits.prices is not None:
            cost = self._cost + sum(each.usage.cost(limits.prices, each.batch) for each in charges)
            if cost > limits.max_cost or self._cost >= limits.max_cost:
                raise NotCalledError(
                    f"The request wasn't sent, because it would exceed max_cost={limits.max_cost}: "
                    f"{self._cost:.6g} is spent in this process, and the request costs about "
                    f"{charge.usage.cost(limits.prices, charge.batch):.3g}. {_HINT}"
                )

    def _settle(self, charge: Charge, usage: TokenUsage, response: Any) -> int:
        if response is not None:
            with self._changed:
                self._estimator.record(charge.n_bytes, charge.n_outputs, usage)
        return self._release(charge, usage)

    def _release(self, charge: Charge, usage: TokenUsage) -> int:
        """Replace a reservation by what was used, and return its cost in millionths, without lost fractions."""
        prices = self._limits.prices
        with self._changed:
            before = self._cost
            self._reserved.remove(charge)
            self._tokens += usage.total
            if prices is not None:
                self._cost += usage.cost(prices, charge.batch)
            after = self._cost
            self._changed.notify_all()
        if not charge.batch:
            self._rate.correct(usage.total - charge.usage.total)
        return round(after * 1e6) - round(before * 1e6)

    def _guess(self, charge: Charge, response: Any) -> TokenUsage:
        if not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "The server doesn't report the tokens of requests (usage). Limits and costs are based on the "
                "length of texts."
            )
        return guess_usage(charge.n_bytes, response)


_HINT = (
    "To fix this, raise the limit. With exception handling, elements that weren't sent are dead letters, and you "
    "can run them again."
)


class Charge:
    """What a request is expected to use, until it is replaced by what it used.

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
        if self._is_settled:
            return 0
        self._is_settled = True
        if usage is None:
            usage = self._ledger._guess(self, response)
        return self._ledger._settle(self, usage, response)

    def fail(self, error: BaseException) -> int:
        """End a request without a response, and return its cost in millionths.

        If the server may have processed it, because the connection broke or a time limit passed, the estimate
        counts.
        """
        if self._is_settled:
            return 0
        self._is_settled = True
        unknown = isinstance(error, EndpointError) and error.status_code is None
        unknown = unknown and not isinstance(error, EndpointUnreachableError)
        return self._ledger._settle(self, self.usage if unknown else TokenUsage(), None)


_lock = threading.Lock()
_ledgers: OrderedDict[tuple[int, str], Ledger] = OrderedDict()
