"""Devices, precision and order of memory of PyTorch models, as far as a machine without a GPU can tell."""

from __future__ import annotations

import logging

import pytest
import torch

from runinference.errors import BatchShapeError, ModelLoadError, OptionError
from runinference.frameworks.torch.devices import (
    autocast,
    device_named,
    dtype_named,
    stack_for,
    to_cpu,
    to_device,
    usable,
)
from runinference.pytorch_inference import (
    PytorchModelHandlerKeyedTensor,
    PytorchModelHandlerTensor,
)

CPU = torch.device("cpu")
PICTURES = torch.arange(2.0 * 3 * 4 * 4).reshape(2, 3, 4, 4)


class Convolution(torch.nn.Module):
    """Says in which order of memory its input and its output came."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(3, 2, 3)

    def forward(self, x: torch.Tensor, half: bool = False) -> dict[str, torch.Tensor]:
        y = self.layer(x)
        last = [part.is_contiguous(memory_format=torch.channels_last) for part in (x, y)]
        return {"y": y, "last": torch.tensor([last] * len(x)), "half": y if half else y.float()}


@pytest.fixture
def weights(tmp_path):
    torch.save(Convolution().state_dict(), tmp_path / "model.pt")
    return str(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("CPU", "cpu"),
        ("GPU", "cuda"),
        ("gpu", "cuda"),
        ("cuda:1", "cuda:1"),
        ("mps", "mps"),
        (torch.device("xpu"), "xpu"),
    ],
)
def test_a_device_is_named_in_beams_words_or_pytorchs(name, device):
    assert device_named(name) == torch.device(device)


@pytest.mark.parametrize("name", ["qpu", "GPU:0", 1.5, None])
def test_what_is_no_device_is_refused(name):
    with pytest.raises(OptionError, match="'CPU', 'GPU' or a device of PyTorch such as 'cuda:1'"):
        device_named(name)


@pytest.mark.parametrize("name", ["cuda:7", "xpu", "mps"])
def test_where_there_is_no_such_device_it_is_the_cpu_with_a_warning(name, caplog):
    usable.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert usable(torch.device(name)) == CPU
    assert f"The model runs on the CPU: the device {name}" in caplog.text


def test_a_gpu_that_is_full_is_still_a_gpu(monkeypatch):
    def full(*sizes, device):
        raise torch.cuda.OutOfMemoryError("out of memory")

    usable.cache_clear()
    monkeypatch.setattr(torch, "empty", full)
    assert usable(torch.device("cuda:3")) == torch.device("cuda:3")
    usable.cache_clear()


def test_a_model_is_loaded_to_its_device(weights):
    model = PytorchModelHandlerTensor(weights, Convolution, device="meta").load_model()
    assert {weight.device.type for weight in model.parameters()} == {"meta"}


class Pinning:
    """``torch.empty`` on a machine that cannot pin memory: remembers that it was asked to."""

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


def test_tensors_for_a_gpu_are_stacked_into_pinned_memory(pinning):
    stack = stack_for(torch.device("cuda:0"))
    rows = [torch.arange(3), torch.arange(3) + 3]
    stacked = stack(rows)
    assert torch.equal(stacked, torch.stack(rows))
    assert stacked.dtype == torch.int64
    assert pinning.pinned == [(2, 3)]


def test_tensors_that_differ_are_left_to_pytorch(pinning):
    stack = stack_for(torch.device("cuda:0"))
    with pytest.raises(RuntimeError, match="equal size"):
        stack([torch.zeros(2), torch.zeros(3)])
    assert stack([torch.zeros(2), torch.zeros(2, dtype=torch.float64)]).dtype == torch.float64
    assert pinning.pinned == []


def test_tensors_for_the_cpu_are_stacked_as_ever(pinning):
    assert stack_for(CPU) is torch.stack


def test_copies_to_a_device_do_not_wait(monkeypatch):
    asked = []
    to = torch.Tensor.to

    def watched(tensor, *args, **options):
        asked.append((args, options))
        return to(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", watched)
    assert to_device(torch.zeros(2), torch.device("meta")).device.type == "meta"
    assert asked == [((torch.device("meta"),), {"non_blocking": True})]


def test_what_a_gpu_gives_comes_to_the_cpu_in_its_structure(monkeypatch):
    moved = []
    to = torch.Tensor.to

    def watched(tensor, device, dtype):
        moved.append(device)
        return to(tensor, device, dtype)

    monkeypatch.setattr(torch.Tensor, "to", watched)
    pair = torch.zeros(2, 3).max(1)  # a structure of PyTorch's own
    given = {"scores": torch.ones(2), "pair": pair, "list": [torch.ones(2), "text"], "no": None}
    back = to_cpu(given, torch.device("cuda"))
    assert moved == ["cpu"] * 4
    assert back["list"][1] == "text"
    assert back["no"] is None
    assert type(back["pair"]) is type(pair)
    assert to_cpu(given, CPU) is given


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_mixed_precision_computes_in_less_and_gives_float32(weights, dtype):
    full = PytorchModelHandlerTensor(weights, Convolution).predict(PICTURES)
    mixed = PytorchModelHandlerTensor(weights, Convolution, autocast=dtype).predict(PICTURES)
    for a, b in zip(full, mixed, strict=True):
        assert b.inference["y"].dtype == torch.float32
        torch.testing.assert_close(a.inference["y"], b.inference["y"], rtol=0.02, atol=0.2)
        assert not torch.equal(a.inference["y"], b.inference["y"])


def test_mixed_precision_holds_for_an_inference_fn_of_ones_own(weights):
    def own(batch, model, device, inference_args, model_id):
        return [model(x[None])["y"][0].detach() for x in batch]

    handler = PytorchModelHandlerTensor(weights, Convolution, autocast="bfloat16", inference_fn=own)
    assert {y.dtype for y in handler.predict(PICTURES)} == {torch.bfloat16}


def test_a_precision_that_autocast_does_not_know_is_refused():
    with pytest.raises(
        OptionError, match="'bfloat16' or 'float16', and is 'bfloat61'. Did you mean"
    ):
        dtype_named("bfloat61")
    with pytest.raises(OptionError, match="and is torch.float32"):
        dtype_named(torch.float32)
    assert dtype_named(None) is None


def test_a_device_without_mixed_precision_says_so():
    with pytest.raises(ModelLoadError, match="device meta has no mixed precision. Leave autocast"):
        autocast(torch.device("meta"), torch.bfloat16)


def test_channels_last_reaches_weights_and_inputs_of_any_order(weights):
    handler = PytorchModelHandlerTensor(weights, Convolution, channels_last=True)
    plain = PytorchModelHandlerTensor(weights, Convolution).predict(PICTURES)
    assert handler.load_model().layer.weight.is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(plain, handler.predict(PICTURES), strict=True):
        assert b.inference["last"].tolist() == [True, True]
        torch.testing.assert_close(a.inference["y"], b.inference["y"])
    assert plain[0].inference["last"].tolist() == [False, False]


def test_channels_last_holds_for_keywords_and_torch_script(weights, tmp_path):
    keyed = PytorchModelHandlerKeyedTensor(weights, Convolution, channels_last=True)
    [result] = keyed.predict([{"x": PICTURES[0]}])
    assert result.inference["last"].tolist() == [True, True]
    path = str(tmp_path / "script.pt")
    torch.jit.trace(Convolution().layer.eval(), PICTURES).save(path)
    script = PytorchModelHandlerTensor(torch_script_model_path=path, channels_last=True)
    [first, _] = script.predict(PICTURES)
    torch.testing.assert_close(first.inference, Convolution().layer(PICTURES)[0].detach())


def test_a_batch_of_several_shapes_for_a_gpu_names_the_odd_one(weights):
    handler = PytorchModelHandlerTensor(weights, Convolution)
    model = handler.load_model()
    with pytest.raises(BatchShapeError, match="Element 1 of the batch has shape"):
        handler._inference_fn(
            [PICTURES[0], PICTURES[0, :, :3], PICTURES[1]], model, torch.device("cuda")
        )
