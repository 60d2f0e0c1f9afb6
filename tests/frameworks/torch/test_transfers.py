"""Copies to and from a device, tested without a GPU: CUDA's streams are simulated."""

from __future__ import annotations

import random
from collections import deque
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from runinference.errors import BatchShapeError
from runinference.frameworks.torch import transfers
from runinference.frameworks.torch.calling import default_tensor_inference_fn
from runinference.frameworks.torch.transfers import create_transfer

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


class Event:
    def __init__(self, gpu, stream=None):
        self.gpu, self.stream = gpu, stream
        self.has_occurred = False

    def synchronize(self):
        self.gpu.run_until(lambda: self.has_occurred)


class Stream:
    """A queue of operations. The GPU runs them some time later."""

    def __init__(self, gpu):
        self.gpu = gpu
        self.queue = deque()

    def record_event(self, event=None):
        event = event or Event(self.gpu)
        self.queue.append((None, lambda: setattr(event, "has_occurred", True)))
        return event

    def wait_event(self, event):
        self.queue.append((event, lambda: None))


class SimulatedGpu:
    """Runs the operations of streams, each in order, and those of different streams in random order.

    Attributes:
        pinned: The shapes of the tensors in pinned memory.
    """

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.default = self.current = Stream(self)
        self.streams = [self.default]
        self.pinned = []

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

    def run_until(self, condition):
        while not condition():
            ready = [s for s in self.streams if s.queue and _is_ready(s.queue[0][0])]
            self.random.choice(ready).queue.popleft()[1]()


def _is_ready(event):
    return event is None or event.has_occurred


class GpuTensor(torch.Tensor):
    """A tensor whose values exist once the GPU has computed them."""

    @staticmethod
    def create(gpu, shape, dtype=torch.float32):
        tensor = torch.full(shape, -1, dtype=dtype).as_subclass(GpuTensor)
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

    def clone(self):
        return self.float(self.values.dtype)

    def float(self, dtype=torch.float32):
        made = GpuTensor.create(self.gpu, self.values.shape, dtype)
        self.gpu.launch(lambda: made.values.copy_(self.values))
        return made

    def to(self, device):
        assert device == "cpu"
        copied = torch.empty(self.values.shape, dtype=self.values.dtype)
        self.gpu.launch(lambda: copied.copy_(self.values))
        stream = self.gpu.current
        self.gpu.run_until(lambda: not stream.queue)
        return copied


class DoublingModel(torch.nn.Module):
    """Launches a kernel that doubles its inputs, into one buffer for all calls, as with CUDA graphs."""

    def __init__(self, gpu, shape):
        super().__init__()
        self.gpu = gpu
        self.inputs = []
        self.output = GpuTensor.create(gpu, shape)

    def forward(self, inputs):
        self.inputs.append(inputs)
        self.gpu.launch(lambda: self.output.values.copy_(2 * inputs.values))
        return self.output


class _Torch:
    """The ``torch`` module, with a simulated ``cuda`` and without pinned memory."""

    def __init__(self, gpu):
        self._gpu = gpu
        self.cuda = SimpleNamespace(
            Stream=gpu.new_stream,
            Event=lambda blocking: Event(gpu),
            stream=gpu.stream,
            device=nullcontext,
            current_stream=lambda _: gpu.current,
            current_device=lambda: 0,
        )

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, shape, *, pin_memory, **options):
        if pin_memory:
            self._gpu.pinned.append(shape)
        return torch.empty(shape, **options)


@pytest.fixture(params=range(20))
def gpu(request, monkeypatch):
    gpu = SimulatedGpu(request.param)

    def to(tensor, device, *, non_blocking=False):
        if device == "cpu":
            return tensor
        assert (device, non_blocking) == (GPU, True)
        copied = GpuTensor.create(gpu, tensor.shape, tensor.dtype)
        gpu.launch(lambda: copied.values.copy_(tensor))
        return copied

    streams = Stream(gpu), Stream(gpu)
    gpu.streams += streams
    monkeypatch.setattr(transfers, "torch", _Torch(gpu))
    monkeypatch.setattr(transfers, "get_copy_streams", lambda _: streams)
    monkeypatch.setattr(torch.Tensor, "to", to)
    return gpu


@pytest.mark.parametrize("device", [GPU, torch.device("cuda")])
def test_a_model_reads_its_inputs_after_they_are_copied(gpu, device):
    rows = [torch.arange(3.0), torch.arange(3.0) + 3]
    results = default_tensor_inference_fn(rows, DoublingModel(gpu, (2, 3)), device)
    for row, result in zip(rows, results, strict=True):
        assert torch.equal(result.inference, 2 * row)


def test_inputs_are_copied_in_a_separate_stream(gpu):
    model = DoublingModel(gpu, (1, 3))
    list(default_tensor_inference_fn([torch.ones(3)], model, GPU))
    [inputs] = model.inputs
    assert inputs.created_in is not gpu.default
    assert inputs.used_in == {gpu.default}  # so that its memory is not reused too early


def test_kernels_of_other_calls_do_not_wait_for_copies(gpu):
    transfer = create_transfer(GPU)
    transfer.to_device(torch.ones(2))
    assert not gpu.default.queue


def start_call(model, gpu, row):
    """Call a model on a row, and return a function that fetches the output."""
    transfer = create_transfer(GPU)
    inputs = transfer.to_device(row)
    transfer.wait_for_inputs()
    output = transfer.finish_call(model(inputs))
    return lambda: transfer.to_cpu(output)


def test_a_call_does_not_change_the_output_of_an_earlier_one(gpu):
    model = DoublingModel(gpu, (2,))
    fetch = [start_call(model, gpu, torch.tensor([1.0, n])) for n in range(3)]
    gpu.random.shuffle(fetch)
    assert sorted(each().tolist() for each in fetch) == [[2, 0], [2, 2], [2, 4]]


def test_copying_an_output_does_not_wait_for_later_kernels(gpu):
    fetch = start_call(DoublingModel(gpu, (2,)), gpu, torch.ones(2))
    never = Event(gpu)
    gpu.default.wait_event(never)  # a kernel of the next batch that takes forever
    assert fetch().tolist() == [2, 2]


def test_outputs_keep_their_structure(gpu):
    transfer = create_transfer(GPU)
    with gpu.stream(gpu.default):
        made = GpuTensor.create(gpu, (2,))
        gpu.launch(lambda: made.values.fill_(1))
    on_cpu = torch.zeros(2)  # from a model that is split across devices
    given = {"scores": made, "list": [made, "text"], "no": None, "cpu": on_cpu}
    back = transfer.to_cpu(transfer.finish_call(given))
    assert back["scores"].tolist() == back["list"][0].tolist() == [1, 1]
    assert back["list"][1] == "text"
    assert back["no"] is None
    assert back["cpu"] is on_cpu


def test_mixed_precision_becomes_float32_on_the_gpu(gpu, monkeypatch):
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda _: True)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: True)
    transfer = create_transfer(GPU)
    low, integers = (GpuTensor.create(gpu, (2,), t) for t in (torch.bfloat16, torch.int64))
    gpu.launch(lambda: (low.values.fill_(0.5), integers.values.fill_(3)))
    on_cpu = torch.zeros(2, dtype=torch.float16)  # from a model that is split across devices
    low, integers, other = transfer.to_cpu(transfer.finish_call((low, integers, on_cpu)))
    assert (other.dtype, other.tolist()) == (torch.float32, [0, 0])
    assert (low.dtype, low.tolist()) == (torch.float32, [0.5, 0.5])
    assert (integers.dtype, integers.tolist()) == (torch.int64, [3, 3])


def test_stacks_tensors_in_pinned_memory(gpu):
    rows = [torch.arange(3), torch.arange(3) + 3]
    stacked = create_transfer(GPU).stack(rows)
    assert torch.equal(stacked, torch.stack(rows))
    assert stacked.dtype == torch.int64
    assert gpu.pinned == [(2, 3)]


def test_stacks_parameters_in_pinned_memory(gpu):
    rows = [torch.ones(3, requires_grad=True)] * 2
    assert create_transfer(GPU).stack(rows).tolist() == torch.ones(2, 3).tolist()
    assert gpu.pinned == [(2, 3)]


@pytest.mark.parametrize(
    "rows",
    [
        [torch.zeros(2), torch.zeros(2, dtype=torch.float64)],
        [torch.eye(2).to_sparse(), torch.eye(2).to_sparse()],
    ],
)
def test_stacks_other_tensors_without_pinned_memory(gpu, rows):
    stacked = create_transfer(GPU).stack(rows)
    assert torch.equal(stacked.to_dense(), torch.stack(rows).to_dense())
    assert gpu.pinned == []


def test_an_error_names_the_element_with_a_different_shape(gpu):
    with pytest.raises(BatchShapeError, match="Element 1 of the batch has shape"):
        default_tensor_inference_fn(
            [torch.zeros(2), torch.zeros(3)], DoublingModel(gpu, (2, 2)), GPU
        )


def test_on_the_cpu_nothing_is_copied():
    transfer, tensor = create_transfer(CPU), torch.zeros(2)
    assert transfer.to_device(tensor) is tensor
    assert transfer.to_cpu(transfer.finish_call(tensor)) is tensor


def test_copies_to_another_device_and_back():
    transfer = create_transfer(torch.device("meta"))
    inputs = transfer.to_device(torch.zeros(2))
    assert inputs.device.type == "meta"
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        transfer.to_cpu(transfer.finish_call({"y": [inputs]}))
