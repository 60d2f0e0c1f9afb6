"""What a scikit-learn estimator declares about its features and its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runinference.extras import need
from runinference.handlers.model_signature import ModelSignature

_LABELS = {"b": bool, "i": int, "u": int, "f": float, "U": str, "O": str}


def get_signature(model: Any, with_output: bool) -> ModelSignature:
    """Return the names and types of an estimator's features, and the type of its predictions.

    Args:
        model: The estimator.
        with_output: Whether the predictions are those of ``predict``.
    """
    names = getattr(model, "feature_names_in_", None)
    found = getattr(model, "n_features_in_", None)
    n_features = found if isinstance(found, int) else None
    types = _get_types(model, [*map(str, range(n_features or 0) if names is None else names)])
    return ModelSignature(
        features=None if names is None else types,
        types=[*types.values()],
        n_features=n_features,
        output=_get_output_type(model) if with_output else Any,
        classes=_get_classes(model) if with_output else None,
    )


def _get_types(model: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the types of the features, as far as the estimators that get them declare them."""
    if steps := getattr(model, "steps", None):
        return _get_types(steps[0][1], names)
    types: dict[str, Any] = dict.fromkeys(names, Any)
    if not type(model).__module__.startswith("sklearn."):
        return types
    if hasattr(model, "transformers_"):
        for _, transformer, columns in model.transformers_:
            selected = [columns] if isinstance(columns, str) else [*columns]
            if set(selected) <= set(names) and hasattr(transformer, "fit"):
                types |= _get_types(transformer, selected)
        return types
    for name in ("best_estimator_", "estimator_", "estimator"):  # such as a search of parameters
        if (inner := getattr(model, name, None)) is not None:
            return _get_types(inner, names)
    if hasattr(model, "estimators") or hasattr(model, "transformers"):
        return types
    if (categories := getattr(model, "categories_", None)) is not None:
        kinds = [{type(value) for value in each.tolist() if value == value} for each in categories]
        return {
            name: str if kind - {type(None)} == {str} else float if kind <= {int, float} else Any
            for name, kind in zip(names, kinds, strict=True)
        }
    if (is_categorical := getattr(model, "is_categorical_", None)) is not None:
        return {
            name: Any if each else float for name, each in zip(names, is_categorical, strict=True)
        }
    tags = need("sklearn.utils", extra="sklearn").get_tags(model)
    if tags.no_validation or tags.input_tags.categorical:
        return types
    if tags.input_tags.string:
        return dict.fromkeys(names, str)
    return dict.fromkeys(names, float) if tags.input_tags.two_d_array else types


def _get_classes(model: Any) -> list[Any] | None:
    """Return the classes that an estimator predicts probabilities of; None if there are none."""
    classes = getattr(model, "classes_", None)
    if not hasattr(model, "predict_proba") or not hasattr(classes, "tolist"):
        return None
    return classes.tolist()  # type: ignore[union-attr, no-any-return]


def _get_output_type(model: Any) -> Any:
    """Return the type of a classifier's labels or a regressor's numbers; a list for several targets."""
    classes = getattr(model, "classes_", None)
    if classes is None:
        return _get_number_type(model)
    if isinstance(classes, list):  # one array for each target
        kinds = {*map(_get_label_type, classes)}
        return Sequence[kinds.pop()] if len(kinds) == 1 else Any  # type: ignore[misc]
    return _get_label_type(classes)


def _get_label_type(classes: Any) -> Any:
    if classes.dtype.kind == "O" and not all(isinstance(label, str) for label in classes):
        return Any
    return _LABELS.get(classes.dtype.kind, Any)


def _get_number_type(model: Any) -> Any:
    if not need("sklearn.base", extra="sklearn").is_regressor(model):
        return Any
    if not need("sklearn.utils", extra="sklearn").get_tags(model).target_tags.multi_output:
        return float
    steps = getattr(model, "steps", None)
    final = steps[-1][1] if steps else model
    if (n_outputs := getattr(final, "n_outputs_", None)) is not None:
        return float if n_outputs == 1 else Sequence[float]
    coefficients = getattr(final, "coef_", None)
    return {1: float, 2: Sequence[float]}.get(getattr(coefficients, "ndim", 0), Any)
