"""Bind examples to the named inputs of a model: stack them, and convert them to its dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from runinference.collate.stack import stack_arrays
from runinference.errors import BatchShapeError, ElementError, suggest


class InputSpec(NamedTuple):
    """An input that a model declares.

    Attributes:
        name: The name of the input.
        dtype: Its NumPy dtype, or None if NumPy has no such dtype.
        shape: Its size in each dimension, with the batch first. A value that is not an integer stands for any
            size. Empty if the shape is unknown.
        required: Whether each call must include the input.
    """

    name: str
    dtype: Any
    shape: tuple[Any, ...]
    required: bool = True


def bind_inputs(
    batch: Sequence[Any], inputs: Sequence[InputSpec], others: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arrays for a call of a model, by input name.

    >>> pixels = InputSpec("pixels", np.float32, (None, 2))
    >>> bind_inputs([[0, 1], [2, 3]], [pixels], {})["pixels"].dtype
    dtype('float32')

    Args:
        batch: Arrays for the first input that is not in ``others``, or dictionaries of arrays by input name.
        inputs: The inputs of the model.
        others: Values for all examples, by input name.
    """
    specs = {spec.name: spec for spec in inputs}
    columns = stack_columns(batch)
    if not isinstance(columns, Mapping):
        first = next((name for name in specs if name not in others), inputs[0].name)
        columns = {first: columns}
    check_input_names([*columns, *others], inputs)
    n_elements = len(next(iter(columns.values()))) if isinstance(batch, Mapping) else len(batch)
    for name, array in columns.items():
        check_input_shape(array, specs[name], n_elements)
    return {name: _convert(array, specs[name]) for name, array in {**columns, **others}.items()}


def check_input_names(given: Sequence[str], inputs: Sequence[InputSpec]) -> None:
    """Raise `ElementError` if a required input is missing, or a name is not an input of the model."""
    specs = {spec.name: spec for spec in inputs}
    names = ", ".join(specs)
    for name in given:
        if name not in specs:
            raise ElementError(
                f"The model has no input {name!r}.{suggest(name, specs)} Its inputs are {names}."
            )
    for name, spec in specs.items():
        if spec.required and name not in given:
            raise ElementError(
                f"The model's input {name!r} is missing. To fix this, pass each element as a dictionary of arrays "
                f"by input name ({names}), or pass values for all elements in inference_args."
            )


def check_input_shape(array: Any, spec: InputSpec, n_elements: int) -> None:
    """Raise `BatchShapeError` if a batch of ``n_elements`` elements does not have the shape of an input."""
    sizes = spec.shape
    if not sizes:
        return
    if isinstance(sizes[0], int) and sizes[0] != n_elements:
        elements = f"{n_elements} element{'s' * (n_elements != 1)}"
        raise BatchShapeError(
            f"The batch has {elements}, and the model's input {spec.name!r} was exported for exactly "
            f"{sizes[0]}. To fix this, export it with a dynamic first dimension, or set min_batch_size={sizes[0]} "
            f"and max_batch_size={sizes[0]}."
        )
    found = tuple(array.shape[1:])
    if len(sizes) != len(array.shape) or any(
        isinstance(size, int) and size != actual
        for size, actual in zip(sizes[1:], found, strict=True)
    ):
        shape = ", ".join(str(size) if isinstance(size, int) else "any" for size in sizes[1:])
        raise BatchShapeError(
            f"Elements of the batch have shape {found}, and the model's input {spec.name!r} takes ({shape}). To "
            "fix this, reshape them with with_preprocess_fn."
        )


def stack_columns(batch: Sequence[Any]) -> Any:
    """Stack a batch into one array, or a batch of dictionaries into one array per key."""
    if isinstance(batch, Mapping):
        return dict(batch)
    first = batch[0]
    if not isinstance(first, Mapping):
        return np.asarray(stack_arrays(batch))
    for index, example in enumerate(batch):
        if not isinstance(example, Mapping) or example.keys() != first.keys():
            found = sorted(example) if isinstance(example, Mapping) else type(example).__name__
            raise BatchShapeError(
                f"Element {index} of the batch has the inputs {found}, and element 0 has {sorted(first)}. To fix "
                "this, give all elements the same inputs."
            )
    return {
        name: stack_arrays([example[name] for example in batch], f"the batch's {name!r}")
        for name in first
    }


def _convert(array: Any, spec: InputSpec) -> Any:
    """Convert an array to the dtype of an input, without turning numbers into another kind or into infinity."""
    array = np.asarray(array)
    if spec.dtype is None or array.dtype == spec.dtype:
        return array
    name = np.dtype(spec.dtype).name
    if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise ElementError(
            f"The model's input {spec.name!r} takes {name}, and the elements are {array.dtype}, another kind of "
            "number. To fix this, convert them with with_preprocess_fn, for example "
            f'lambda x: np.asarray(x).astype("{name}").'
        )
    with np.errstate(over="ignore"):
        converted = array.astype(spec.dtype)
    if not _is_preserved(array, converted):
        raise ElementError(
            f"The model's input {spec.name!r} takes {name}, and an element holds {array.dtype} numbers that are "
            "too large for it. To fix this, scale or clip them with with_preprocess_fn."
        )
    return converted


def _is_preserved(array: Any, converted: Any) -> bool:
    if np.issubdtype(converted.dtype, np.integer):
        return np.array_equal(converted, array)
    return np.array_equal(np.isfinite(converted), np.isfinite(array))
