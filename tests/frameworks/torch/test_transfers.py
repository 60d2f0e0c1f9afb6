"""Copies to and from a device, tested without a GPU: CUDA's streams are simulated."""

from __future__ import annotations

import random
from collections import deque
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from runinference.frameworks.torch import transfers
from runinference.frameworks.torch.calling import default_tensor_inference_fn
from runinference.frameworks.torch.transfers import get_stack_fn, to_cpu, to_device

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


class Pinning:
    """Replaces ``torch.empty`` without pinning memory, and records the requests to pin."""

    def __init__(self) -> None:
        self.pinned: list[tuple[int, ...]] = []
        self._empty = torch.empty

    def __call__(self, *shape, pin_memory=False, **options):
        if pin_memory:
            self.pinned.append(tuple(shape[0]))
        return self._empty(*shape, **options)


@pytest.fixture
def pinning(monkeypatch):
    pinning = Pinning()
    monkeypatch.setattr(torch, "empty", pinning)
    return pinning


def test_stacks_tensors_for_a_gpu_in_pinned_memory(pinning):
    stack = get_stack_fn(torch.device("cuda:0"))
    rows = [torch.arange(3), torch.arange(3) + 3]
    stacked = stack(rows)
    assert torch.equal(stacked, torch.stack(rows))
    assert stacked.dtype == torch.int64
    assert pinning.pinned == [(2, 3)]


def test_stacks_different_tensors_without_pinned_memory(pinning):
    stack = get_stack_fn(torch.device("cuda:0"))
    with pytest.raises(RuntimeError, match="equal size"):
        stack([torch.zeros(2), torch.zeros(3)])
    assert stack([torch.zeros(2), torch.zeros(2, dtype=torch.float64)]).dtype == torch.float64
    assert pinning.pinned == []


def test_stacks_tensors_for_the_cpu_with_torch_stack(pinning):
    assert get_stack_fn(CPU) is torch.stack


def test_copies_to_a_device_asynchronously(monkeypatch):
    calls = []
    to = torch.Tensor.to

    def watched(tensor, *args, **options):
        calls.append((args, options))
        return to(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", watched)
    assert to_device(torch.zeros(2), torch.device("meta")).device.type == "meta"
    assert calls == [((torch.device("meta"),), {"non_blocking": True})]


def test_to_cpu_keeps_the_structure_of_the_output(monkeypatch):
    moved = []
    to = torch.Tensor.to

    def watched(tensor, device, dtype):
        moved.append(device)
        return to(tensor, device, dtype)

    monkeypatch.setattr(torch.Tensor, "to", watched)
    pair = torch.zeros(2, 3).max(1)  # a named tuple of PyTorch
    given = {"scores": torch.ones(2), "pair": pair, "list": [torch.ones(2), "text"], "no": None}
    back = to_cpu(given, torch.device("cuda"))
    assert moved == ["cpu"] * 4
    assert back["list"][1] == "text"
    assert back["no"] is None
    assert type(back["pair"]) is type(pair)
    assert to_cpu(given, CPU) is given


class Event:
    has_occurred = False


class Stream:
    """A queue of operations. The GPU runs them some time later."""

    def __init__(self, gpu):
        self.gpu = gpu
        self.queue = deque()

    def record_event(self):
        event = Event()
        self.queue.append((None, lambda: setattr(event, "has_occurred", True)))
        return event

    def wait_event(self, event):
        self.queue.append((event, lambda: None))

    def wait_stream(self, other):
        self.wait_event(other.record_event())


class SimulatedGpu:
    """Runs the operations of streams, each in order, and those of different streams in random order."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.default = Stream(self)
        self.streams = [self.default]
        self.current = self.default
        self.n_ended_in_default = 0

    def new_stream(self, _):
        self.streams.append(Stream(self))
        return self.streams[-1]

    @contextmanager
    def stream(self, stream):
        previous, self.current = self.current, stream
        yield
        self.current = previous

    def launch(self, operation):
        self.current.queue.append((None, operation))

    def synchronize(self, stream):
        """Run operations until a stream has none."""
        while stream.queue:
            ready = [s for s in self.streams if s.queue and _is_ready(s.queue[0][0])]
            chosen = self.random.choice(ready)
            chosen.queue.popleft()[1]()


def _is_ready(event):
    return event is None or event.has_occurred


class GpuTensor(torch.Tensor):
    """A tensor whose values exist once the GPU has computed them."""

    @staticmethod
    def create(gpu, shape):
        tensor = torch.full(shape, torch.nan).as_subclass(GpuTensor)
        tensor.gpu, tensor.created_in, tensor.used_in = gpu, gpu.current, set()
        return tensor

    @property
    def device(self):
        return GPU

    @property
    def values(self):
        return self.as_subclass(torch.Tensor)

    def record_stream(self, stream):
        self.used_in.add(stream)

    def to(self, device, *_):
        assert device == "cpu"
        copied = torch.empty(self.values.shape)
        self.gpu.launch(lambda: copied.copy_(self.values))
        self.gpu.synchronize(self.gpu.current)
        return copied


class Doubles(torch.nn.Module):
    """Launches a kernel that doubles its inputs."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu
        self.inputs = []

    def forward(self, inputs):
        output = GpuTensor.create(self.gpu, inputs.values.shape)
        self.inputs.append(inputs)
        self.gpu.launch(lambda: output.values.copy_(2 * inputs.values))
        return output


@pytest.fixture(params=range(20))
def gpu(request, monkeypatch, pinning):
    gpu = SimulatedGpu(request.param)

    def to(tensor, device, *, non_blocking=False):
        assert (device, non_blocking) == (GPU, True)
        copied = GpuTensor.create(gpu, tensor.shape)
        gpu.launch(lambda: copied.values.copy_(tensor))
        return copied

    cuda = SimpleNamespace(
        Stream=gpu.new_stream, stream=gpu.stream, current_stream=lambda _: gpu.current
    )
    monkeypatch.setattr(transfers, "torch", _Torch(cuda))
    monkeypatch.setattr(transfers, "get_copy_streams", _cached(transfers.CopyStreams(GPU)))
    monkeypatch.setattr(torch.Tensor, "to", to)
    return gpu


class _Torch:
    """The module, with another ``cuda``."""

    def __init__(self, cuda):
        self.cuda = cuda

    def __getattr__(self, name):
        return getattr(torch, name)


def _cached(streams):
    return lambda _: streams


def test_a_model_reads_its_inputs_after_they_are_copied(gpu):
    rows = [torch.arange(3.0), torch.arange(3.0) + 3]
    results = default_tensor_inference_fn(rows, Doubles(gpu), GPU)
    for row, result in zip(rows, results, strict=True):
        assert torch.equal(result.inference, 2 * row)


def test_inputs_are_copied_in_another_stream_than_the_kernels_that_use_them(gpu):
    model = Doubles(gpu)
    list(default_tensor_inference_fn([torch.ones(3)], model, GPU))
    [inputs] = model.inputs
    assert inputs.created_in is not gpu.default
    assert inputs.used_in == {gpu.default}  # so that its memory is not reused too early


def test_copying_an_output_does_not_wait_for_later_kernels(gpu):
    output = Doubles(gpu)(GpuTensor.create(gpu, (2,)))
    computed = transfers.record_output(GPU)
    never = Event()
    gpu.default.wait_event(never)  # a kernel of the next batch that takes forever
    assert to_cpu(output, GPU, computed).shape == (2,)
