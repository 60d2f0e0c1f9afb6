"""Calls models of TensorFlow and Keras on a batch: by the names of their inputs, and as graphs where they can."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

from runinference.collate.named_inputs import InputSpec, bind_inputs, stack_columns
from runinference.errors import BatchShapeError, ElementError
from runinference.extras import need
from runinference.frameworks.tensorflow.loading import reason

tf = need("tensorflow", extra="tensorflow")


def output_of(model: Any, batch: Sequence[Any], inference_args: Mapping[str, Any]) -> Any:
    """What a model makes of a batch.

    Args:
        model: A Keras model; a SavedModel; or anything that can be called.
        batch: Arrays or tensors of one shape, or dictionaries of them by the names of inputs.
        inference_args: Keywords of the call; for a signature further inputs.

    Raises:
        BatchShapeError: An example has another shape than the others, or than the model takes.
        ElementError: An input is missing, unknown, or of a type that the model does not take.
    """
    if (signature := signature_of(model)) is not None:
        return _call_signature(signature, batch, inference_args)
    if not getattr(model, "inputs", None):
        return _called(model, stack_columns(batch), [], inference_args)
    inputs = [_of_keras(one) for one in model.inputs]
    named = bind_inputs(batch, inputs, {})
    given = (
        named
        if isinstance(getattr(model, "input", None), (list, tuple, dict))
        else named[inputs[0].name]
    )
    return _called(_graph_of(model), given, model.inputs, inference_args)


def _call_signature(signature: Any, batch: Sequence[Any], others: Mapping[str, Any]) -> Any:
    specs = signature.structured_input_signature[1]
    inputs = [InputSpec(name, _numpy_type(spec), _shape(spec)) for name, spec in specs.items()]
    named = bind_inputs(batch, inputs, others)
    typed = {name: tf.convert_to_tensor(array, specs[name].dtype) for name, array in named.items()}
    output = _called(lambda tensors: signature(**tensors), typed, specs.values(), {})
    return next(iter(output.values())) if len(output) == 1 else output


def _called(
    call: Callable[..., Any], given: Any, takes: Iterable[Any], keywords: Mapping[str, Any]
) -> Any:
    """The output for tensors; several of them as a tuple, since a list is one of results."""
    try:
        output = call(tf.nest.map_structure(tf.convert_to_tensor, given), **keywords)
    except (ValueError, tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
        raise _refused(given, takes, error) from error
    return tuple(output) if isinstance(output, list) else output


def signature_of(model: Any) -> Any:
    """The signature of a SavedModel to call, or None."""
    signatures = getattr(model, "signatures", None) or {}
    if len(signatures) == 1:
        return next(iter(signatures.values()))
    return signatures.get("serving_default")


def _graph_of(model: Any) -> Callable[..., Any]:
    """A Keras model as a graph, which runs up to ten times as fast; made once, as long as the model lives.

    A model that knows its inputs was traced when it was built, so it can be traced again.
    """
    if getattr(model, "run_eagerly", False):
        return model  # type: ignore[no-any-return]
    if model not in _GRAPHS:
        itself: Any = ref(model)  # a graph that held its model would keep it alive
        _GRAPHS[model] = tf.function(
            lambda inputs, **given: itself()(inputs, **given), reduce_retracing=True
        )
    return _GRAPHS[model]


_GRAPHS: WeakKeyDictionary[Any, Callable[..., Any]] = WeakKeyDictionary()


def _of_keras(tensor: Any) -> InputSpec:
    """An input of a Keras model; Keras itself makes shapes fit where they can be made to."""
    return InputSpec(tensor.name, _numpy_type(tensor), ())


def _numpy_type(spec: Any) -> Any:
    dtype = tf.as_dtype(spec.dtype)
    return dtype.as_numpy_dtype if dtype.is_floating or dtype.is_integer or dtype.is_bool else None


def _shape(spec: Any) -> tuple[Any, ...]:
    return () if spec.shape.rank is None else tuple(spec.shape)


def _refused(given: Any, takes: Iterable[Any], error: Exception) -> Exception:
    shapes = tf.nest.map_structure(lambda array: f"{_name(array)} {tuple(array.shape[1:])}", given)
    wanted = [f"{one.name!r}: {_name(one)} {tuple(one.shape[1:])}" for one in takes]
    kind = (
        BatchShapeError if isinstance(error, ValueError) else ElementError
    )  # Keras looks at shapes
    return kind(
        f"The model refuses elements of {shapes} ({reason(error)}). "
        + (f"It takes {', '.join(wanted)}. " if wanted else "")
        + "Reshape or convert them with with_preprocess_fn."
    )


def _name(array: Any) -> str:
    return str(tf.as_dtype(array.dtype).name)
