"""Examples of one shape become one batch; an example of another shape is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from runinference.errors import BatchShapeError, ElementError


def stack_arrays(
    batch: Sequence[Any], what: str = "the batch", cure: Callable[[int], str] | None = None
) -> Any:
    """One array of the batch's examples, along a new first axis; an array of rows stays as it is.

    Examples may be whatever NumPy makes an array of: arrays, lists, rows.

    Raises:
        BatchShapeError: The examples have several shapes.
    """
    return stack_batch(np.stack, batch, what, cure)


def stack_batch(
    stack: Callable[[Any], Any],
    batch: Sequence[Any],
    what: str = "the batch",
    cure: Callable[[int], str] | None = None,
) -> Any:
    """``stack(batch)``, with an error that names the example that does not fit.

    Args:
        stack: Makes one array of examples of one shape.
        batch: The examples, or an array of them, which stays as it is.
        what: What the message calls the batch.
        cure: What helps where shapes differ in one dimension alone, which it is given.
    """
    if hasattr(batch, "shape"):
        return batch
    try:
        return stack(batch)
    except (ValueError, RuntimeError) as error:
        reject_keyed_examples(batch)
        if (message := _odd_shape(batch, what, cure)) is None:
            raise
        raise BatchShapeError(message) from error


def reject_keyed_examples(batch: Sequence[Any]) -> None:
    """Raises where examples are pairs, which a handler without keys cannot take.

    Raises:
        ElementError: The first element looks like ``(key, example)``.
    """
    first = batch[0]
    if isinstance(first, tuple) and len(first) == 2 and np.ndim(first[0]) < np.ndim(first[1]):
        raise ElementError(
            f"Element 0 of the batch is a tuple of {type(first[0]).__name__} and {type(first[1]).__name__}. If it "
            "is (key, example), wrap the handler: KeyedModelHandler(handler)."
        )


def _odd_shape(batch: Sequence[Any], what: str, cure: Callable[[int], str] | None) -> str | None:
    """Which example has another shape than most, or None when all have one."""
    shapes = [_shape(example) for example in batch]
    counted = Counter(shapes)
    if len(counted) < 2:
        return None
    common, n_common = counted.most_common(1)[0]
    index = next(i for i, shape in enumerate(shapes) if shape != common)
    dim = _ragged_dimension(shapes)
    cures = "resize or pad them with with_preprocess_fn"
    if cure is not None and dim is not None:
        cures = f"{cure(dim)}, resize them with with_preprocess_fn"
    return (
        f"Element {index} of {what} has shape {shapes[index]}, while {n_common} of {len(batch)} elements have "
        f"shape {common}. Elements of one batch are stacked, so they need one shape: {cures}, group them with "
        "batch_length_fn, or set max_batch_size=1."
    )


def _ragged_dimension(shapes: Sequence[tuple[int, ...]]) -> int | None:
    """The one dimension in which shapes differ, or None when they differ in several, or in their number."""
    if len({len(shape) for shape in shapes}) > 1:
        return None
    ragged = [dim for dim, sizes in enumerate(zip(*shapes, strict=True)) if len({*sizes}) > 1]
    return ragged[0] if len(ragged) == 1 else None


def _shape(example: Any) -> tuple[int, ...]:
    shape = getattr(example, "shape", None)
    return tuple(shape) if shape is not None else np.shape(example)
