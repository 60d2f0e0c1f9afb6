"""Compares results: whether they are the same, in the same order, and own their memory; tells them shortly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def same(one: Any, other: Any) -> bool:
    """Whether two results are the same, but for the rounding of numbers."""
    if hasattr(one, "inference") and hasattr(other, "inference"):
        return same(one.inference, other.inference)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "toarray") and hasattr(other, "toarray"):  # sparse matrices
        return same(one.toarray(), other.toarray())
    if _is_numeric(one) and _is_numeric(other):
        return _same_arrays(np.asarray(one), np.asarray(other))
    return type(one) is type(other) and bool(one == other)


def _is_numeric(value: Any) -> bool:
    return hasattr(value, "shape") or isinstance(value, (int, float, complex))


def _same_arrays(one: Any, other: Any) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind in "fc":
        return bool(np.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True))
    return bool((one == other).all())


def permuted(same: Callable[[Any, Any], bool], found: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Whether all results are there, in whatever order."""
    rest = list(wanted)
    for result in found:
        index = next((i for i, one in enumerate(rest) if same(result, one)), None)
        if index is None:
            return False
        del rest[index]
    return True


def retained_bytes(part: Any) -> int:
    """The bytes of the memory that an array or tensor is a part of."""
    if hasattr(part, "untyped_storage"):
        return int(part.untyped_storage().nbytes())
    base = getattr(part, "base", None) if isinstance(part, np.ndarray) else None
    return int(getattr(base, "nbytes", 0))


def told(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}"[:300]


def short(value: Any) -> str:
    """A value as a text that fits a line."""
    return text if len(text := repr(value)) <= 80 else f"{text[:77]}…"
