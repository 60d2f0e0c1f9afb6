"""Devices, mixed precision and memory formats, tested without a GPU."""

from __future__ import annotations

import logging

import pytest
import torch

from runinference.errors import ModelLoadError, OptionError
from runinference.frameworks.torch.devices import (
    autocast,
    parse_autocast_dtype,
    parse_device,
    resolve_device,
)
from runinference.pytorch_inference import (
    PytorchModelHandlerKeyedTensor,
    PytorchModelHandlerTensor,
)

CPU = torch.device("cpu")
IMAGES = torch.arange(2.0 * 3 * 4 * 4).reshape(2, 3, 4, 4)


class Convolution(torch.nn.Module):
    """Returns whether its input and output are in the channels-last format."""

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
def test_parses_device_names_of_beam_and_pytorch(name, device):
    assert parse_device(name) == torch.device(device)


@pytest.mark.parametrize("name", ["qpu", "GPU:0", 1.5, None])
def test_rejects_unknown_devices(name):
    with pytest.raises(OptionError, match="'CPU', 'GPU' or a PyTorch device such as 'cuda:1'"):
        parse_device(name)


@pytest.mark.parametrize("name", ["cuda:7", "xpu", "mps"])
def test_falls_back_to_the_cpu_with_a_warning(name, caplog):
    resolve_device.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert resolve_device(torch.device(name)) == CPU
    assert f"The device {name} is not available" in caplog.text


def test_keeps_a_gpu_that_is_out_of_memory(monkeypatch):
    def full(*sizes, device):
        raise torch.cuda.OutOfMemoryError("out of memory")

    resolve_device.cache_clear()
    monkeypatch.setattr(torch, "empty", full)
    assert resolve_device(torch.device("cuda:3")) == torch.device("cuda:3")
    resolve_device.cache_clear()


def test_loads_the_model_on_its_device(weights):
    model = PytorchModelHandlerTensor(weights, Convolution, device="meta").load_model()
    assert {weight.device.type for weight in model.parameters()} == {"meta"}


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_mixed_precision_returns_float32(weights, dtype):
    full = PytorchModelHandlerTensor(weights, Convolution).predict(IMAGES)
    mixed = PytorchModelHandlerTensor(weights, Convolution, autocast=dtype).predict(IMAGES)
    for a, b in zip(full, mixed, strict=True):
        assert b.inference["y"].dtype == torch.float32
        torch.testing.assert_close(a.inference["y"], b.inference["y"], rtol=0.02, atol=0.2)
        assert not torch.equal(a.inference["y"], b.inference["y"])


def test_mixed_precision_applies_to_a_custom_inference_fn(weights):
    def inference_fn(batch, model, device, inference_args, model_id):
        return [model(x[None])["y"][0].detach() for x in batch]

    handler = PytorchModelHandlerTensor(
        weights, Convolution, autocast="bfloat16", inference_fn=inference_fn
    )
    assert {y.dtype for y in handler.predict(IMAGES)} == {torch.bfloat16}


def test_rejects_dtypes_that_autocast_does_not_support():
    with pytest.raises(
        OptionError, match="'bfloat16' or 'float16', but is 'bfloat61'. Did you mean"
    ):
        parse_autocast_dtype("bfloat61")
    with pytest.raises(OptionError, match="but is torch.float32"):
        parse_autocast_dtype(torch.float32)
    assert parse_autocast_dtype(None) is None


def test_rejects_mixed_precision_on_a_device_without_it():
    with pytest.raises(
        ModelLoadError,
        match="device meta doesn't support mixed precision.*leave autocast",
    ):
        autocast(torch.device("meta"), torch.bfloat16)


def test_channels_last_converts_weights_and_inputs(weights):
    handler = PytorchModelHandlerTensor(weights, Convolution, channels_last=True)
    plain = PytorchModelHandlerTensor(weights, Convolution).predict(IMAGES)
    assert handler.load_model().layer.weight.is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(plain, handler.predict(IMAGES), strict=True):
        assert b.inference["last"].tolist() == [True, True]
        torch.testing.assert_close(a.inference["y"], b.inference["y"])
    assert plain[0].inference["last"].tolist() == [False, False]


def test_channels_last_applies_to_keywords_and_torch_script(weights, tmp_path):
    keyed = PytorchModelHandlerKeyedTensor(weights, Convolution, channels_last=True)
    [result] = keyed.predict([{"x": IMAGES[0]}])
    assert result.inference["last"].tolist() == [True, True]
    path = str(tmp_path / "script.pt")
    torch.jit.trace(Convolution().layer.eval(), IMAGES).save(path)
    script = PytorchModelHandlerTensor(torch_script_model_path=path, channels_last=True)
    [first, _] = script.predict(IMAGES)
    torch.testing.assert_close(first.inference, Convolution().layer(IMAGES)[0].detach())
