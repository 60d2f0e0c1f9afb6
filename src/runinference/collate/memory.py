"""Copy results, so that none shares memory with another one or with a buffer that the model reuses."""

from __future__ import annotations

import copy
import dataclasses
import sys
from array import array
from collections.abc import Iterable, Mapping, MutableSequence, Sequence
from typing import Any

import numpy as np

from runinference.collate.pytree import is_dataclass_instance
from runinference.results import PredictionResult

#: Types of values that cannot be modified, such as numbers and strings.
IMMUTABLE = frozenset(
    {bool, int, float, complex, str, bytes, frozenset, range, type(None)}
    | {kind for kind in np.sctypeDict.values() if not issubclass(kind, (np.void, np.object_))}
)


def copy_items(items: Sequence[Any]) -> list[Any]:
    """Return a list of copies of values; see `copy_value`."""
    if set(map(type, items)) <= IMMUTABLE:
        return list(items)
    return [copy_value(item) for item in items]


def copy_value(value: Any) -> Any:
    """Copy the arrays, tensors and tables in a value, and its containers. Return other objects as they are.

    Of a ``PredictionResult``, only the inference is copied. The copy of a tensor has no gradient, and can be
    modified even if the tensor was created in inference mode.

    >>> buffer = np.zeros(2)
    >>> copied = copy_value({"scores": buffer[:1]})
    >>> buffer += 1
    >>> copied["scores"].tolist()
    [0.0]
    """
    kind = type(value)
    if kind in IMMUTABLE:
        return value
    if kind is dict:
        return {key: copy_value(part) for key, part in value.items()}
    if kind in (list, set):
        return kind(copy_items(value)) if kind is list else set(value)
    if isinstance(value, tuple):
        return _copy_tuple(value)
    if isinstance(value, (np.ndarray, np.void, bytearray)):
        return value.copy()
    if (torch := sys.modules.get("torch")) is not None and isinstance(value, torch.Tensor):
        return copy_tensor(value)
    if hasattr(value, "iloc") or hasattr(value, "tocsr"):
        return value.copy()
    if isinstance(value, Mapping):
        return _copy_container(value, value.items())
    if isinstance(value, (MutableSequence, array)):  # such as a deque
        return _copy_container(value, enumerate(value))
    return _copy_dataclass(value) if is_dataclass_instance(value) else value


def copy_tensor(tensor: Any) -> Any:
    """Return a PyTorch tensor without gradient that owns its memory and can be modified."""
    torch = sys.modules["torch"]
    with torch.inference_mode(False):
        return tensor.detach().clone()


def _copy_tuple(value: tuple[Any, ...]) -> Any:
    fields = getattr(value, "_fields", None)
    if fields == PredictionResult._fields:
        named: Any = value
        inference = copy_value(named.inference)
        return value if inference is named.inference else named._replace(inference=inference)
    items = [copy_value(item) for item in value]
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    return type(value)(*items) if fields else type(value)(items)


def _copy_container(value: Any, items: Iterable[tuple[Any, Any]]) -> Any:
    try:
        copied = copy.copy(value)
        for key, part in items:
            copied[key] = copy_value(part)
    except Exception:  # the container cannot be copied or modified
        return value
    return copied


def _copy_dataclass(value: Any) -> Any:
    """Copy a dataclass without running its constructor."""
    copied = copy.copy(value)
    for field in dataclasses.fields(value):
        if hasattr(value, field.name):
            object.__setattr__(copied, field.name, copy_value(getattr(value, field.name)))
    return copied
