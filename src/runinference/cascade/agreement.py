"""Functions of predictions: the confidence of a model, and whether two models agree."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from runinference.errors import ElementError, describe_value
from runinference.handlers.row_handler import get_inference
from runinference.remote.openai_protocol import Generation


def max_probability(prediction: Any) -> float:
    """Return the highest value of a vector of probabilities, to use as the confidence.

    >>> max_probability([0.2, 0.7, 0.1])
    0.7

    Args:
        prediction: The probabilities of the classes: an array, a tensor or a list.

    Raises:
        ElementError: The prediction isn't a vector of numbers.
    """
    return float(_to_vector(prediction, 1).max())


def probability_margin(prediction: Any) -> float:
    """Return the difference between the two highest values of a vector, to use as the confidence.

    >>> probability_margin([0.25, 0.625, 0.125])
    0.375

    Args:
        prediction: The probabilities or scores of at least two classes: an array, a tensor or a list.

    Raises:
        ElementError: The prediction isn't a vector of two or more numbers.
    """
    vector = _to_vector(prediction, 2)
    if np.isnan(vector).any():
        return math.nan
    second, first = np.partition(vector, -2)[-2:]
    return float(first - second)


def token_probability(prediction: Any) -> float:
    """Return the geometric mean of the probabilities of an answer's tokens, to use as the confidence.

    The server must return log probabilities. For chats, pass ``{"inference_args": {"logprobs": True}}`` as
    ``cheap_args``.

    >>> from math import log
    >>> from runinference.openai_inference import Generation
    >>> content = [{"token": "good", "logprob": log(0.5)}, {"token": "bye", "logprob": log(0.125)}]
    >>> answer = Generation("good bye", "stop", [{"logprobs": {"content": content}}], None)
    >>> round(token_probability(answer), 6)
    0.25

    Args:
        prediction: The ``Generation`` of a chat or a completion.

    Returns:
        NaN if the answer has no log probabilities.

    Raises:
        ElementError: The prediction isn't a ``Generation``.
    """
    prediction = get_inference(prediction)
    if not isinstance(prediction, Generation):
        raise ElementError(
            f"token_probability takes the Generation of a language model, but the prediction is "
            f"{describe_value(prediction, 100)}. To fix this, leave output_type and postprocessing functions out, "
            "or pass another confidence function."
        )
    found = (prediction.choices[0] if prediction.choices else {}).get("logprobs") or {}
    logs = found.get("token_logprobs")  # of completions
    if logs is None:
        logs = [token.get("logprob") for token in found.get("content") or []]
    known = [value for value in logs if value is not None]
    return math.exp(sum(known) / len(known)) if known else math.nan


def same_class(cheap: Any, expensive: Any) -> bool:
    """Return whether two predictions are the same class.

    The class of a vector of probabilities is the index of the highest one. Any other prediction is itself a
    label.

    >>> same_class([0.1, 0.9], 1), same_class([0.1, 0.9], [0.6, 0.4])
    (True, False)

    Args:
        cheap: The prediction of the cheap model.
        expensive: The prediction of the expensive model.
    """
    return equal_predictions(_to_label(cheap), _to_label(expensive))


def equal_predictions(cheap: Any, expensive: Any) -> bool:
    """Return whether two predictions are equal.

    Arrays, tensors and numbers are equal if all values are, regardless of the dtype. Answers of language models
    are equal if their texts are, except for whitespace at the ends. Containers are equal if their contents are.
    NaN differs from everything.

    >>> equal_predictions(np.array([1, 2]), [1.0, 2.0]), equal_predictions({"label": "a"}, {"label": "b"})
    (True, False)

    Args:
        cheap: The prediction of the cheap model.
        expensive: The prediction of the expensive model.
    """
    one, other = _simplify(cheap), _simplify(expensive)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(equal_predictions(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal_predictions, one, other))
    return bool(one == other)


def _simplify(value: Any) -> Any:
    """Return a value as a text, a number, a mapping, a list, or an object that defines ``==``."""
    value = get_inference(value)
    if isinstance(value, Generation):
        return value.text.strip()
    if isinstance(value, str):
        return value.strip()
    if _is_array(value):
        return np.asarray(_to_cpu(value)).tolist()
    if hasattr(value, "model_dump"):  # a pydantic model
        return value.model_dump()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return list(value)
    return value


def _to_label(prediction: Any) -> Any:
    prediction = get_inference(prediction)
    is_vector = isinstance(prediction, (list, tuple)) or _is_array(prediction)
    if not is_vector or np.ndim(_to_cpu(prediction)) != 1:
        return prediction
    return int(_to_vector(prediction, 1).argmax())


def _to_vector(prediction: Any, minimum: int) -> np.ndarray[Any, Any]:
    try:
        vector = np.asarray(_to_cpu(get_inference(prediction)), dtype=float)
    except (TypeError, ValueError):
        vector = np.zeros(())
    if vector.ndim != 1 or len(vector) < minimum:
        raise ElementError(
            f"The prediction must be a vector of {minimum} or more numbers, such as the probabilities of classes, "
            f"but is {describe_value(prediction, 100)}. To fix this, let the handler return probabilities, or "
            "pass another function of the prediction."
        )
    return vector


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__")


def _to_cpu(value: Any) -> Any:
    """Return a tensor without gradient, in the memory of the CPU, and any other value as it is."""
    return value.detach().cpu() if hasattr(value, "detach") else value


class Scores:
    """The confidence function and the agreement function, with their checks.

    Args:
        confidence: Returns the confidence of the cheap model.
        agrees: Returns whether two predictions agree.
    """

    def __init__(self, confidence: Callable[[Any], Any], agrees: Callable[[Any, Any], Any]) -> None:
        self._confidence = confidence
        self._agrees = agrees

    def confidence(self, result: Any) -> float:
        """Return the confidence in a result of the cheap model; raise `ElementError` if it isn't a number."""
        value = self._confidence(get_inference(result))
        try:
            is_number = isinstance(value, Real) or np.ndim(_to_cpu(value)) == 0
            number = float(value) if is_number and not isinstance(value, (str, bytes)) else None
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None:
            raise ElementError(
                f"The confidence function returned {describe_value(value, 100)}, which isn't a number, for the "
                f"prediction {describe_value(get_inference(result), 200)}. To fix this, return a number, such as "
                "the highest probability. For an unknown confidence, return NaN."
            )
        return number

    def agree(self, cheap: Any, expensive: Any) -> bool:
        """Return whether the results of both models agree; raise `ElementError` if that isn't true or false."""
        value = self._agrees(get_inference(cheap), get_inference(expensive))
        if np.ndim(_to_cpu(value)) != 0 or value is None or isinstance(value, (str, bytes)):
            raise ElementError(
                f"The agreement function returned {describe_value(value, 100)}, which is neither true nor false. "
                "To fix this, return a bool, for example with numpy.array_equal."
            )
        return bool(value)
