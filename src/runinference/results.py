"""What a model said of one example."""

from __future__ import annotations

from typing import Any, NamedTuple


class PredictionResult(NamedTuple):
    """One example and what the model made of it; equal to, and unpacked like, Beam's.

    >>> example, inference, model_id = PredictionResult([1.0, 2.0], 7, "model.pkl")
    >>> inference
    7

    Attributes:
        example: The element that went into the model, after preprocessing.
        inference: The model's output for this element alone.
        model_id: Which model spoke: the path or name it was loaded from, if the handler knows one.
    """

    example: Any
    inference: Any
    model_id: str | None = None
