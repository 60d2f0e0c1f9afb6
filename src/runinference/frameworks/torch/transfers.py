"""Copy batches to a device, and outputs back to the CPU, while a GPU computes other batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from runinference.collate.pytree import map_with_path
from runinference.extras import need
from runinference.frameworks.torch.devices import AUTOCAST_DTYPES

torch = need("torch", extra="torch")


class CopyStreams:
    """CUDA streams in which a GPU copies inputs and outputs, while its current stream computes other batches.

    In the current stream, the inputs of a batch would be copied after the kernels of the batch before it, and a
    copy of outputs would wait for the kernels of the batch after it.

    Args:
        device: The GPU.
    """

    def __init__(self, device: Any) -> None:
        self._device = device
        self._inputs = torch.cuda.Stream(device)
        self._outputs = torch.cuda.Stream(device)

    def copy_input(self, tensor: Any) -> Any:
        """Start to copy a tensor to the GPU. Kernels that are launched later wait for the copy."""
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._inputs):
            copied = tensor.to(self._device, non_blocking=True)
        computing.wait_stream(self._inputs)
        # The memory isn't reused before the kernels that read it have finished.
        copied.record_stream(computing)
        return copied

    def record_output(self) -> Any:
        """Return an event that occurs when the kernels that were launched so far have finished."""
        return torch.cuda.current_stream(self._device).record_event()

    @contextmanager
    def copying_outputs(self, computed: Any) -> Iterator[None]:
        """Copy outputs to the CPU in a ``with`` block, after the event of `record_output`."""
        with torch.cuda.stream(self._outputs):
            self._outputs.wait_event(computed)
            yield


#: The streams of a device, for all threads of the process.
get_copy_streams = functools.cache(CopyStreams)


def get_stack_fn(device: Any) -> Callable[[Sequence[Any]], Any]:
    """Return the function that stacks tensors bound for a device; for a GPU, it uses pinned memory."""
    return _stack_pinned if device.type == "cuda" else torch.stack


def to_device(tensor: Any, device: Any) -> Any:
    """Copy a tensor to a device, asynchronously if the tensor is in pinned memory."""
    tensor = torch.as_tensor(tensor)
    if device.type == "cuda" and tensor.device.type == "cpu":
        return get_copy_streams(device).copy_input(tensor)
    return tensor.to(device, non_blocking=True)


def record_output(device: Any) -> Any:
    """Return an event for `to_cpu` after the call of a model; None for a device that computes synchronously."""
    return get_copy_streams(device).record_output() if device.type == "cuda" else None


def to_cpu(output: Any, device: Any, computed: Any = None) -> Any:
    """Copy the tensors of an output to the CPU, and convert them to float32 after mixed precision.

    Args:
        output: Tensors, in any structure.
        device: The device of the model.
        computed: The result of `record_output`.
    """
    mixed = torch.is_autocast_enabled(device.type)
    if device.type == "cpu" and not mixed:
        return output

    def copy(_: Any, part: Any) -> Any:
        if not isinstance(part, torch.Tensor):
            return part
        is_low = mixed and part.dtype in AUTOCAST_DTYPES.values()
        return part.to("cpu", torch.float32 if is_low else part.dtype)

    if computed is None:
        return map_with_path(output, copy)
    with get_copy_streams(device).copying_outputs(computed):
        return map_with_path(output, copy)


def _stack_pinned(batch: Sequence[Any]) -> Any:
    first = batch[0]
    expected = (first.shape, first.dtype, "cpu")
    if any((x.shape, x.dtype, x.device.type) != expected for x in batch):
        return torch.stack(tuple(batch))
    pinned = torch.empty((len(batch), *first.shape), dtype=first.dtype, pin_memory=True)
    return torch.stack(tuple(batch), out=pinned)
