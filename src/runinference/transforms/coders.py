"""The coder of ``PredictionResult``, and the declared type of a handler's results."""

from __future__ import annotations

import copy
import functools
import sys
import typing
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.coders import coder_impl

from runinference.collate.unsplit import returns_unsplit_results
from runinference.errors import CoderVersionError
from runinference.handlers.cached_handler import CachedModelHandler
from runinference.handlers.keyed import KeyedModelHandler
from runinference.handlers.row_handler import RowModelHandler
from runinference.results import PredictionResult
from runinference.transforms.row_types import get_output_type, get_pair_types

#: The version of the wire format, and the first byte of each encoded value. Increase it with each change
#: of the format, and keep decoding the examples of earlier versions in tests/transforms/test_coders.py.
WIRE_VERSION = 1

_ARRAY, _SCALAR, _TENSOR, _OTHER = range(4)


class _LeafCoderImpl(coder_impl.StreamCoderImpl):  # type: ignore[misc]
    """A coder for values that Beam's FastPrimitivesCoder doesn't support.

    Arrays, NumPy scalars and tensors are encoded as a short header and raw bytes. Everything else is pickled.
    """

    def __init__(self, fallback: Any) -> None:
        self._fallback = fallback

    def encode_to_stream(self, value: Any, out: Any, nested: bool) -> None:
        if type(value) is np.ndarray and _is_plain_dtype(value.dtype, "biufcSUmM"):
            out.write_byte(_ARRAY)
            _write_array(value, out)
        elif isinstance(value, np.generic) and _is_plain_dtype(value.dtype, "biufcmM"):
            out.write_byte(_SCALAR)
            _write_array(np.asarray(value), out)
        elif _is_plain_tensor(value):
            out.write_byte(_TENSOR)
            out.write(str(value.dtype)[len("torch.") :].encode(), True)
            _write_shape(value.shape, out)
            out.write(_tensor_bytes(value), True)
        else:
            out.write_byte(_OTHER)
            if type(value) is np.bytes_:  # NumPy pickles it without the zeros at its end
                value = _Reduced(np.bytes_, (bytes(value),))
            elif type(value) is np.str_:
                value = _Reduced(np.str_, (str.__str__(value),))
            self._fallback.encode_to_stream(value, out, nested)

    def decode_from_stream(self, stream: Any, nested: bool) -> Any:
        kind = stream.read_byte()
        if kind == _OTHER:
            return self._fallback.decode_from_stream(stream, nested)
        dtype = stream.read_all(True).decode()
        shape = _read_shape(stream)
        data = bytearray(stream.read_all(True))
        if kind == _TENSOR:
            import torch

            if not data:
                return torch.empty(shape, dtype=getattr(torch, dtype))
            return torch.frombuffer(data, dtype=getattr(torch, dtype)).reshape(shape)
        array = np.frombuffer(data, dtype=np.dtype(dtype)).reshape(shape)
        return array if kind == _ARRAY else array[()]


class _Reduced:
    """Pickled as the call of a function, so that it is unpickled as the value that the function returns."""

    def __init__(self, function: Any, args: tuple[Any, ...]) -> None:
        self._call = function, args

    def __reduce__(self) -> Any:
        return self._call


class _ResultCoderImpl(coder_impl.StreamCoderImpl):  # type: ignore[misc]
    """Encode the format version, a flag for ``PredictionResult``, and then its fields or the value."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def encode_to_stream(self, result: Any, out: Any, nested: bool) -> None:
        is_result = type(result) is PredictionResult
        out.write_byte(WIRE_VERSION)
        out.write_byte(is_result)
        for field in result if is_result else (result,):
            if not _is_encodable(field):  # pickle encodes surrogates
                field = _Reduced(copy.copy, (field,))
            self._value.encode_to_stream(field, out, True)

    def decode_from_stream(self, stream: Any, nested: bool) -> Any:
        if (version := stream.read_byte()) != WIRE_VERSION:
            raise CoderVersionError(
                f"Cannot decode a PredictionResult in wire format version {version}: this worker's runinference "
                f"supports version {WIRE_VERSION}. To fix this, install the same version of runinference on all "
                "workers. Before you upgrade a running job, drain it."
            )
        decode = self._value.decode_from_stream
        if stream.read_byte():
            return PredictionResult(
                decode(stream, True), decode(stream, True), decode(stream, True)
            )
        return decode(stream, True)


class PredictionResultCoder(beam.coders.coders.FastCoder):  # type: ignore[misc]
    """The coder of ``PredictionResult``, registered when this module is imported.

    A result of 768 float32 values takes about 3.1 kB. A row that is a view of a batch is encoded
    without the rest of the batch.
    """

    def _create_impl(self) -> _ResultCoderImpl:
        fallback = beam.coders.PickleCoder().get_impl()
        return _ResultCoderImpl(coder_impl.FastPrimitivesCoderImpl(_LeafCoderImpl(fallback)))

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type:
        return PredictionResult


beam.coders.registry.register_coder(PredictionResult, PredictionResultCoder)


def result_type(handler: Any, element_type: Any) -> Any:
    """Return the type of a handler's results, from the annotation of its ``run_inference``.

    Args:
        handler: Any object with Beam's handler methods.
        element_type: The type of the input elements. The results of a keyed handler have the same type of key.
    """
    if isinstance(handler, CachedModelHandler):
        return result_type(handler.inner, element_type)
    if isinstance(handler, RowModelHandler):
        return get_output_type(handler, element_type)
    returned = _get_return_annotation(handler)
    if returns_unsplit_results(handler) and not isinstance(handler, KeyedModelHandler):
        # A user's handler may return a list of results for each array.
        is_known = type(handler).run_inference.__module__.startswith("runinference.")
        return PredictionResult if is_known or returned is PredictionResult else Any
    if typing.get_args(returned) == (PredictionResult,):
        return PredictionResult
    if isinstance(handler, KeyedModelHandler):
        key, value = get_pair_types(element_type)
        results = {result_type(inside, value) for inside in handler.inner_handlers()}
        return beam.typehints.Tuple[key, results.pop() if len(results) == 1 else Any]
    return Any


def _get_return_annotation(handler: Any) -> Any:
    """Return the annotation, or None if there is none or it cannot be resolved."""
    try:
        return typing.get_type_hints(type(handler).run_inference).get("return")
    except (AttributeError, NameError, TypeError):
        return None


def _is_encodable(value: Any) -> bool:
    """Return whether all texts in a value can be written as UTF-8. A lone surrogate, as in JSON, can't."""
    kind = type(value)
    if kind is str:
        return bool(value.isascii()) or value.encode(errors="ignore").decode() == value
    if kind is dict:
        return all(map(_is_encodable, value)) and all(map(_is_encodable, value.values()))
    if kind in (list, tuple, set):
        return set(map(type, value)) <= _NUMBERS or all(map(_is_encodable, value))
    return True


_NUMBERS = {bool, int, float, type(None)}


def _write_array(array: np.ndarray[Any, Any], out: Any) -> None:
    out.write(array.dtype.str.encode(), True)
    _write_shape(array.shape, out)
    out.write(array.tobytes(), True)


def _write_shape(shape: tuple[int, ...], out: Any) -> None:
    out.write_var_int64(len(shape))
    for length in shape:
        out.write_var_int64(length)


def _read_shape(stream: Any) -> tuple[int, ...]:
    return tuple(stream.read_var_int64() for _ in range(stream.read_var_int64()))


def _is_plain_dtype(dtype: Any, kinds: str) -> bool:
    """Return whether a dtype can be written as its short name, and is not of another package such as ml_dtypes."""
    return (
        dtype.kind in kinds and dtype.isbuiltin != 2 and dtype.itemsize > 0 and not dtype.metadata
    )


def _is_plain_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return (
        torch is not None
        and type(value) is torch.Tensor
        and value.layout is torch.strided
        and not value.requires_grad
        and not value.is_quantized
        and not value.is_nested
        and value.device.type == "cpu"
        and value.dtype in _get_plain_dtypes()
    )


def _tensor_bytes(tensor: Any) -> bytes:
    import torch

    flat = tensor.resolve_conj().resolve_neg().reshape(-1)
    if flat.numel() == 0:
        return b""
    if flat.stride(0) != 1:  # also of a single number, which PyTorch regards as contiguous
        flat = torch.empty(flat.shape, dtype=flat.dtype).copy_(flat)
    return bytes(flat.view(torch.uint8).numpy().tobytes())


@functools.cache
def _get_plain_dtypes() -> frozenset[Any]:
    """Return the dtypes of PyTorch whose numbers can be written as raw bytes, and read again."""
    import torch

    names = ["bool", "uint8", "int8", "bfloat16", "complex32", "complex64", "complex128"]
    names += [f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (16, 32, 64)]
    names += ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"]
    names += ["float8_e8m0fnu"]
    return frozenset(getattr(torch, name) for name in names if hasattr(torch, name))
