"""The result of one example."""

from __future__ import annotations

from typing import Any, NamedTuple


class PredictionResult(NamedTuple):
    """An element and its prediction. Compares equal to Beam's ``PredictionResult``, and unpacks like it.

    >>> example, inference, model_id = PredictionResult([1.0, 2.0], 7, "model.pkl")
    >>> inference
    7

    Attributes:
        example: The element that the model received, after preprocessing. Of any type.
        inference: The model output for this element. Its type depends on the handler.
        model_id: The path or name of the model. None if the handler has none.
    """

    example: Any
    inference: Any
    model_id: str | None = None


def with_model_id(result: Any, model_id: str) -> Any:
    """Return a result with this ``model_id``, unless it has one already.

    >>> with_model_id(PredictionResult(1, 2), "model.ubj").model_id
    'model.ubj'
    """
    if type(result) is PredictionResult:  # the usual case, three times faster than _replace
        example, inference, current_id = result
        return result if current_id is not None else PredictionResult(example, inference, model_id)
    if getattr(result, "model_id", model_id) is None:
        return result._replace(model_id=model_id)
    return result
