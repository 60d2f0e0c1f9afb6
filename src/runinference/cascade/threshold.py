"""The result of learning a cascade: the threshold, with the expected agreement and savings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runinference.cascade.agreement import Scores, equal_predictions
from runinference.checks import check_callable, check_number
from runinference.errors import OptionError, describe_value


@dataclass(frozen=True)
class CascadeThreshold:
    """The confidence above which the cheap model answers.

    [learn_cascade][runinference.cascade.learn_cascade] returns it. To choose a threshold yourself, create it.
    It can be pickled if its functions can.

    >>> threshold = CascadeThreshold(0.9, confidence=max)
    >>> threshold.accepts(0.95), threshold.accepts(0.9), threshold.accepts(float("nan"))
    (True, False, False)

    Attributes:
        threshold: The cheap model answers if its confidence is greater. ``inf`` if the expensive model answers
            all elements, and ``-inf`` if the cheap model answers all of them.
        confidence: A function of the cheap model's prediction that returns its confidence.
        agrees: A function of both predictions that returns whether they agree.
        agreement: The requested rate of agreement. None if the threshold wasn't learned.
        expected_agreement: The rate in the sample, among the elements that the cheap model answers. None if it
            answers none.
        agreement_lower_bound: The lower bound of the Clopper-Pearson interval for this rate. None if the cheap
            model answers no element.
        expected_savings: The share of elements of the sample that the cheap model answers.
        n_tested: The number of elements of the sample on which the models were compared.
        n_failed: The number of elements of the sample on which one of the models failed.
    """

    threshold: float
    confidence: Callable[[Any], Any]
    agrees: Callable[[Any, Any], Any] = equal_predictions
    agreement: float | None = None
    expected_agreement: float | None = None
    agreement_lower_bound: float | None = None
    expected_savings: float | None = None
    n_tested: int = 0
    n_failed: int = 0

    def __post_init__(self) -> None:
        is_number = isinstance(self.threshold, (int, float)) and not isinstance(
            self.threshold, bool
        )
        if not is_number or math.isnan(self.threshold):
            raise OptionError(
                f"threshold must be a number, but is {describe_value(self.threshold, 60)}."
            )
        check_callable("confidence", self.confidence)
        check_callable("agrees", self.agrees)
        if self.agreement is not None:
            check_rate("agreement", self.agreement)

    def accepts(self, confidence: float) -> bool:
        """Return whether the cheap model answers with this confidence. With NaN, the expensive model answers.

        Args:
            confidence: The confidence of the cheap model.
        """
        return confidence > self.threshold

    @property
    def scores(self) -> Scores:
        """The confidence and agreement functions, with checks of their return values."""
        return Scores(self.confidence, self.agrees)

    def __str__(self) -> str:
        if self.threshold == math.inf:
            reason = ""
            if self.agreement is not None:
                reason = f"No threshold reaches an agreement of {self.agreement:.1%} on {self.n_tested} elements. "
            return f"{reason}The expensive model answers all elements."
        above = f"above a confidence of {self.threshold:.4g}"
        if self.threshold == -math.inf:
            above = "with any confidence"
        lines = [f"The cheap model answers {above}."]
        if self.expected_savings is not None:
            lines.append(f"Expected savings: {self.expected_savings:.1%} of the elements.")
        if self.expected_agreement is not None and self.agreement_lower_bound is not None:
            lines.append(
                f"Expected agreement: {self.expected_agreement:.1%}, at least {self.agreement_lower_bound:.1%}."
            )
        return "\n".join(lines)


def check_rate(name: str, value: Any) -> None:
    """Check a rate between 0 and 1, both exclusive."""
    check_number(name, value)
    if not 0 < value < 1:
        raise OptionError(f"{name} must be greater than 0 and less than 1, but is {value!r}.")
