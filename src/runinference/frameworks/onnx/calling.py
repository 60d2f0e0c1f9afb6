"""Call ONNX models: check the types of their inputs and outputs, and explain the errors of onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from runinference.errors import (
    ModelInputError,
    ModelLoadError,
    ResultMismatchError,
    is_out_of_memory,
)

#: NumPy dtypes by ONNX type.
NUMPY_TYPES = {
    "tensor(string)": np.dtype(str),
    "tensor(float)": np.dtype("float32"),
    "tensor(double)": np.dtype("float64"),
    **{f"tensor({name})": np.dtype(name) for name in ("bool", "float16")},
    **{f"tensor(int{bits})": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"tensor(uint{bits})": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}

#: Types of tensors that onnxruntime doesn't convert from or to NumPy.
_NOT_IN_NUMPY = re.compile(r"bfloat16|float8|float4|int4|complex")

#: Errors of a device, which have nothing to do with the inputs.
_DEVICE_ERROR = re.compile(r"CUDA|cuDNN|cublas|TensorRT|ROCm|HIP error", re.IGNORECASE)


def check_types(session: Any, output_names: Sequence[str]) -> None:
    """Raise `ModelLoadError` if NumPy has no arrays for an input or a requested output."""
    outputs = [node for node in session.get_outputs() if node.name in output_names]
    for role, nodes in {"input": session.get_inputs(), "output": outputs}.items():
        for node in nodes:
            is_tensor = node.type.startswith("tensor(")
            if _NOT_IN_NUMPY.search(node.type) or (role == "input" and not is_tensor):
                raise ModelLoadError(
                    f"The model's {role} {node.name!r} has the type {node.type}, which onnxruntime does not "
                    f"convert {'from' if role == 'input' else 'to'} NumPy arrays. To fix this, export the model "
                    f"with float32 {role}s, for example with a Cast node at the {role}, or pass an inference_fn "
                    "that binds OrtValues."
                )


def run_session(
    session: Any, names: Sequence[str], arrays: dict[str, Any], others: Mapping[str, Any]
) -> list[Any]:
    """Run a model on the arrays of a batch, and return its outputs.

    Args:
        session: An ``onnxruntime.InferenceSession``.
        names: The names of the outputs.
        arrays: The inputs by name.
        others: The inputs whose first dimension is not the batch, by name.

    Raises:
        ModelInputError: The model does not accept the dtype, the shape or the values of an input.
        ResultMismatchError: The first dimension of an output is not the batch.
    """
    try:
        outputs: list[Any] = session.run(names, arrays)
    except Exception as error:
        if is_out_of_memory(error) or _DEVICE_ERROR.search(str(error)):
            raise
        raise _rejected(arrays, error) from error
    _check_batch_axis(session, names, outputs, arrays, others)
    return outputs


def _check_batch_axis(
    session: Any,
    names: Sequence[str],
    outputs: Sequence[Any],
    arrays: dict[str, Any],
    others: Mapping[str, Any],
) -> None:
    """Raise `ResultMismatchError` if an output is as long as the batch only by chance.

    The model is called again with another batch size, once for each output whose declared shape leaves this open.
    """
    batched = {name: array for name, array in arrays.items() if name not in others}
    inputs = {node.name: node.shape for node in session.get_inputs() if node.name in batched}
    batch_dims = {shape[0] for shape in inputs.values() if shape}
    if not batch_dims or any(isinstance(dim, int) for dim in batch_dims):
        return
    n_elements = len(next(iter(batched.values())))
    shapes = {node.name: node.shape for node in session.get_outputs()}
    known = _KNOWN_AXES.setdefault(session, {})
    for name, output in zip(names, outputs, strict=True):
        shape = getattr(output, "shape", ())
        if not shape or shape[0] != n_elements or (shapes[name] or [None])[0] in batch_dims:
            continue
        is_fixed = bool(shapes[name]) and isinstance(shapes[name][0], int)
        if not is_fixed and (len(shape) < 3 or n_elements not in shape[1:]):
            continue
        if name not in known:
            known[name] = _follows_batch(session, name, arrays, batched, n_elements)
        if not known[name]:
            raise ResultMismatchError(
                f"The output {name!r} of the model has shape {tuple(shape)} for a batch of {n_elements}, and its "
                "first dimension does not change with the batch. It cannot be split by element. To fix this, "
                "export the model with a Transpose that moves the batch to the front, or leave this output out of "
                "output_names."
            )


def _follows_batch(
    session: Any, name: str, arrays: dict[str, Any], batched: dict[str, Any], n_elements: int
) -> bool:
    size = 3 if n_elements == 2 else 2
    resized = {key: np.concatenate([array[:1]] * size) for key, array in batched.items()}
    try:
        [output] = session.run([name], {**arrays, **resized})
    except Exception:  # a model for batches of one size
        return True
    return len(output) == size


_KNOWN_AXES: WeakKeyDictionary[Any, dict[str, bool]] = WeakKeyDictionary()


def _rejected(arrays: dict[str, Any], error: Exception) -> ModelInputError:
    found = ", ".join(
        f"{name!r}: {array.dtype} {tuple(array.shape[1:])}"
        for name, array in ((name, np.asarray(value)) for name, value in arrays.items())
    )
    hint = (
        "check the shapes and the values of the elements, and reshape them with with_preprocess_fn"
    )
    if "data type" in str(error):
        hint = "convert the elements to the type that the model expects, with with_preprocess_fn"
    return ModelInputError(
        f"onnxruntime cannot run the model on elements of {found} ({_summarize(error)}). To fix this, {hint}."
    )


def _summarize(error: Exception) -> str:
    """Return the cause in a message of onnxruntime, without the location in its source."""
    message = " ".join(str(error).split()).rpartition("[ONNXRuntimeError] : ")[2]
    message = re.sub(r"^\d+ : \w+ : ", "", message)
    message = re.sub(r"(/\S+/)?\w+\.(cc|h):\d+ ", "", message)
    return message[:300].strip(" .")
