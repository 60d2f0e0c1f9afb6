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


def create_transfer(device: Any) -> Transfer:
    """Return an object that copies a batch to a device, and its output back to the CPU."""
    if device.type != "cuda":
        return Transfer(device)
    if device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return CudaTransfer(device, get_copy_streams(device))


class Transfer:
    """Copies a batch to a device, and its output back to the CPU, without overlapping copies and kernels.

    Args:
        device: The device of the model.
    """

    def __init__(self, device: Any) -> None:
        self.device = device

    def stack(self, batch: Sequence[Any]) -> Any:
        """Stack the tensors of a batch."""
        return torch.stack(batch)

    def to_device(self, tensor: Any) -> Any:
        """Copy a tensor to the device."""
        return torch.as_tensor(tensor).to(self.device)

    def wait_for_inputs(self) -> None:
        """Make the model call wait until its inputs are copied."""

    def finish_call(self, output: Any) -> Any:
        """Return the model's output, with bfloat16 and float16 tensors from autocast converted to float32."""
        if not _uses_mixed_precision(self.device):
            return output
        return _map_tensors(output, lambda part: part.float() if _is_low_precision(part) else part)

    def to_cpu(self, output: Any) -> Any:
        """Copy an output that ``finish_call`` returned to the CPU."""
        return output if self.device.type == "cpu" else _map_tensors(output, _copy_to_cpu)


class CudaTransfer(Transfer):
    """Copies a batch in separate CUDA streams, so that the GPU can compute other batches at the same time.

    In the compute stream, inputs would be copied after the kernels of the previous batch, and outputs after the
    kernels of the next batch.

    Args:
        device: The GPU, with its index.
        streams: The streams for inputs and outputs.
    """

    def __init__(self, device: Any, streams: tuple[Any, Any]) -> None:
        super().__init__(device)
        self._inputs, self._outputs = streams
        self._copied: list[Any] = []
        self._inputs_copied: Any = None
        self._computed: Any = None

    def stack(self, batch: Sequence[Any]) -> Any:
        """Stack the tensors of a batch in pinned memory, if they are dense tensors of one shape on the CPU."""
        first = batch[0]
        expected = (first.shape, first.dtype)
        if not all(_is_dense(x) and (x.shape, x.dtype) == expected for x in batch):
            return super().stack(batch)
        shape = (len(batch), *first.shape)
        pinned = torch.empty(shape, dtype=first.dtype, device="cpu", pin_memory=True)
        with torch.no_grad():
            return torch.stack(batch, out=pinned)

    def to_device(self, tensor: Any) -> Any:
        """Start copying a tensor to the GPU."""
        tensor = torch.as_tensor(tensor)
        if not _is_dense(tensor):
            return super().to_device(tensor)
        with self._in_stream(self._inputs):
            copied = tensor.to(self.device, non_blocking=True)
            self._inputs_copied = self._inputs.record_event()
        self._copied.append(copied)
        return copied

    def wait_for_inputs(self) -> None:
        if self._inputs_copied is None:
            return
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(self._inputs_copied)
        for copied in self._copied:
            # Keep the allocator from reusing the memory until the kernels that read it have finished.
            copied.record_stream(computing)

    def finish_call(self, output: Any) -> Any:
        """Copy the output on the GPU, because the next call may overwrite its memory, as CUDA graphs do."""
        mixed = _uses_mixed_precision(self.device)

        def copy_or_convert(part: Any) -> Any:
            if mixed and _is_low_precision(part):
                return part.float()
            return part.clone() if part.device == self.device else part

        output = _map_tensors(output, copy_or_convert)
        computing = torch.cuda.current_stream(self.device)
        self._computed = computing.record_event(torch.cuda.Event(blocking=True))
        return output

    def to_cpu(self, output: Any) -> Any:
        self._computed.synchronize()
        with self._in_stream(self._outputs):
            return _map_tensors(output, _copy_to_cpu)

    @contextmanager
    def _in_stream(self, stream: Any) -> Iterator[None]:
        # Without torch.cuda.device, leaving the stream would initialize the first GPU, too.
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            yield


@functools.cache
def get_copy_streams(device: Any) -> tuple[Any, Any]:
    """Return the streams for inputs and outputs of a GPU, which all threads of the process share."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device)


def _map_tensors(output: Any, function: Callable[[Any], Any]) -> Any:
    def apply(_: Any, part: Any) -> Any:
        return function(part) if isinstance(part, torch.Tensor) else part

    return map_with_path(output, apply)


def _copy_to_cpu(tensor: Any) -> Any:
    return tensor.to("cpu")


def _uses_mixed_precision(device: Any) -> bool:
    is_available: bool = torch.amp.is_autocast_available(device.type)
    return is_available and torch.is_autocast_enabled(device.type)


def _is_low_precision(tensor: Any) -> bool:
    return tensor.dtype in AUTOCAST_DTYPES.values()


def _is_dense(tensor: Any) -> bool:
    """Return whether a tensor is dense, not quantized, and on the CPU."""
    is_strided = tensor.layout is torch.strided and not tensor.is_quantized
    return is_strided and tensor.device.type == "cpu"
