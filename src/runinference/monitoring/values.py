"""The monitored values of a result: the features of its example, and its prediction."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np

from runinference.checks import check_callable
from runinference.collate.records import is_record, read_rows
from runinference.errors import ElementError, OptionError, describe_value
from runinference.handlers.row_handler import get_inference

FeaturesOption = Sequence[str | int] | Callable[[Any], Mapping[str, Any]]
PredictionOption = Callable[[Any], Any]

_LARGEST = sys.float_info.max
#: Maximum size of a vector whose numbers are all monitored by default.
MAX_FEATURES = 100


class ValueReader:
    """Read the values to monitor from results.

    Args:
        features: The names of columns or positions in a vector, or a function of the example.
        prediction: A function of the prediction.

    Raises:
        OptionError: ``features`` is neither a list nor a function, or ``prediction`` is no function.
    """

    def __init__(
        self, features: FeaturesOption | None, prediction: PredictionOption | None
    ) -> None:
        is_list = isinstance(features, Sequence) and not isinstance(features, (str, bytes))
        if features is not None and not is_list and not callable(features):
            raise OptionError(
                "features must be a list of names or positions, or a function of the example, but is "
                f"{describe_value(features, 60)}."
            )
        if prediction is not None:
            check_callable("prediction", prediction)
        self._features = features
        self._prediction = prediction

    def read(self, result: Any) -> dict[str, Any]:
        """Return the values by name.

        Args:
            result: A ``PredictionResult`` or a row, with or without a key.

        Raises:
            ElementError: The example or the prediction has no values that can be monitored.
        """
        if type(result) is tuple and len(result) == 2:
            result = result[1]
        if hasattr(result, "example"):
            features, predictions = result.example, self._predict(get_inference(result))
        else:  # a row with features and predictions
            features, predictions = (
                result,
                {} if self._prediction is None else self._predict(result),
            )
        values = self._read_features(features)
        if common := values.keys() & predictions.keys():
            raise ElementError(
                f"{min(common)!r} is the name of a feature and of a prediction. To fix this, return predictions "
                "under another name: prediction=lambda prediction: {'predicted': prediction}."
            )
        return {**values, **predictions}

    def _read_features(self, example: Any) -> dict[str, Any]:
        if callable(self._features):
            return dict(self._features(example))
        if is_record(example):
            [row] = read_rows([example])
            names = list(row) if self._features is None else self._features
            return {str(name): row.get(str(name)) for name in names}
        if self._features is not None and not self._features:
            return {}
        vector = np.asarray(_to_cpu(example))
        size = len(vector) if vector.ndim == 1 and vector.dtype.kind in "biuf" else 0
        if not size or (self._features is None and size > MAX_FEATURES):
            raise ElementError(
                f"The example {describe_value(example, 100)} is neither a row nor a vector of up to "
                f"{MAX_FEATURES} numbers. To fix this, pass a function that returns its features by name: "
                'features=lambda example: {"length": len(example)}. Without features, pass features=[].'
            )
        positions = range(size) if self._features is None else self._features
        return {
            f"feature_{each}": vector[each] if isinstance(each, int) and each < size else None
            for each in positions
        }

    def _predict(self, inference: Any) -> dict[str, Any]:
        value = inference if self._prediction is None else self._prediction(inference)
        if isinstance(value, Mapping):
            return dict(value)
        if self._prediction is None and np.ndim(_to_cpu(value)) > 0:
            raise ElementError(
                f"The prediction {describe_value(value, 100)} is not a single value. To fix this, pass a function "
                "that returns one, such as prediction=lambda probabilities: int(probabilities.argmax()), or "
                "several by name. Without predictions, return an empty dictionary."
            )
        return {"prediction": value}


def to_plain(name: str, value: Any) -> float | int | str | bool | None:
    """Return a value as a number, a text or a bool, and None if it is missing (None, NaN, NaT or NA).

    Raises:
        ElementError: The value has another type.
    """
    if isinstance(value, (float, str, bool)) or value is None:  # the usual cases
        return None if value != value else value
    if hasattr(value, "item") and np.ndim(_to_cpu(value)) == 0:
        value = _to_cpu(value).item()
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):  # exact, because integers can be categories
        return int(value)
    if isinstance(value, (Real, Decimal)):
        number = float(value)
        return None if math.isnan(number) else number
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # those of pandas
        return None
    raise ElementError(
        f"The feature {name!r} has the value {describe_value(value, 100)} of type {type(value).__name__}. To fix "
        "this, convert it to a number or a text in a function, and pass it as features or prediction."
    )


def to_float(number: float | int) -> float:
    """Return a number as a finite float, the nearest one if it is infinite or too large."""
    return float(max(-_LARGEST, min(_LARGEST, number)))


def to_label(value: float | int | str | bool) -> str:
    """Return the category of a value. Equal numbers have equal categories.

    >>> to_label(3.0), to_label("3"), to_label(True)
    ('3', '3', 'True')
    """
    is_whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if is_whole else str(value)


def _to_cpu(value: Any) -> Any:
    """Return a tensor without gradient, in the memory of the CPU, and any other value as it is."""
    return value.detach().cpu() if hasattr(value, "detach") else value
