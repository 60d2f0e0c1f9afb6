"""Examples of one shape become one batch; an example of another shape is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from runinference.errors import BatchShapeError


def stack_arrays(batch: Sequence[Any]) -> Any:
    """One array of the batch's examples, along a new first axis; an array of rows stays as it is.

    Examples may be whatever NumPy makes an array of: arrays, lists, rows.

    Raises:
        BatchShapeError: The examples have several shapes.
    """
    return stacked(np.stack, batch)


def stacked(stack: Callable[[Any], Any], batch: Sequence[Any]) -> Any:
    """``stack(batch)``, with an error that names the example that does not fit."""
    if hasattr(batch, "shape"):
        return batch
    try:
        return stack(batch)
    except (ValueError, RuntimeError) as error:
        if (message := _odd_shape(batch)) is None:
            raise
        raise BatchShapeError(message) from error


def _odd_shape(batch: Sequence[Any], what: str = "the batch") -> str | None:
    """Which example has another shape than most, or None when all have one."""
    shapes = [_shape(example) for example in batch]
    counted = Counter(shapes)
    if len(counted) < 2:
        return None
    common, n_common = counted.most_common(1)[0]
    index = next(i for i, shape in enumerate(shapes) if shape != common)
    return (
        f"Element {index} of {what} has shape {shapes[index]}, while {n_common} of {len(batch)} elements have "
        f"shape {common}. Elements of one batch are stacked, so they need one shape: resize or pad them with "
        "with_preprocess_fn, group them with batch_length_fn, or set max_batch_size=1."
    )


def _shape(example: Any) -> tuple[int, ...]:
    shape = getattr(example, "shape", None)
    return tuple(shape) if shape is not None else np.shape(example)
