"""Find the elements of a batch that an error is probably about, without calling the model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from runinference.collate.pytree import children
from runinference.collate.stack import are_arrays_of_one_dtype, are_rows_of_one_shape, stack_rows
from runinference.errors import get_failing_index, get_message

#: How error messages of libraries describe numbers that are not finite.
_NOT_FINITE = re.compile(r"\b(nan|infs?|infinity|infinite)\b|not finite", re.IGNORECASE)


def find_suspects(error: BaseException, batch: Any) -> Sequence[int]:
    """Return the indices of the elements that a call probably failed for, in ascending order; none if unknown.

    This is the element that the error names or, after an error about NaN or infinity, each element that contains
    such a number, unless these are more than half of the batch.

    >>> find_suspects(ValueError("Input X contains NaN."), [np.ones(2), np.array([1, np.nan]), np.ones(2)])
    [1]
    """
    with suppress(Exception):  # attributes of a user's class can raise anything
        if (index := get_failing_index(error)) is not None:
            return [index] if 0 <= index < len(batch) else []
        if _NOT_FINITE.search(get_message(error)):
            suspects = _find_not_finite(batch)
            return suspects if 2 * len(suspects) <= len(batch) else []
    return []


def _find_not_finite(batch: Any) -> list[int]:
    rows = batch
    if isinstance(batch, list):
        if not (are_arrays_of_one_dtype(batch) and are_rows_of_one_shape(batch)):
            return [index for index, element in enumerate(batch) if _is_not_finite(element)]
        rows = stack_rows(batch)
    is_finite = np.isfinite(np.asarray(rows)).reshape(len(rows), -1).all(axis=1)
    return [*map(int, np.flatnonzero(~is_finite))]


def _is_not_finite(element: Any) -> bool:
    try:
        return not np.isfinite(np.asarray(element, dtype=float)).all()
    except Exception:  # not an array of numbers
        return any(map(_is_not_finite, (children(element) or {}).values()))
