"""Call TensorFlow and Keras models on batches: bind inputs by name, and run Keras models as graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

from runinference.collate.named_inputs import InputSpec, bind_inputs, stack_columns
from runinference.collate.pytree import Path, leaves_with_path, map_with_path
from runinference.errors import (
    BatchShapeError,
    ElementError,
    ResultMismatchError,
    is_out_of_memory,
)
from runinference.extras import need
from runinference.frameworks.tensorflow.errors import summarize

tf = need("tensorflow", extra="tensorflow")


def call_model(model: Any, batch: Sequence[Any], inference_args: Mapping[str, Any]) -> Any:
    """Call a Keras model, a SavedModel or another callable on a batch, and return its output."""
    if (signature := get_signature(model)) is not None:
        return _call_signature(signature, batch, inference_args)
    if not getattr(model, "inputs", None):
        return _call(model, stack_columns(batch), {}, inference_args)
    structure = _get_input_structure(model)
    names = {path: _get_input_name(path, tensor) for path, tensor in leaves_with_path(structure)}
    if len({*names.values()}) < len(names):  # nested dictionaries with the same key
        names = {path: str(tensor.name) for path, tensor in leaves_with_path(structure)}
    tensors = {names[path]: tensor for path, tensor in leaves_with_path(structure)}
    # Keras adapts shapes itself where it can, so they aren't checked here.
    inputs = [InputSpec(name, _get_numpy_type(tensor), ()) for name, tensor in tensors.items()]
    bound = bind_inputs(batch, inputs, {})
    arrays = map_with_path(structure, lambda path, _: bound[names[path]])
    output = _call(_get_graph(model), arrays, tensors, inference_args)
    n_elements = len(next(iter(bound.values())))
    for tensor in getattr(model, "outputs", None) or ():
        _check_batch_axis(tensor.name, tensor.shape, model.inputs, n_elements)
    return output


def get_inputs(model: Any) -> list[InputSpec]:
    """Return the inputs of a Keras model or SavedModel, with the shapes that it declares; none if it has none."""
    if (signature := get_signature(model)) is not None:
        specs = signature.structured_input_signature[1]
    elif getattr(model, "inputs", None):
        structure = leaves_with_path(_get_input_structure(model))
        specs = {_get_input_name(path, tensor): tensor for path, tensor in structure}
    else:
        specs = {}
    return [_to_spec(name, spec) for name, spec in specs.items()]


def get_output(model: Any) -> InputSpec | None:
    """Return the only output of a Keras model or SavedModel; None if it has several or none."""
    signature = get_signature(model)
    outputs = getattr(model, "outputs", None) or []
    if signature is not None:
        outputs = list(signature.structured_outputs.values())
    return _to_spec("output", outputs[0]) if len(outputs) == 1 else None


def _to_spec(name: str, spec: Any) -> InputSpec:
    shape = tf.TensorShape(spec.shape)
    return InputSpec(name, _get_numpy_type(spec), () if shape.rank is None else tuple(shape))


def get_signature(model: Any) -> Any:
    """Return the only signature of a SavedModel, or ``serving_default``, or None."""
    signatures = getattr(model, "signatures", None) or {}
    if len(signatures) == 1:
        return next(iter(signatures.values()))
    return signatures.get("serving_default")


def _call_signature(signature: Any, batch: Sequence[Any], more_inputs: Mapping[str, Any]) -> Any:
    specs = signature.structured_input_signature[1]
    shapes = {n: () if spec.shape.rank is None else tuple(spec.shape) for n, spec in specs.items()}
    inputs = [InputSpec(n, _get_numpy_type(spec), shapes[n]) for n, spec in specs.items()]
    arrays = bind_inputs(batch, inputs, more_inputs)
    typed = {name: tf.convert_to_tensor(array, specs[name].dtype) for name, array in arrays.items()}
    output = _call(lambda tensors: signature(**tensors), typed, specs, {})
    batched = [spec for name, spec in specs.items() if name not in more_inputs]
    n_elements = len(typed[next(name for name in specs if name not in more_inputs)])
    for name, spec in signature.structured_outputs.items():
        _check_batch_axis(name, spec.shape, batched, n_elements)
    return next(iter(output.values())) if len(output) == 1 else output


def _call(
    function: Callable[..., Any], arrays: Any, specs: Mapping[str, Any], keywords: Mapping[str, Any]
) -> Any:
    """Call a function on tensors. Return several outputs as a tuple, because a list means one result each."""
    try:
        output = function(tf.nest.map_structure(tf.convert_to_tensor, arrays), **keywords)
    except _INPUT_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise _wrong_input(arrays, specs, error) from error
    return tuple(output) if isinstance(output, list) else output


def _get_graph(model: Any) -> Callable[..., Any]:
    """Return a Keras model as a graph, which runs up to ten times faster, and cache the graph."""
    if getattr(model, "run_eagerly", False):
        return model  # type: ignore[no-any-return]
    if model not in _GRAPHS:
        get_model: Any = ref(model)  # a strong reference from the graph would keep the model alive
        _GRAPHS[model] = tf.function(
            lambda inputs, **keywords: get_model()(inputs, **keywords), reduce_retracing=True
        )
    return _GRAPHS[model]


_GRAPHS: WeakKeyDictionary[Any, Callable[..., Any]] = WeakKeyDictionary()


def _get_numpy_type(spec: Any) -> Any:
    dtype = tf.as_dtype(spec.dtype)
    if dtype == tf.string:
        return bytes
    return dtype.as_numpy_dtype if dtype.is_floating or dtype.is_integer or dtype.is_bool else None


#: What TensorFlow, Keras and the code of a model raise for inputs of another dtype, shape or name.
_INPUT_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
)


def _get_input_structure(model: Any) -> Any:
    """Return the inputs of a Keras model in the structure that its call takes: a tensor, a list or a "
    "dictionary."""
    structure = getattr(model, "input", None)
    return list(model.inputs) if structure is None else structure


def _get_input_name(path: Path, tensor: Any) -> str:
    """Return the name of an input: its key if the model's call takes a dictionary, or the name of its tensor."""
    return str(path[-1]) if path and isinstance(path[-1], str) else str(tensor.name)


def _check_batch_axis(name: str, shape: Any, inputs: Iterable[Any], n_elements: int) -> None:
    """Raise `ResultMismatchError` if an output is declared to have the same length for each batch."""
    declared = [spec.shape for spec in (*inputs, tf.TensorSpec(shape))]
    if any(known.rank is None or known.rank == 0 for known in map(tf.TensorShape, declared)):
        return
    *batch_sizes, length = (known[0] for known in declared)
    if length == n_elements and None in batch_sizes:
        raise ResultMismatchError(
            f"The output {name!r} of the model has the shape {tuple(shape)}, whose first dimension is not the "
            "batch. It cannot be split by element. To fix this, move the batch to the front of this output before "
            "the model is saved, for example with tf.transpose, or leave the output out."
        )


def _wrong_input(arrays: Any, specs: Mapping[str, Any], error: Exception) -> Exception:
    found = tf.nest.map_structure(_describe_element, arrays)
    expected = ", ".join(f"{name!r}: {_describe_element(spec)}" for name, spec in specs.items())
    # Keras raises ValueError for a wrong shape.
    error_type = BatchShapeError if isinstance(error, ValueError) else ElementError
    return error_type(
        f"The model rejected elements of {found}: {_get_cause(error)}. "
        + (f"It expects {expected}. " if expected else "")
        + "Reshape or convert them with with_preprocess_fn."
    )


def _get_cause(error: Exception) -> str:
    if isinstance(error, KeyError) and error.args:  # its message is a repr
        return f"no input {summarize(ValueError(error.args[0]))!r}"
    return summarize(error)


def _describe_element(array: Any) -> str:
    return f"{tf.as_dtype(array.dtype).name} {tuple(array.shape[1:])}"
