"""Estimate the tokens and the cost of a job from a sample of its elements."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from runinference.checks import check_elements, check_int
from runinference.errors import OptionError
from runinference.remote.openai_endpoint import OpenAIEndpointModelHandler
from runinference.remote.token_usage import Prices, TokenUsage, check_prices

_MAX_THREADS = 8
#: Quantiles of Student's t distribution for 97.5 %, for 1 to 4 degrees of freedom.
_QUANTILES = (12.706, 4.303, 3.182, 2.776)


@dataclass(frozen=True)
class Estimate:
    """An estimated total, with a range that contains it with a confidence of 95 %.

    Attributes:
        expected: The expected total.
        low: The lower end of the range.
        high: The upper end of the range.
    """

    expected: float
    low: float
    high: float

    @classmethod
    def extrapolate(cls, values: Sequence[float], n: int) -> Estimate:
        """Estimate the sum of n values from a random sample of them.

        >>> found = Estimate.extrapolate([2, 4, 3], 100)
        >>> round(found.low), round(found.expected), round(found.high)
        (52, 300, 548)
        """
        mean = fmean(values)
        k = len(values)
        if k == 1:
            return cls(n * mean, 0, math.inf)
        error = _quantile(k - 1) * stdev(values) / math.sqrt(k)
        return cls(n * mean, n * max(mean - error, 0), n * (mean + error))


def _quantile(degrees: int) -> float:
    if degrees <= len(_QUANTILES):
        return _QUANTILES[degrees - 1]
    z = 1.959964
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / degrees + second / degrees**2


@dataclass(frozen=True)
class CostEstimate:
    """The estimated tokens and cost of a job. ``str(estimate)`` returns a table.

    Attributes:
        n: Number of elements of the job.
        n_sampled: Number of elements of the sample that were sent.
        n_failed: Number of sent elements that failed. Their tokens are part of the estimate.
        input_tokens: Input tokens of the job, including cached ones.
        output_tokens: Output tokens of the job.
        total_tokens: Input and output tokens of the job.
        cost: Cost of the job, in the currency of the prices. None without prices.
    """

    n: int
    n_sampled: int
    n_failed: int
    input_tokens: Estimate
    output_tokens: Estimate
    total_tokens: Estimate
    cost: Estimate | None

    def __str__(self) -> str:
        failed = f", of which {self.n_failed} failed" if self.n_failed else ""
        rows = [
            ("input tokens", self.input_tokens, ",.0f"),
            ("output tokens", self.output_tokens, ",.0f"),
            ("total tokens", self.total_tokens, ",.0f"),
        ]
        if self.cost is not None:
            rows.append(("cost", self.cost, ",.2f" if self.cost.expected >= 1 else ".3g"))
        lines = [f"{self.n:,} elements, estimated from {self.n_sampled:,}{failed}:"]
        for name, estimate, form in rows:
            line = f"  {name:<13} {estimate.expected:{form}}"
            if math.isfinite(estimate.high):
                line += f" ({estimate.low:{form}} to {estimate.high:{form}})"
            lines.append(line)
        return "\n".join(lines)


def estimate(
    handler: Any,
    sample: Iterable[Any],
    n: int,
    *,
    max_examples: int = 20,
    prices: Prices | None = None,
    inference_args: dict[str, Any] | None = None,
) -> CostEstimate:
    """Print and return the tokens and the cost of a job, from a sample of its elements.

    This sends up to ``max_examples`` elements of the sample to the server, one per request, and extrapolates the
    usage that the server reports. The provider charges for these requests. They don't count against
    ``max_tokens_total`` and ``max_cost``, and don't use the batch API.

    >>> from runinference.openai_inference import OpenAIChatModelHandler, Prices, estimate
    >>> from runinference.samples import servers
    >>> with servers.llm() as base_url:
    ...     handler = OpenAIChatModelHandler(base_url, "shout", None, prices=Prices(input=1, output=2))
    ...     found = estimate(handler, ["one two", "one two three four"], n=1_000)
    1,000 elements, estimated from 2:
      input tokens  3,000 (0 to 15,706)
      output tokens 3,000 (0 to 15,706)
      total tokens  6,000 (0 to 31,412)
      cost          0.009 (0 to 0.0471)
    >>> found.total_tokens.expected
    6000.0

    Args:
        handler: A handler for chat, completions or embeddings, or a handler that wraps one, such as
            ``KeyedModelHandler``.
        sample: Elements of the job, preferably a random sample. If there are more than ``max_examples``, a random
            sample of them is sent.
        n: Number of elements of the job.
        max_examples: Maximum number of elements to send.
        prices: Prices of the model's tokens. By default those of the handler.
        inference_args: The ``inference_args`` of the job.

    Returns:
        The totals of the job, with ranges that contain them with a confidence of 95 %.

    Raises:
        OptionError: A value is invalid, the sample is empty, the handler isn't for an OpenAI-compatible endpoint,
            or the server doesn't report usage.
        Exception: The error of the first element, if all elements fail.
    """
    check_int("n", n, 0)
    check_int("max_examples", max_examples)
    check_prices(prices)
    check_elements("sample", sample)
    elements = list(sample)
    if not elements:
        raise OptionError("sample is empty. To fix this, pass at least one element of the job.")
    if len(elements) > max_examples:
        elements = random.Random(0).sample(elements, max_examples)
    with ThreadPoolExecutor(_MAX_THREADS) as threads:
        outcomes = [
            *threads.map(lambda each: _measure(handler, each, inference_args, prices), elements)
        ]
    errors = [error for _, error in outcomes if error is not None]
    if len(errors) == len(outcomes):
        raise errors[0]
    result = _summarize([meter for meter, _ in outcomes], n, len(errors))
    print(result)
    return result


class _Meter:
    """Sums up the tokens and the cost of an element's requests."""

    def __init__(self, prices: Prices | None) -> None:
        self._prices = prices
        self._lock = threading.Lock()
        self.is_connected = False
        self.has_prices = True
        self.tokens = TokenUsage()
        self.cost = 0.0

    def connect(self, handler: Any) -> Any:
        """Return a copy of a handler whose requests are counted here."""
        if isinstance(handler, OpenAIEndpointModelHandler):
            self.is_connected = True
            prices = self._prices or handler.prices
            self.has_prices = self.has_prices and prices is not None
            is_batch = getattr(handler, "batch_api", None) is not None
            return handler.with_usage_callback(lambda usage: self._add(usage, prices, is_batch))
        map_inner = getattr(handler, "map_inner", None)
        return handler if map_inner is None else map_inner(self.connect)

    def _add(self, usage: TokenUsage, prices: Prices | None, is_batch: bool) -> None:
        with self._lock:
            self.tokens += usage
            self.cost += 0 if prices is None else usage.cost(prices, is_batch)


def _measure(
    handler: Any, element: Any, inference_args: dict[str, Any] | None, prices: Prices | None
) -> tuple[_Meter, Exception | None]:
    """Return the usage of an element, and the error if it failed."""
    meter = _Meter(prices)
    connected = meter.connect(handler)
    if not meter.is_connected:
        raise OptionError(
            f"{type(handler).__name__} has no handler for chat, completions or embeddings, whose tokens can be "
            "counted. To fix this, pass such a handler."
        )
    try:
        connected.predict([element], inference_args)
    except Exception as error:
        return meter, error
    return meter, None


def _summarize(used: Sequence[_Meter], n: int, n_failed: int) -> CostEstimate:
    if not any(each.tokens.total for each in used):
        raise OptionError(
            "The server doesn't report the tokens of requests (usage), so they can't be estimated. To fix this, "
            "turn it on in the server's settings."
        )
    tokens = [each.tokens for each in used]
    has_prices = all(each.has_prices for each in used)
    return CostEstimate(
        n,
        len(used),
        n_failed,
        Estimate.extrapolate([each.prompt for each in tokens], n),
        Estimate.extrapolate([each.completion for each in tokens], n),
        Estimate.extrapolate([each.total for each in tokens], n),
        Estimate.extrapolate([each.cost for each in used], n) if has_prices else None,
    )
