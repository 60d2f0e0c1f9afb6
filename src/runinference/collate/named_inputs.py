"""Examples as the named inputs of a model: stacked, of the type and the shape that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from runinference.collate.stack import stack_arrays
from runinference.errors import BatchShapeError, ElementError, suggest


class InputSpec(NamedTuple):
    """What a model says of one of its inputs.

    Attributes:
        name: Its name.
        dtype: The type of its numbers; None where NumPy has no such type, or they are no numbers.
        shape: The size of each dimension, the batch's first; anything but a number where any size will do.
            Empty if nothing is known.
        required: Whether a call must give it.
    """

    name: str
    dtype: Any
    shape: tuple[Any, ...]
    required: bool = True


def bind_inputs(
    batch: Sequence[Any], inputs: Sequence[InputSpec], others: Mapping[str, Any]
) -> dict[str, Any]:
    """The arrays for a call of a model, by name.

    >>> pixels = InputSpec("pixels", np.float32, (None, 2))
    >>> bind_inputs([[0, 1], [2, 3]], [pixels], {})["pixels"].dtype
    dtype('float32')

    Args:
        batch: Arrays for the first input that the others leave; or dictionaries of arrays by name.
        inputs: What the model takes.
        others: What is the same for all examples, by name.

    Raises:
        BatchShapeError: An example has another shape than the others, or than the model takes.
        ElementError: An input is missing, unknown, or of a type that the model does not take.
    """
    known = {one.name: one for one in inputs}
    columns = stack_columns(batch)
    if not isinstance(columns, Mapping):
        first = next((name for name in known if name not in others), inputs[0].name)
        columns = {first: columns}
    check_input_names([*columns, *others], inputs)
    n_elements = len(next(iter(columns.values()))) if isinstance(batch, Mapping) else len(batch)
    for name, array in columns.items():
        check_input_shape(array, known[name], n_elements)
    return {name: _typed(array, known[name]) for name, array in {**columns, **others}.items()}


def check_input_names(given: Sequence[str], inputs: Sequence[InputSpec]) -> None:
    """Raises unless a call gives what a model needs, and nothing that it does not know.

    Raises:
        ElementError: An input is missing or unknown.
    """
    known = {one.name: one for one in inputs}
    for name in given:
        if name not in known:
            raise ElementError(
                f"The model has no input {name!r}.{suggest(name, known)} Its inputs are {', '.join(known)}."
            )
    for name, one in known.items():
        if one.required and name not in given:
            raise ElementError(
                f"The model's input {name!r} is missing. Give each element as a dictionary of arrays by name: "
                f"{', '.join(known)}; or give what is the same for all elements in inference_args."
            )


def check_input_shape(array: Any, wanted: InputSpec, n_elements: int) -> None:
    """Raises unless a batch has the shape that an input takes.

    Args:
        array: The batch, or anything else with a shape.
        wanted: The input.
        n_elements: How many elements the batch has.

    Raises:
        BatchShapeError: It has another; the message says both.
    """
    sizes = wanted.shape
    if not sizes:
        return
    if isinstance(sizes[0], int) and sizes[0] != n_elements:
        elements = f"{n_elements} element{'s' * (n_elements != 1)}"
        raise BatchShapeError(
            f"The batch has {elements}, and the model's input {wanted.name!r} was exported for exactly "
            f"{sizes[0]}. Export it with a free first dimension, or set min_batch_size={sizes[0]} and "
            f"max_batch_size={sizes[0]}."
        )
    found = tuple(array.shape[1:])
    if len(sizes) != len(array.shape) or any(
        isinstance(size, int) and size != there
        for size, there in zip(sizes[1:], found, strict=True)
    ):
        shape = ", ".join(str(size) if isinstance(size, int) else "any" for size in sizes[1:])
        raise BatchShapeError(
            f"Elements of the batch have shape {found}, and the model's input {wanted.name!r} takes ({shape}). "
            "Reshape them with with_preprocess_fn."
        )


def stack_columns(batch: Sequence[Any]) -> Any:
    """The batch as one array; a batch of dictionaries as one array for each of their names, as it may be already.

    Raises:
        BatchShapeError: The examples have several shapes, or other names than the first.
    """
    if isinstance(batch, Mapping):
        return dict(batch)
    first = batch[0]
    if not isinstance(first, Mapping):
        return np.asarray(stack_arrays(batch))
    for index, example in enumerate(batch):
        if not isinstance(example, Mapping) or example.keys() != first.keys():
            found = sorted(example) if isinstance(example, Mapping) else type(example).__name__
            raise BatchShapeError(
                f"Element {index} of the batch has the inputs {found}, and element 0 has {sorted(first)}. "
                "Give all elements the same inputs."
            )
    return {
        name: stack_arrays([example[name] for example in batch], f"the batch's {name!r}")
        for name in first
    }


def _typed(array: Any, wanted: InputSpec) -> Any:
    """An array in the type that an input has: numbers keep their kind, stay finite, and whole if they are."""
    array = np.asarray(array)
    if wanted.dtype is None or array.dtype == wanted.dtype:
        return array
    name = np.dtype(wanted.dtype).name
    if not np.can_cast(array.dtype, wanted.dtype, "same_kind"):
        raise ElementError(
            f"The model's input {wanted.name!r} takes {name}, and the elements are {array.dtype}, another kind of "
            "number. Convert them with with_preprocess_fn, for example "
            f'lambda x: np.asarray(x).astype("{name}").'
        )
    with np.errstate(over="ignore"):
        converted = array.astype(wanted.dtype)
    if not _kept(array, converted):
        raise ElementError(
            f"The model's input {wanted.name!r} takes {name}, and an element holds {array.dtype} numbers that are "
            "too large for it. Scale or clip them with with_preprocess_fn."
        )
    return converted


def _kept(array: Any, converted: Any) -> bool:
    if np.issubdtype(converted.dtype, np.integer):
        return np.array_equal(converted, array)
    return np.array_equal(np.isfinite(converted), np.isfinite(array))
