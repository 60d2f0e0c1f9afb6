"""Bind examples to the named inputs of a model: stack them, and convert them to its dtypes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from runinference.collate.exact import cast, check_integers, check_texts, to_array
from runinference.collate.stack import CastFn, reject_keyed_examples, stack_arrays
from runinference.errors import BatchShapeError, ElementError, suggest


class InputSpec(NamedTuple):
    """An input that a model declares.

    Attributes:
        name: The name of the input.
        dtype: Its NumPy dtype, ``np.dtype(str)`` for text, or ``np.dtype(bytes)`` for text or bytes. None if NumPy
            has no such dtype, or for any dtype.
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
    columns = _get_columns(batch)
    if not isinstance(columns, Mapping):
        reject_keyed_examples(batch)
        first = next((name for name in specs if name not in others), inputs[0].name)
        columns = {first: columns}
    check_input_names([*columns, *others], inputs)
    is_keyed = isinstance(batch, Mapping) or isinstance(batch[0], Mapping)
    arrays = {
        name: stack_arrays(
            column,
            f"the batch's {name!r}" if is_keyed else "the batch",
            cast=_get_cast(specs[name]),
        )
        for name, column in columns.items()
    }
    n_elements = len(next(iter(arrays.values()))) if isinstance(batch, Mapping) else len(batch)
    for name, array in arrays.items():
        check_input_shape(array, specs[name], n_elements)
    return {**arrays, **{name: _bind_value(value, specs[name]) for name, value in others.items()}}


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
    columns = _get_columns(batch)
    if not isinstance(columns, Mapping):
        return np.asarray(stack_arrays(columns))
    return {name: stack_arrays(column, f"the batch's {name!r}") for name, column in columns.items()}


def _get_columns(batch: Any) -> Any:
    """Return the values of each key of a batch of dictionaries, or a batch of other values as it is."""
    if isinstance(batch, Mapping) or not isinstance(batch[0], Mapping):
        return batch
    first = batch[0]
    for index, example in enumerate(batch):
        if not isinstance(example, Mapping) or example.keys() != first.keys():
            found = sorted(example) if isinstance(example, Mapping) else type(example).__name__
            raise BatchShapeError(
                f"Element {index} of the batch has the inputs {found}, and element 0 has {sorted(first)}. To fix "
                "this, give all elements the same inputs.",
                index=index,
            )
    return {name: [example[name] for example in batch] for name in first}


def _bind_value(value: Any, spec: InputSpec) -> Any:
    """Convert a value for all examples to the dtype of an input."""
    array = to_array(value, f"the value of the input {spec.name!r}")
    if (convert := _get_cast(spec)) is not None:
        array = convert(array)
    check_integers([value], [array], f"the values of {spec.name!r}")
    return array


def _get_cast(spec: InputSpec) -> CastFn | None:
    return (
        None if spec.dtype is None else functools.partial(_convert, spec.name, np.dtype(spec.dtype))
    )


def _convert(input_name: str, dtype: Any, array: Any) -> Any:
    """Convert an array to the dtype of an input without changing a value. Floats may be rounded to other floats.

    Raises:
        ElementError: The input has another kind of value, or cannot hold a number.
    """
    array = np.asarray(array)
    if array.dtype == dtype:
        return array
    if dtype.kind in "US":
        return check_texts(array, input_name, allow_bytes=dtype.kind == "S")
    name = dtype.name
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise ElementError(
            f"The model's input {input_name!r} takes {name}, and the elements are {array.dtype}, another kind of "
            "number. To fix this, convert them with with_preprocess_fn, for example "
            f'lambda x: np.asarray(x).astype("{name}").'
        )
    converted, changed = cast(array, dtype)
    if changed is not None:
        raise ElementError(
            f"The model's input {input_name!r} takes {name}, and an element holds {array[changed]} "
            f"({array.dtype}), which is too large for {name} to hold unchanged. To fix this, scale, clip or "
            "convert it with with_preprocess_fn."
        )
    return converted
