"""What a model declares about its inputs and outputs, and the check of columns against it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runinference.collate.named_inputs import InputSpec
from runinference.errors import OptionError, describe, suggest
from runinference.model_file import file_bytes

#: Larger model files are not loaded to read what the model declares.
_MAX_FILE_BYTES = 256 * 1024 * 1024
_PYTHON_TYPES = {"b": bool, "i": int, "u": int, "f": float, "U": str, "S": bytes}


@dataclass(frozen=True)
class ModelSignature:
    """What a model declares about its features and its output.

    Attributes:
        features: The type of each feature by its name, in order: ``float`` for any number, ``int`` for integers,
            ``bool`` for bools, ``str`` for text, ``Any`` if it is unknown. None if the model doesn't name its
            features.
        types: The types of the features in order, if the model doesn't name them, and they are known; a single one
            is the type of all.
        optional: The names of the features that rows may lack.
        n_features: The number of features; None if it is unknown.
        output: The Python type of the output for one row, such as ``int`` or ``Sequence[float]``; ``Any`` if it is
            unknown.
        fields: The types of the fields of that output by name; None if they are unknown.
        classes: The classes of a classifier that predicts a probability for each; None for other models.
        error: Why the model can't be read; empty if it can.
        normalize_name: Returns the name of the feature for the name of a column.
    """

    features: Mapping[str, Any] | None = None
    types: Sequence[Any] = ()
    optional: Collection[str] = ()
    n_features: int | None = None
    output: Any = Any
    fields: Mapping[str, Any] | None = None
    classes: Sequence[Any] | None = None
    error: str = ""
    normalize_name: Callable[[str], str] = str


def make_signature(inputs: Sequence[InputSpec], output: InputSpec | None) -> ModelSignature:
    """Return the signature of a model with named inputs.

    Several inputs are features. A single one can also be an array of features.

    Args:
        inputs: The inputs, with the batch as first dimension.
        output: The only output for each row, in the same form; None if it is unknown or there are several.
    """
    required = [spec for spec in inputs if spec.required]
    output_type = Any if output is None or not output.shape else get_value_type(output)
    if len(required) == 1:
        sizes = required[0].shape
        n_features = sizes[1] if len(sizes) == 2 and isinstance(sizes[1], int) else None
        kind = get_value_type(required[0]._replace(shape=sizes[:1]))
        types = [kind] if len(sizes) == 2 and kind in (bool, int, float) else []
        return ModelSignature(types=types, n_features=n_features, output=output_type)
    features = {spec.name: _get_feature_type(spec) for spec in required}
    return ModelSignature(features=features or None, output=output_type)


def _get_feature_type(spec: InputSpec) -> Any:
    is_scalar = len(spec.shape) == 1 or (len(spec.shape) == 2 and spec.shape[1] == 1)
    return get_value_type(spec._replace(shape=spec.shape[:1])) if is_scalar else Any


def get_value_type(spec: InputSpec) -> Any:
    """Return the Python type of the values for one row."""
    if spec.dtype is None:
        return Any
    kind: Any = _PYTHON_TYPES.get(np.dtype(spec.dtype).kind, Any)
    for _ in spec.shape[1:]:
        kind = Sequence[kind]
    return kind


def read_signature(handler: Any) -> ModelSignature:
    """Return what the model of a handler declares, if its files can be read here."""
    if not hasattr(handler, "read_model_signature"):
        return ModelSignature()
    try:
        found: ModelSignature = handler.read_model_signature()
        return found
    except Exception as error:  # a worker may be able to load the model
        return ModelSignature(error=describe(error, 300))


def load_signature(handler: Any, path: str) -> ModelSignature:
    """Load the model of a handler, unless its files are large, and return what it declares."""
    if file_bytes(path) > _MAX_FILE_BYTES:
        return ModelSignature(error="its file is large, and is not loaded before the pipeline runs")
    found: ModelSignature = handler.get_model_signature(handler.load_model())
    return found


def resolve_columns(
    columns: Sequence[str] | None, signature: ModelSignature, model: str
) -> tuple[str, ...]:
    """Return the names of the feature columns.

    Args:
        columns: The columns that the user listed; None for the features that the model names.
        signature: What the model declares.
        model: The name of the model in error messages.

    Raises:
        OptionError: The columns differ from the model's features, or neither names any.
    """
    features = signature.features
    if columns is None:
        if not features:
            raise OptionError(
                f"{model} names no features{f' ({signature.error})' if signature.error else ''}. To fix this, "
                "list the feature columns: columns=[...]."
            )
        return tuple(features)
    if features is not None:
        names = [*map(signature.normalize_name, columns)]
        needed = [name for name in features if name in names or name not in signature.optional]
        _check_features(names, needed, list(features), model)
    elif signature.n_features is not None and len(columns) not in (1, signature.n_features):
        raise OptionError(
            f"columns lists {len(columns)} columns, and {_lower(model)} has {signature.n_features} features. "
            "To fix this, list the columns that the model was trained with, in the same order."
        )
    return tuple(columns)


def _check_features(
    columns: Sequence[str], needed: list[str], features: list[str], model: str
) -> None:
    for name in columns:
        if name not in features:
            raise OptionError(
                f"{model} has no feature {name!r} (columns).{suggest(name, features)} Its features are "
                f"{_join(features)}."
            )
    for name in needed:
        if name not in columns:
            raise OptionError(
                f"columns lacks {name!r}, a feature of {_lower(model)}. To fix this, add it, or leave columns "
                f"out: the model names its features, which are {_join(features)}."
            )
    if list(columns) != needed:
        raise OptionError(
            f"columns lists the features of {_lower(model)} in another order: {_join(columns)}. To fix this, "
            f"use the order of the model ({_join(features)}), or leave columns out."
        )


def _join(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "")


def _lower(model: str) -> str:
    return model[:1].lower() + model[1:]
