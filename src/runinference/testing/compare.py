"""Compare results of handlers, and format them for messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def same(one: Any, other: Any) -> bool:
    """Return whether two results are equal, except for rounding."""
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
    if one.dtype.kind in "fc" and one.shape == other.shape:
        return np.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)
    return np.array_equal(one, other)


def retained_bytes(part: Any) -> int:
    """Return the bytes of the memory that an array or tensor keeps alive."""
    if hasattr(part, "untyped_storage"):
        return int(part.untyped_storage().nbytes())
    return int(getattr(part.base, "nbytes", 0)) if isinstance(part, np.ndarray) else 0


def format_error(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def format_value(value: Any) -> str:
    """Return a representation of at most 80 characters."""
    return text if len(text := repr(value)) <= 80 else f"{text[:77]}…"
