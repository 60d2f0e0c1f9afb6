"""Loops over batches of tensors on a device: one step after the other, and with steps that overlap."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import torch


def run_in_turn(batches, call, device):
    """Stack, copy, compute and fetch each batch in turn. Yield the inputs and outputs on the CPU."""
    with torch.inference_mode():
        for batch in batches:
            inputs = torch.stack(batch)
            yield inputs, call(inputs.to(device)).float().cpu()


def run_overlapped(batches, call, device, n_in_flight=2):
    """Stack the next batch in a thread, copy asynchronously, and fetch outputs two batches later.

    Args:
        batches: The batches, each a list of tensors of one shape.
        call: Returns the output of the model, a tensor, for a tensor on the device.
        device: The device of the model.
        n_in_flight: How many batches the device may work on while the next one is prepared.

    Yields:
        The inputs and outputs of each batch on the CPU, in order.
    """
    transfers = CudaTransfers(device) if device.type == "cuda" else CpuTransfers()
    in_flight, stacked = deque(), None
    with ThreadPoolExecutor(1) as pool, torch.inference_mode():
        for batch in chain(batches, [None]):
            ready, stacked = stacked, None if batch is None else pool.submit(transfers.stack, batch)
            if ready is None:
                continue
            inputs = ready.result()
            output = call(transfers.to_device(inputs)).float()
            in_flight.append((inputs, transfers.start_fetch(output)))
            if len(in_flight) > n_in_flight:
                first, fetch = in_flight.popleft()
                yield first, fetch()
        for inputs, fetch in in_flight:
            yield inputs, fetch()


class CpuTransfers:
    """Tensors that stay on the CPU."""

    def stack(self, batch):
        return torch.stack(batch)

    def to_device(self, inputs):
        return inputs

    def start_fetch(self, output):
        return lambda: output


class CudaTransfers:
    """Copies between pinned memory and a GPU. Inputs are copied in a separate stream, while the model computes."""

    def __init__(self, device):
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def stack(self, batch):
        shape, dtype = (len(batch), *batch[0].shape), batch[0].dtype
        return torch.stack(batch, out=torch.empty(shape, dtype=dtype, pin_memory=True))

    def to_device(self, inputs):
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            copied = inputs.to(self._device, non_blocking=True)
        computing.wait_stream(self._stream)
        copied.record_stream(computing)
        return copied

    def start_fetch(self, output):
        fetched = torch.empty(output.shape, dtype=output.dtype, pin_memory=True)
        fetched.copy_(output, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def fetch():
            copied.synchronize()
            return fetched

        return fetch
