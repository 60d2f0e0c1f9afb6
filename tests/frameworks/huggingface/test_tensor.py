"""The handlers for tensors and dictionaries of tensors."""

from __future__ import annotations

import sys

import pytest
import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
)

from common import run
from runinference import Padding, RunInference
from runinference.errors import BatchShapeError, ModelLoadError, OptionError
from runinference.huggingface_inference import (
    HuggingFaceModelHandlerKeyedTensor,
    HuggingFaceModelHandlerTensor,
)
from runinference.pytorch_inference import make_keyed_tensor_model_fn
from tiny_transformers import IDS, assert_close


def test_returns_one_result_for_each_tensor(classifier):
    handler = HuggingFaceModelHandlerTensor(classifier, AutoModelForSequenceClassification)
    results = run(IDS, RunInference(handler))
    model = BertForSequenceClassification.from_pretrained(classifier).eval()
    assert len(results) == 6
    for example, inference, model_id in results:
        assert set(inference) == {"logits"}
        expected = model(example[None]).logits[0].detach()
        torch.testing.assert_close(inference["logits"], expected)
        assert inference["logits"].untyped_storage().nbytes() == 3 * 4
        assert model_id == classifier


def test_passes_keys_as_keywords(classifier):
    examples = [{"input_ids": ids, "attention_mask": torch.ones(4)} for ids in IDS]
    handler = HuggingFaceModelHandlerKeyedTensor(
        classifier, AutoModelForSequenceClassification, "pt"
    )
    plain = HuggingFaceModelHandlerTensor(classifier, AutoModelForSequenceClassification)
    for one, other in zip(run(examples, RunInference(handler)), plain.predict(IDS), strict=True):
        assert_close(one.inference["logits"], other.inference["logits"])


def test_splits_hidden_states(base):
    handler = HuggingFaceModelHandlerTensor(base, AutoModel, min_batch_size=6)
    results = handler.predict(IDS, {"output_hidden_states": True})
    assert [state.shape for state in results[0].inference["hidden_states"]] == [(4, 16)] * 3


def test_does_not_return_the_key_value_cache(gpt):
    handler = HuggingFaceModelHandlerTensor(gpt, AutoModelForCausalLM, min_batch_size=6)
    assert {key for result in handler.predict(IDS) for key in result.inference} == {"logits"}


def test_pads_tensors_of_different_lengths(base):
    ragged = [{"input_ids": ids[: 2 + n % 3]} for n, ids in enumerate(IDS)]
    padding = Padding({"input_ids": 0}, mask="attention_mask")
    handler = HuggingFaceModelHandlerKeyedTensor(
        base, AutoModel, padding=padding, max_padded_size=12
    )
    model = BertModel.from_pretrained(base).eval()
    for example, inference, _ in handler.predict(ragged):
        expected = model(example["input_ids"][None]).last_hidden_state[0].detach()
        torch.testing.assert_close(inference["last_hidden_state"], expected)
    with pytest.raises(BatchShapeError, match=r"padding=Padding\("):
        HuggingFaceModelHandlerKeyedTensor(base, AutoModel, min_batch_size=6).predict(ragged)


def test_make_keyed_tensor_model_fn_calls_a_method_of_the_model(gpt):
    generate = make_keyed_tensor_model_fn("generate")
    handler = HuggingFaceModelHandlerKeyedTensor(
        gpt, AutoModelForCausalLM, "pt", inference_fn=generate
    )
    examples = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in IDS]
    args = {"max_new_tokens": 2, "min_new_tokens": 2, "pad_token_id": 0, "do_sample": False}
    assert [len(result.inference) for result in handler.predict(examples, args)] == [6] * 6


def test_passes_all_arguments_to_a_custom_inference_fn(base):
    def inference_fn(batch, model, device, inference_args, model_id):
        return [(len(batch), device, inference_args["more"], model_id)] * len(batch)

    for handler, examples in (
        (HuggingFaceModelHandlerTensor, IDS[:1]),
        (HuggingFaceModelHandlerKeyedTensor, [{"input_ids": IDS[0]}]),
    ):
        found = handler(base, AutoModel, inference_fn=inference_fn).predict(examples, {"more": 1})
        assert found == [(1, torch.device("cpu"), 1, base)]


def test_loads_the_model_frozen_in_evaluation_mode(base):
    model = HuggingFaceModelHandlerTensor(base, AutoModel).load_model()
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_passes_load_model_args_to_from_pretrained(base):
    handler = HuggingFaceModelHandlerTensor(
        base, AutoModel, load_model_args={"attn_implementation": "eager"}
    )
    results = handler.predict(IDS[:2], {"output_attentions": True})
    assert results[0].inference["attentions"][0].shape == (2, 4, 4)


def test_load_model_checks_the_weights_after_an_update(base, masked):
    handler = HuggingFaceModelHandlerTensor(masked, AutoModelForMaskedLM)
    handler.update_model_path(base)
    with pytest.raises(ModelLoadError, match=r"cls\.predictions"):
        handler.load_model()


def test_rejects_unknown_and_unsupported_frameworks(base):
    with pytest.raises(OptionError, match="'pt' for PyTorch"):
        HuggingFaceModelHandlerKeyedTensor(base, AutoModel, "flax")
    if transformers.__version__ >= "5":
        with pytest.raises(OptionError, match=r"needs Transformers 4.*transformers<5"):
            HuggingFaceModelHandlerKeyedTensor(base, AutoModel, "tf")
        return
    handler = HuggingFaceModelHandlerKeyedTensor(base, AutoModel, "tf")
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name == "tensorflow"}
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    try:
        with pytest.raises(ImportError, match=r"runinference\[tensorflow\]"):
            handler.load_model()
    finally:
        del sys.modules["tensorflow"]
        sys.modules.update(hidden)


def test_padding_without_a_mask_raises_an_error_that_names_it(base):
    handler = HuggingFaceModelHandlerTensor(base, AutoModel, padding=Padding())
    with pytest.raises(OptionError, match=r"BertModel would also process.*mask='attention_mask'"):
        handler.predict(IDS)
    handler = HuggingFaceModelHandlerKeyedTensor(base, AutoModel, padding=Padding())
    examples = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in IDS]
    assert len(handler.predict(examples)) == len(IDS)
