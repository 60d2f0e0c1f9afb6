"""Call ONNX models: check the types of their inputs and outputs, and explain the errors of onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from runinference.errors import ModelInputError, ModelLoadError, is_out_of_memory
from runinference.handlers.compute_turn import compute_turn

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


def run_session(session: Any, names: Sequence[str], arrays: dict[str, Any]) -> list[Any]:
    """Return the outputs of a model, by the names of the outputs and of the inputs.

    Raises:
        ModelInputError: The model does not accept the dtype, the shape or the values of an input.
    """
    try:
        with compute_turn():
            return list(session.run(names, arrays))
    except Exception as error:
        if is_out_of_memory(error) or _DEVICE_ERROR.search(str(error)):
            raise
        raise _rejected(arrays, error) from error


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
