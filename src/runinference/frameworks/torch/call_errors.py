"""Explain why PyTorch rejects the tensors of a batch: their dtype, their shape, or the names of the inputs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from runinference.errors import ModelInputError, is_out_of_memory, suggest
from runinference.extras import need
from runinference.frameworks.torch.batch_tensors import BatchTensors
from runinference.frameworks.torch.loading import first_sentence

torch = need("torch", extra="torch")

#: Messages of PyTorch about a wrong dtype.
_DTYPE = re.compile(
    r"same dtype|share same datatype|scalar type|should be the same|does not match weight dtype"
    r"|not implemented for '|expected .* dtype|cannot be cast|Float did not match"
)
_INTEGERS = re.compile(r"scalar types?:? Long")
#: Messages of PyTorch about a wrong shape, or about an index that is too large.
_SHAPE = re.compile(
    r"shapes cannot be multiplied|size mismatch|must match|must be equal to input_size|[Ee]xpected \d-?D"
    r"|expected input|[Gg]iven (groups|normalized_shape)|should contain \d+ elements|must be \d-?D|Kernel size"
    r"|is invalid for input of size|out of range|number of dim|dimension|incompatible|inconsistent tensor size"
)


@contextmanager
def explain_call_errors(
    model: Any, function: Callable[..., Any], tensors: BatchTensors, inference_args: dict[str, Any]
) -> Iterator[None]:
    """Convert an error of PyTorch about the tensors of a call to a `ModelInputError`.

    Errors that the model's own code raises, and those of subclasses, are not changed.
    """
    try:
        yield
    except TypeError as error:
        if (message := _find_wrong_name(function, tensors, inference_args)) is None:
            raise
        raise ModelInputError(message) from error
    except (RuntimeError, ValueError, IndexError) as error:
        if type(error) not in (RuntimeError, ValueError, IndexError) or is_out_of_memory(error):
            raise
        if (message := _find_wrong_tensor(model, error, tensors)) is None:
            raise
        raise ModelInputError(message) from error


def _find_wrong_name(
    function: Callable[..., Any], tensors: BatchTensors, inference_args: dict[str, Any]
) -> str | None:
    """Describe an input that the function doesn't take, or that is missing. Return None if there is none."""
    try:
        signature = inspect.signature(getattr(function, "forward", function))
    except (TypeError, ValueError):
        return None
    given = {**tensors.kwargs, **inference_args}
    try:
        signature.bind(*tensors.args, **given)
    except TypeError as error:
        names = list(signature.parameters)
        hints = [suggest(name, names) for name in given if name not in names]
        listed = ", ".join(names) or "none"
        form = (
            "give each element all inputs as a dictionary of tensors by name, with PytorchModelHandlerKeyedTensor"
            if tensors.args
            else "give each element a tensor for each required input, and no others"
        )
        return (
            f"The model cannot be called with the inputs of the batch: {error}.{''.join(hints)} Its inputs are: "
            f"{listed}. To fix this, {form}, or pass values for all elements in inference_args."
        )
    return None


def _find_wrong_tensor(model: Any, error: Exception, tensors: BatchTensors) -> str | None:
    message = _get_cause(error)
    if _DTYPE.search(message):
        hint = _suggest_dtype(model, message, [*tensors.args, *tensors.kwargs.values()])
    elif _SHAPE.search(message):
        hint = "reshape, resize or index the elements as the model expects, with with_preprocess_fn"
    else:
        return None
    parts = [*enumerate(tensors.args), *tensors.kwargs.items()]
    found = ", ".join(
        f"{'' if isinstance(name, int) else f'{name!r}: '}{tensor.dtype} {tuple(tensor.shape[1:])}"
        for name, tensor in parts
    )
    return f"The model does not accept elements of {found} ({message}). To fix this, {hint}."


def _suggest_dtype(model: Any, message: str, tensors: Sequence[Any]) -> str:
    dtypes = {tensor.dtype for tensor in tensors}
    dtype = next((p.dtype for p in _get_weights(model) if p.is_floating_point()), None)
    rows = ""
    if _INTEGERS.search(message) and all(each.is_floating_point for each in dtypes):
        dtype, rows = torch.int64, ". In rows, convert the columns to integers before RunInference"
    elif not all(each.is_floating_point for each in dtypes):
        rows = (
            ". In rows, convert the columns to floats before RunInference, or declare them as float with "
            "with_output_types"
        )
    example = f"for example lambda x: x.to({dtype or 'dtype'})"
    return f"convert the elements with with_preprocess_fn, {example}{rows}"


def _get_cause(error: Exception) -> str:
    """Return the first sentence of a message; for TorchScript, that of the operation that failed."""
    lines = str(error).strip().splitlines()
    if lines and "TorchScript" in lines[0]:
        lines = [re.sub(r"^\w+Error: ", "", lines[-1])]
    return first_sentence(RuntimeError("\n".join(lines)))


def _get_weights(model: Any) -> Iterator[Any]:
    return model.parameters() if isinstance(model, torch.nn.Module) else iter(())
