"""Stack examples of one shape into a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from runinference.collate.rows import get_array_shape
from runinference.errors import BatchShapeError, ElementError


def stack_arrays(
    batch: Sequence[Any], name: str = "the batch", hint: Callable[[int], str] | None = None
) -> Any:
    """Stack examples along a new first axis with NumPy. A batch that is an array already is returned as it is."""
    return stack_batch(np.stack, batch, name, hint)


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
        if (message := _format_odd_shape(batch, name, hint)) is None:
            raise
        raise BatchShapeError(message) from error


def reject_keyed_examples(batch: Sequence[Any]) -> None:
    """Raise `ElementError` if the first element looks like ``(key, example)``."""
    first = batch[0]
    if isinstance(first, tuple) and len(first) == 2 and np.ndim(first[0]) < np.ndim(first[1]):
        raise ElementError(
            f"Element 0 of the batch is a tuple of {type(first[0]).__name__} and {type(first[1]).__name__}. If it "
            "is (key, example), wrap the handler: KeyedModelHandler(handler)."
        )


def _format_odd_shape(
    batch: Sequence[Any], name: str, hint: Callable[[int], str] | None
) -> str | None:
    """Describe an example whose shape is not the most common one. Return None if all have one shape."""
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
    return (
        f"Element {index} of {name} has shape {shapes[index]}, while {n_common} of {len(batch)} elements have "
        f"shape {common}. Elements of one batch are stacked, so they need one shape. To fix this, {fix}, group "
        "them with batch_length_fn, or set max_batch_size=1."
    )


def _find_ragged_dimension(shapes: Sequence[tuple[int, ...]]) -> int | None:
    """Return the only dimension in which shapes differ, or None if there is no such dimension."""
    if len({*map(len, shapes)}) > 1:
        return None
    ragged = [dim for dim, sizes in enumerate(zip(*shapes, strict=True)) if len({*sizes}) > 1]
    return ragged[0] if len(ragged) == 1 else None
