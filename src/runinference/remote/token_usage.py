"""The tokens of requests: what servers report, what they cost, and estimates for requests before they are sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runinference.checks import check_number
from runinference.errors import OptionError
from runinference.remote.openai_protocol import get_usage

#: Bytes per token, and bytes of an image or another part that isn't text, until a server reports tokens.
_BYTES_PER_TOKEN = 4
_BYTES_PER_PART = 4_000


@dataclass(frozen=True)
class Prices:
    """Prices of a model, per million tokens, in any currency.

    >>> prices = Prices(input=0.5, output=1.5)
    >>> prices.cost(prompt_tokens=2_000_000, completion_tokens=1_000_000)
    2.5

    Attributes:
        input: Price of a million input tokens.
        output: Price of a million output tokens.
        cached_input: Price of a million input tokens that the server read from its prefix cache. By default
            ``input``.
        batch_factor: Factor for all prices in the batch API, such as 0.5.

    Raises:
        OptionError: A price isn't a number of at least 0.
    """

    input: float
    output: float = 0
    cached_input: float | None = None
    batch_factor: float = 1

    def __post_init__(self) -> None:
        for name in ("input", "output", "cached_input", "batch_factor"):
            if name != "cached_input" or self.cached_input is not None:
                check_number(f"Prices: {name}", getattr(self, name))

    def cost(
        self,
        prompt_tokens: float,
        completion_tokens: float = 0,
        cached_tokens: float = 0,
        *,
        batch: bool = False,
    ) -> float:
        """Return the cost of tokens.

        Args:
            prompt_tokens: Number of input tokens, including cached ones.
            completion_tokens: Number of output tokens.
            cached_tokens: Number of input tokens that were read from the server's cache.
            batch: Whether the requests are in the batch API.
        """
        cached_price = self.input if self.cached_input is None else self.cached_input
        total = (
            (prompt_tokens - cached_tokens) * self.input
            + cached_tokens * cached_price
            + completion_tokens * self.output
        )
        return total * (self.batch_factor if batch else 1) / 1e6


def check_prices(value: Any) -> None:
    """Raise ``OptionError`` if a value is neither ``Prices`` nor None."""
    if not isinstance(value, (Prices, type(None))):
        raise OptionError(
            f"prices must be Prices(input=..., output=...), per million tokens, but is {value!r}."
        )


@dataclass(frozen=True)
class TokenUsage:
    """The tokens of a request. They can be fractions in an estimate.

    Attributes:
        prompt: Input tokens, including cached ones.
        completion: Output tokens, including those of the model's reasoning.
        cached: Input tokens that were read from the server's prefix cache.
    """

    prompt: float = 0
    completion: float = 0
    cached: float = 0

    @property
    def total(self) -> float:
        return self.prompt + self.completion

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(
            self.prompt + other.prompt,
            self.completion + other.completion,
            self.cached + other.cached,
        )

    def cost(self, prices: Prices, batch: bool = False) -> float:
        """Return the cost, in the currency of ``prices``."""
        return prices.cost(self.prompt, self.completion, self.cached, batch=batch)


def read_usage(response: Any) -> TokenUsage | None:
    """Return the tokens that a response reports, or None if it reports none, only 0, or no valid number.

    >>> read_usage({"usage": {"prompt_tokens": 5, "total_tokens": 7}})
    TokenUsage(prompt=5, completion=2, cached=0)
    """
    usage = get_usage(response) or {}
    prompt, completion = (
        to_count(usage.get(f"{kind}_tokens")) for kind in ("prompt", "completion")
    )
    total = to_count(usage.get("total_tokens"))
    if not (prompt or completion or total):  # no request uses 0 tokens
        return None
    if prompt is None:
        prompt = max(0, (total or 0) - (completion or 0))
    # Some servers leave the tokens of the reasoning out of completion_tokens.
    completion = max(completion or 0, (total or 0) - prompt)
    details = usage.get("prompt_tokens_details")
    cached = to_count(details.get("cached_tokens")) if isinstance(details, Mapping) else None
    return TokenUsage(prompt, completion, min(cached or 0, prompt))


def to_count(value: Any) -> int | None:
    """Return a number of tokens from a response; None if it isn't one."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return int(value) if is_number and 0 <= value < 1e15 and value == int(value) else None


class TokenEstimator:
    """Estimates the tokens of requests from earlier requests.

    It is not thread-safe.

    >>> estimator = TokenEstimator()
    >>> estimator.record(n_bytes=200, n_outputs=1, usage=TokenUsage(100, 7))
    >>> estimator.estimate(n_bytes=20, n_outputs=1, max_output=5)
    TokenUsage(prompt=10.0, completion=5, cached=0)
    """

    def __init__(self) -> None:
        self._bytes = self._outputs = 0
        self._sum = TokenUsage()

    @property
    def is_informed(self) -> bool:
        """Whether the tokens of a request were recorded."""
        return self._bytes > 0

    def estimate(self, n_bytes: int, n_outputs: int, max_output: float | None) -> TokenUsage:
        """Return the expected tokens of a request.

        Args:
            n_bytes: Size of the input, from ``count_bytes``.
            n_outputs: Number of texts that the model generates.
            max_output: Maximum number of tokens of each text, or None.
        """
        if not self.is_informed:
            return TokenUsage(n_bytes / _BYTES_PER_TOKEN, n_outputs * (max_output or 0))
        mean = self._sum.completion / self._outputs if self._outputs else 0
        completion = n_outputs * (mean if max_output is None else min(mean, max_output))
        return TokenUsage(n_bytes * self._sum.prompt / self._bytes, completion)

    def record(self, n_bytes: int, n_outputs: int, usage: TokenUsage) -> None:
        """Learn from the tokens that a server reported for a request."""
        self._bytes += max(1, n_bytes)
        self._outputs += n_outputs
        self._sum += usage


def count_bytes(value: Any) -> int:
    """Return the size of the text in the input of a request, with a constant size for images and other parts.

    >>> count_bytes([{"role": "user", "content": "Hello"}])
    9
    """
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    if isinstance(value, Mapping):
        if str(value.get("type", "text")) not in ("text", "input_text", "function"):
            return _BYTES_PER_PART
        return sum(map(count_bytes, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(count_bytes, value))
    return 0


def guess_usage(n_bytes: int, response: Any) -> TokenUsage:
    """Return the approximate tokens of a request whose response reports none."""
    choices = response.get("choices") if isinstance(response, Mapping) else None
    output = (
        count_bytes([_without_type(each) for each in choices]) if isinstance(choices, list) else 0
    )
    return TokenUsage(n_bytes / _BYTES_PER_TOKEN, output / _BYTES_PER_TOKEN)


def _without_type(choice: Any) -> Any:
    """Return the texts of a choice."""
    if not isinstance(choice, Mapping):
        return ""
    return [choice.get("text"), choice.get("message")]
