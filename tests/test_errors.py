"""Errors that mean that memory ran out are recognized, whichever library raises them."""

from __future__ import annotations

import errno
import importlib

import pytest
import torch

from runinference.errors import is_out_of_memory, suggest


def raised_by(module: str, name: str) -> type[Exception]:
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    ("error_type", "message"),
    [
        (MemoryError, ""),
        (RuntimeError, "CUDA out of memory. Tried to allocate 2.00 GiB"),
        (RuntimeError, "MPS backend out of memory (MPS allocated: 9.00 GB)"),
        (
            RuntimeError,
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",
        ),
        (RuntimeError, "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        (RuntimeError, "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        (RuntimeError, "RESOURCE_EXHAUSTED: Failed to allocate request for 8GiB on device"),
        (RuntimeError, "std::bad_alloc"),
        (("xgboost.core", "XGBoostError"), "bad_malloc: Failed to allocate 8 bytes."),
        (("xgboost.core", "XGBoostError"), "Memory allocation error on worker 0: bad_alloc"),
        (("lightgbm.basic", "LightGBMError"), "Cannot allocate memory"),
        (
            ("onnxruntime.capi.onnxruntime_pybind11_state", "RuntimeException"),
            "bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 8",
        ),
    ],
)
def test_recognizes_what_libraries_say(error_type, message):
    error_type = raised_by(*error_type) if isinstance(error_type, tuple) else error_type
    assert is_out_of_memory(error_type(message))


def test_recognizes_pytorch_on_a_cpu_and_the_operating_system():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("cannot allocate a seat for the passenger"),
        ValueError("out of memory, says a user"),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyError("memory"),
    ],
    ids=repr,
)
def test_other_errors_do_not_mean_that_memory_ran_out(error):
    assert not is_out_of_memory(error)


class NoTextError(RuntimeError):
    def __str__(self):
        raise ValueError("no text")


WithoutModule = type("WithoutModule", (Exception,), {"__module__": None})


@pytest.mark.parametrize("error_type", [NoTextError, WithoutModule])
def test_an_error_without_a_text_or_module_does_not_cause_another_one(error_type):
    assert not is_out_of_memory(error_type())


def test_suggests_a_name_for_a_key_that_is_no_text():
    assert suggest(1, ["input_ids"]) == ""
    assert suggest("imput_ids", ["input_ids"]) == " Did you mean 'input_ids'?"
