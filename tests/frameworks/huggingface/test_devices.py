"""Copies of a model on several devices: each batch goes to one of them."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoModel, PreTrainedModel

from common import run
from runinference import RunInference
from runinference.errors import OptionError
from runinference.frameworks.torch.devices import resolve_device
from runinference.huggingface_inference import (
    HuggingFaceModelHandlerEmbedding,
    HuggingFaceModelHandlerKeyedTensor,
    HuggingFaceModelHandlerTensor,
    HuggingFaceModelHandlerText,
    HuggingFacePipelineModelHandler,
)
from tiny_transformers import IDS, TEXTS, assert_close

KINDS = ["pipeline", "tensor", "keyed tensor", "text", "embedding"]


@pytest.fixture(params=KINDS)
def make(request, classifier, base):
    """Return a function from a device and options to a handler with elements."""
    keyed = [{"input_ids": ids} for ids in IDS]
    make_handler, elements = {
        "pipeline": (
            lambda **options: HuggingFacePipelineModelHandler(
                "text-classification", classifier, **options
            ),
            TEXTS,
        ),
        "tensor": (
            lambda **options: HuggingFaceModelHandlerTensor(base, AutoModel, **options),
            IDS,
        ),
        "keyed tensor": (
            lambda **options: HuggingFaceModelHandlerKeyedTensor(base, AutoModel, **options),
            keyed,
        ),
        "text": (lambda **options: HuggingFaceModelHandlerText(base, **options), TEXTS),
        "embedding": (lambda **options: HuggingFaceModelHandlerEmbedding(base, **options), TEXTS),
    }[request.param]
    return lambda device, **options: (make_handler(device=device, **options), elements)


@pytest.fixture
def calls():
    """Return the modules of all calls of Transformers models."""
    modules: list[Any] = []
    hook = register_module_forward_pre_hook(
        lambda module, _: modules.append(module) if isinstance(module, PreTrainedModel) else None
    )
    yield modules
    hook.remove()


def test_batches_are_spread_over_the_devices_and_results_are_the_same(make, calls):
    one, elements = make("cpu", max_batch_size=1)
    expected = [*one.predict(elements)] * 4
    handler, _ = make(["cpu", "cpu"], max_batch_size=1)
    calls.clear()
    results = run(elements * 4, RunInference(handler))
    assert [repr(result.example) for result in results] == [repr(x) for x in elements * 4]
    for result, correct in zip(results, expected, strict=True):
        assert_close(result.inference, correct.inference)
    copies = Counter(module for module in calls if type(module) is type(calls[0]))
    assert len(copies) == 2
    assert min(copies.values()) >= len(elements)


def find_module(copy: Any) -> Any:
    """Return the module in a pipeline, a text model, or a pooling model."""
    return find_module(copy.model) if hasattr(copy, "model") else copy


@pytest.mark.parametrize("make", ["tensor", "keyed tensor"], indirect=True)
def test_each_device_has_a_copy(make):
    model = make(["cpu", "meta"])[0].load_model()
    assert [find_module(copy).device.type for copy in model.copies] == ["cpu", "meta"]


def test_devices_that_a_machine_lacks_are_skipped_with_a_warning(make, caplog):
    caplog.set_level(logging.WARNING)
    resolve_device.cache_clear()
    handler, elements = make(["cuda:61", "cpu"])
    assert find_module(handler.load_model()).device.type == "cpu"
    assert "The device cuda:61 is not available" in caplog.text
    assert len([*handler.predict(elements)]) == len(elements)


def test_a_single_device_has_no_copies(make):
    models = [make(device)[0].load_model() for device in ("cpu", ["cpu"], torch.device("cpu"))]
    assert len({type(model) for model in models}) == 1


@pytest.mark.parametrize(
    ("device", "message"), [([], "empty list"), (["cpu", "gpux"], "'gpux'"), ([None], "is None")]
)
def test_invalid_devices_raise_an_error_that_names_them(make, device, message):
    with pytest.raises(OptionError, match=message):
        make(device)


def test_copies_and_a_device_map_conflict(base):
    with pytest.raises(OptionError, match="leave 'device_map' out to have a copy on each device"):
        HuggingFaceModelHandlerText(
            base, device=["cpu", "cpu"], load_model_args={"device_map": "auto"}
        )
    HuggingFaceModelHandlerText(base, device=["cpu"], load_model_args={"device_map": "auto"})
