"""Stack examples of one shape into a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from runinference.collate.exact import check_integers, to_array, unify_dtypes
from runinference.collate.rows import get_array_shape
from runinference.errors import BatchShapeError, ElementError

_PLAIN_TYPES = frozenset({bool, int, float, list, tuple})
_get_dtype, _get_shape = attrgetter("dtype"), attrgetter("shape")
#: Converts an array to the dtype of an input, or raises an error.
CastFn = Callable[[Any], Any]


def stack_arrays(
    batch: Sequence[Any],
    name: str = "the batch",
    hint: Callable[[int], str] | None = None,
    cast: CastFn | None = None,
) -> Any:
    """Stack examples along a new first axis with NumPy, without changing a value.

    A batch that is an array already is returned as it is. Texts and bytes become Python objects, and so do numbers
    that are mixed with texts. Numbers of several dtypes get one that holds all of them.

    Args:
        batch: Arrays, tensors, numbers, texts or nested lists, or an array of shape (batch, …).
        name: The name of the batch in error messages.
        hint: Returns a hint for examples that differ only in the given dimension.
        cast: Converts arrays to another dtype.

    Raises:
        BatchShapeError: The examples differ in shape.
        ElementError: An example cannot become an array, or the dtype of the batch cannot hold it.
    """
    if hasattr(batch, "shape"):
        return batch if cast is None else cast(to_array(batch, name))
    if are_arrays_of_one_dtype(batch):
        stacked = stack_batch(stack_rows, batch, name, hint)
        return stacked if cast is None else cast(stacked)
    stacked = stack_numbers(batch)
    if stacked is None:
        stacked = _stack_others(batch, name, hint, cast)
    if cast is not None:
        stacked = cast(stacked)
    check_integers(batch, stacked, name)
    return stacked


def stack_rows(arrays: Sequence[Any]) -> Any:
    """Return ``np.stack(arrays)``, which takes three times as long for many short rows.

    >>> stack_rows([np.array([1, 2]), np.array([3, 4])]).tolist()
    [[1, 2], [3, 4]]
    """
    if are_rows_of_one_shape(arrays):
        return np.concatenate(arrays).reshape(len(arrays), *arrays[0].shape)
    return np.stack(arrays)


def are_rows_of_one_shape(arrays: Sequence[Any]) -> bool:
    """Return whether arrays have one dimension and the same length."""
    return arrays[0].ndim == 1 and len(set(map(_get_shape, arrays))) == 1


def are_arrays_of_one_dtype(batch: Sequence[Any]) -> bool:
    """Return whether all examples are NumPy arrays, not of a subclass, with the same dtype."""
    return set(map(type, batch)) == {np.ndarray} and len(set(map(_get_dtype, batch))) == 1


def stack_batch(
    stack: Callable[[Any], Any],
    batch: Sequence[Any],
    name: str = "the batch",
    hint: Callable[[int], str] | None = None,
) -> Any:
    """Return ``stack(batch)``, with an error message that identifies the mismatched example.

    Args:
        stack: Stacks examples of one shape.
        batch: The examples, or an array, which is returned as it is.
        name: The name of the batch in error messages.
        hint: Returns a hint for examples that differ only in the given dimension.
    """
    if hasattr(batch, "shape"):
        return batch
    try:
        return stack(batch)
    except (ValueError, RuntimeError) as error:
        reject_keyed_examples(batch)
        if (odd := _find_odd_shape(batch, name, hint)) is None:
            raise
        raise odd from error


def reject_keyed_examples(batch: Sequence[Any]) -> None:
    """Raise `ElementError` if the first element looks like ``(key, example)``."""
    first = batch[0]
    if not isinstance(first, tuple) or len(first) != 2:
        return
    key, example = (_count_dimensions(part) for part in first)
    if key < example or isinstance(first[1], Mapping):
        raise ElementError(
            f"Element 0 of the batch is a tuple of {type(first[0]).__name__} and {type(first[1]).__name__}. If it "
            "is (key, example), wrap the handler: KeyedModelHandler(handler)."
        )


def _count_dimensions(value: Any) -> int:
    """Return the number of dimensions of an array or nested list; 1 for a list of lists of several lengths."""
    try:
        return len(get_array_shape(value))
    except ValueError:
        return 1


def stack_numbers(batch: Sequence[Any]) -> Any:
    """Return an array for numbers or nested lists of numbers, or None for other values."""
    if not _PLAIN_TYPES.issuperset(map(type, batch)):
        return None
    try:
        stacked = np.asarray(batch if isinstance(batch, list) else list(batch))
    except (ValueError, TypeError, OverflowError):
        return None
    return stacked if stacked.dtype.kind in "biuf" else None


def _stack_others(
    batch: Sequence[Any], name: str, hint: Callable[[int], str] | None, cast: CastFn | None
) -> Any:
    """Stack examples that are neither numbers nor arrays of one dtype. If their dtypes differ, cast them first."""
    try:
        arrays = [to_array(example, name, index) for index, example in enumerate(batch)]
    except ElementError:
        reject_keyed_examples(batch)
        raise
    _check_labels(batch, name)
    if (odd := _find_odd_shape(arrays, name, hint)) is not None:
        reject_keyed_examples(batch)
        raise odd
    if cast is not None and len(set(map(_get_dtype, arrays))) > 1:
        arrays = list(map(cast, arrays))
    if len(set(map(_get_dtype, arrays))) > 1:
        arrays = unify_dtypes(arrays, name)
    return np.stack(arrays)


def _check_labels(batch: Sequence[Any], name: str) -> None:
    """Raise `BatchShapeError` if examples are pandas Series with different labels."""
    first = getattr(batch[0], "index", None) if hasattr(batch[0], "iloc") else None
    if first is None:
        return
    for index, example in enumerate(batch):
        if not hasattr(example, "iloc") or not first.equals(example.index):
            raise BatchShapeError(
                f"Element {index} of {name} has other labels than element 0, {list(first)[:5]}. To fix this, "
                "select the same labels in the same order before RunInference.",
                index=index,
            )


def _find_odd_shape(
    batch: Sequence[Any], name: str, hint: Callable[[int], str] | None
) -> BatchShapeError | None:
    """Return the error for an example whose shape is not the most common one; None if all have one shape."""
    shapes = [get_array_shape(example) for example in batch]
    counted = Counter(shapes)
    if len(counted) < 2:
        return None
    common, n_common = counted.most_common(1)[0]
    index = next(i for i, shape in enumerate(shapes) if shape != common)
    dim = _find_ragged_dimension(shapes)
    fix = "resize or pad them with with_preprocess_fn"
    if hint is not None and dim is not None:
        fix = f"{hint(dim)}, resize them with with_preprocess_fn"
    return BatchShapeError(
        f"Element {index} of {name} has shape {shapes[index]}, while {n_common} of {len(batch)} elements have "
        f"shape {common}. Elements of one batch are stacked, so they need one shape. To fix this, {fix}, group "
        "them with batch_length_fn, or set max_batch_size=1.",
        index=index,
    )


def _find_ragged_dimension(shapes: Sequence[tuple[int, ...]]) -> int | None:
    """Return the only dimension in which shapes differ, or None if there is no such dimension."""
    if len({*map(len, shapes)}) > 1:
        return None
    ragged = [dim for dim, sizes in enumerate(zip(*shapes, strict=True)) if len({*sizes}) > 1]
    return ragged[0] if len(ragged) == 1 else None
