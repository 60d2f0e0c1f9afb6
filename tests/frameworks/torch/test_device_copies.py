"""Copies of a model on several devices: each call uses the least busy one that has enough memory."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from common import run
from runinference import RunInference
from runinference.errors import OptionError, OutOfMemoryError
from runinference.frameworks.torch.device_copies import DeviceCopies, load_on_devices
from runinference.frameworks.torch.devices import resolve_device
from runinference.pytorch_inference import PytorchModelHandlerTensor


class Doubles(torch.nn.Module):
    """Doubles tensors, and counts the calls of each copy."""

    copies: list[Doubles] = []

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.full((), 2.0))
        self.n_calls = 0
        self.copies.append(self)

    def forward(self, x):
        self.n_calls += 1
        return self.factor * x


@pytest.fixture
def weights(tmp_path):
    path = str(tmp_path / "weights.pt")
    torch.save(Doubles().state_dict(), path)
    Doubles.copies.clear()
    return path


def test_batches_are_spread_over_the_devices(weights):
    handler = PytorchModelHandlerTensor(
        weights, Doubles, device=["cpu", "cpu"], min_batch_size=2, max_batch_size=2
    )
    elements = [torch.full((2,), float(n)) for n in range(16)]
    results = run(elements, RunInference(handler))
    assert sorted(r.inference.tolist() for r in results) == [[2.0 * n] * 2 for n in range(16)]
    assert [copy.n_calls >= 4 for copy in Doubles.copies] == [True, True]
    assert len(handler.predict(elements)) == 16


def test_each_device_has_a_copy():
    copies = load_on_devices(
        [torch.device("cpu"), torch.device("meta")], lambda device: torch.empty(3, device=device)
    )
    assert [copy.device.type for copy in copies.copies] == ["cpu", "meta"]


def test_a_single_device_has_no_copies(weights):
    assert type(PytorchModelHandlerTensor(weights, Doubles).load_model()) is Doubles
    assert type(PytorchModelHandlerTensor(weights, Doubles, device=["cpu"]).load_model()) is Doubles


def test_devices_that_a_machine_lacks_are_skipped_with_a_warning(weights, caplog):
    caplog.set_level(logging.WARNING)
    resolve_device.cache_clear()
    handler = PytorchModelHandlerTensor(weights, Doubles, device=["cuda:61", "cpu", "cuda:62"])
    assert type(handler.load_model()) is Doubles
    assert "The device cuda:61 is not available" in caplog.text
    assert "The device cuda:62 is not available" in caplog.text


def test_a_machine_without_any_of_the_devices_uses_its_cpu(weights):
    handler = PytorchModelHandlerTensor(weights, Doubles, device=["cuda:61", "cuda:62"])
    assert handler.load_model().factor.device.type == "cpu"
    assert len(Doubles.copies) == 1


@pytest.mark.parametrize(
    ("device", "message"),
    [([], "device is an empty list"), (["cpu", "gpux"], "but is 'gpux'"), ([None], "but is None")],
)
def test_invalid_devices_raise_an_error_that_names_them(weights, device, message):
    with pytest.raises(OptionError, match=message):
        PytorchModelHandlerTensor(weights, Doubles, device=device)


def test_a_call_uses_the_copy_with_the_fewest_running_calls():
    copies = DeviceCopies(["first", "second"])
    may_end, began = threading.Event(), threading.Event()

    def wait(copy):
        began.set()
        may_end.wait()
        return copy

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(copies.call, wait)
        began.wait()
        assert [copies.call(str) for _ in range(3)] == ["second"] * 3
        may_end.set()
        assert waiting.result() == "first"
    assert copies.call(str) == "first"


def out_of_memory_on(*full):
    def call(copy):
        if copy in full:
            raise OutOfMemoryError(f"{copy} is full")
        return copy

    return call


def test_a_call_that_runs_out_of_memory_is_repeated_on_the_other_devices():
    copies = DeviceCopies(["a", "b", "c"])
    assert [copies.call(out_of_memory_on("a", "b")) for _ in range(4)] == ["c"] * 4
    with pytest.raises(OutOfMemoryError, match="c is full"):
        DeviceCopies(["a", "b", "c"]).call(out_of_memory_on("a", "b", "c"))


def test_a_call_that_may_have_modified_its_batch_is_not_repeated():
    with pytest.raises(OutOfMemoryError, match="a is full"):
        DeviceCopies(["a", "b"]).call(out_of_memory_on("a"), retry=False)


def test_another_error_is_not_repeated():
    calls = []

    def fail(copy):
        calls.append(copy)
        raise ValueError("bad row")

    copies = DeviceCopies(["a", "b"])
    with pytest.raises(ValueError, match="bad row"):
        copies.call(fail)
    assert calls == ["a"]
    assert [copies.call(str) for _ in range(2)] == ["b", "a"]


def test_a_device_on_which_the_model_does_not_fit_gets_no_copy(caplog):
    caplog.set_level(logging.WARNING)
    assert load_on_devices(["a", "b", "c"], out_of_memory_on("b")).copies == ["a", "c"]
    assert "doesn't fit on the device b" in caplog.text
    assert load_on_devices(["a", "b"], out_of_memory_on("b")) == "a"
    with pytest.raises(OutOfMemoryError, match="b is full"):
        load_on_devices(["a", "b"], out_of_memory_on("a", "b"))
