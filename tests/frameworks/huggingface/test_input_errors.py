"""Errors that explain invalid inputs."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel

from runinference.errors import BatchShapeError, ElementError
from runinference.huggingface_inference import (
    HuggingFaceModelHandlerKeyedTensor,
    HuggingFaceModelHandlerTensor,
)
from tiny_transformers import IDS


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([2.0, 5.0, 3.0]), r"Element 1 .* of torch\.float32.*ids\.long\(\)"),
        (torch.tensor([[2, 5, 3]]), r"Element 1 .* of shape \(1, 3\).*ids\[0\]"),
        (torch.tensor([2, 99, 3]), "Element 1 .* from 2 to 99, .* from 0 to 16"),
        (torch.tensor([2, -1, 3]), "Element 1 .* from -1 to 3"),
    ],
)
def test_explains_invalid_token_ids(ids, message, base):
    good = torch.tensor([2, 5, 3]).reshape(ids.shape).to(ids.dtype)
    model = HuggingFaceModelHandlerTensor(base, AutoModel, min_batch_size=2)
    if ids.dtype.is_floating_point or ids.ndim > 1:
        message = message.replace("Element 1", "Element 0")
    with pytest.raises(ElementError, match=message):
        model.predict([good, ids])


def test_explains_too_many_tokens(base):
    handler = HuggingFaceModelHandlerTensor(base, AutoModel)
    with pytest.raises(ElementError, match=r"of 33 tokens, .* at most 32.*truncation=True"):
        handler.predict([torch.full((33,), 5)])


def test_suggests_a_name_for_an_unknown_input(base):
    handler = HuggingFaceModelHandlerKeyedTensor(base, AutoModel)
    for wrong, near in (("inputs_ids", "input_ids"), ("atention_mask", "attention_mask")):
        example = {"input_ids": IDS[0], wrong: IDS[0]}
        with pytest.raises(ElementError, match=rf"BertModel has no input '{wrong}'.*'{near}'"):
            handler.predict([example])


def test_explains_tensors_of_another_precision(base):
    handler = HuggingFaceModelHandlerKeyedTensor(base, AutoModel)
    vectors = torch.zeros(4, 16)
    [result] = handler.predict([{"inputs_embeds": vectors}])
    assert result.inference["last_hidden_state"].shape == (4, 16)
    with pytest.raises(ElementError, match=r"inputs_embeds of torch\.float64.*torch\.float32"):
        handler.predict([{"inputs_embeds": vectors.double()}])


def test_rejects_different_shapes_and_elements_that_are_not_tensors(base):
    handler = HuggingFaceModelHandlerTensor(base, AutoModel, min_batch_size=2)
    with pytest.raises(BatchShapeError, match="padding=Padding"):
        handler.predict([IDS[0], IDS[0][:2]])
    with pytest.raises(BatchShapeError, match="not a torch.Tensor"):
        handler.predict([[2, 5, 3], IDS[0]])


def test_raises_other_errors_unchanged(base):
    def fail(*given):
        raise RuntimeError("out of memory")

    handler = HuggingFaceModelHandlerTensor(base, AutoModel, inference_fn=fail)
    with pytest.raises(RuntimeError, match="^out of memory$"):
        handler.predict(IDS)
