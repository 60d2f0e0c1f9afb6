"""Answer with a cheap model where it agrees with an expensive one, at a rate that you request."""

from runinference.cascade.agreement import (
    equal_predictions,
    max_probability,
    probability_margin,
    same_class,
    token_probability,
)
from runinference.cascade.learning import learn_cascade
from runinference.cascade.threshold import CascadeThreshold
from runinference.cascade.transform import Cascade, CascadeDLQ

__all__ = [
    "Cascade",
    "CascadeDLQ",
    "CascadeThreshold",
    "equal_predictions",
    "learn_cascade",
    "max_probability",
    "probability_margin",
    "same_class",
    "token_probability",
]
