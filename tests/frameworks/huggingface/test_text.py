"""The handler that tokenizes texts."""

from __future__ import annotations

import pickle

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    BertForQuestionAnswering,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
)

from common import run
from runinference import KeyedModelHandler, RunInference
from runinference.errors import ElementError, OptionError
from runinference.huggingface_inference import (
    HuggingFaceModelHandlerText,
    HuggingFacePipelineModelHandler,
)
from tiny_transformers import TEXTS, WORDS, bert, saved, tokenizer


def test_returns_one_vector_for_each_token_and_none_for_padding(base):
    results = run(TEXTS, RunInference(HuggingFaceModelHandlerText(base)))
    model = BertModel.from_pretrained(base).eval()
    for text, inference, model_id in results:
        ids = tokenizer()(text, return_tensors="pt")
        expected = model(**ids).last_hidden_state[0].detach()
        torch.testing.assert_close(inference["last_hidden_state"], expected)
        assert model_id == base


def test_batches_texts_of_similar_length(base):
    handler = HuggingFaceModelHandlerText(base, max_padded_size=12)
    assert [handler.batch_elements_kwargs()["length_fn"](text) for text in TEXTS] == [
        8, 4, 3, 9, 3, 3,
    ]  # fmt: skip
    handler = pickle.loads(pickle.dumps(handler))
    results = run(TEXTS, RunInference(handler))
    assert sorted(result.example for result in results) == sorted(TEXTS)
    assert {len(result.inference["last_hidden_state"]) for result in results} == {8, 4, 3, 9}


def test_accepts_pairs_of_question_and_context(folder):
    path = saved(folder / "answers", BertForQuestionAnswering(bert()))
    handler = HuggingFaceModelHandlerText(path, AutoModelForQuestionAnswering)
    pairs = [("the cat", text) for text in TEXTS]
    results = handler.predict(pairs)
    for pair, inference, _ in results:
        tokens = tokenizer()(*pair)["input_ids"]
        assert inference["start_logits"].shape == (len(tokens),)
        assert pair[1].split()[0] == WORDS[tokens[4]]


def test_truncates_long_texts_to_the_limit_of_the_model(base):
    handler = HuggingFaceModelHandlerText(base)
    [result] = handler.predict(["the cat " * 100])
    assert result.inference["last_hidden_state"].shape == (32, 16)
    handler = HuggingFaceModelHandlerText(base, tokenizer_args={"max_length": 8})
    [result] = handler.predict(["the cat " * 100])
    assert result.inference["last_hidden_state"].shape == (8, 16)


def test_generates_the_same_texts_as_a_pipeline(gpt):
    handler = HuggingFaceModelHandlerText(
        gpt, AutoModelForCausalLM, method="generate", min_batch_size=6
    )
    args = {"max_new_tokens": 4, "do_sample": False}
    pipeline = HuggingFacePipelineModelHandler("text-generation", gpt)
    expected = pipeline.predict(TEXTS, {**args, "return_full_text": False})
    for result, other in zip(handler.predict(TEXTS, args), expected, strict=True):
        assert result.inference.strip() == other.inference[0]["generated_text"].strip()


def test_generates_texts_with_an_encoder_decoder_model(folder):
    torch.manual_seed(0)
    config = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, vocab_size=len(WORDS))
    config.decoder_start_token_id = 0
    path = saved(folder / "t5", T5ForConditionalGeneration(config))
    handler = HuggingFaceModelHandlerText(
        path, AutoModelForSeq2SeqLM, method="generate", min_batch_size=6,
        load_tokenizer_args={"model_input_names": ["input_ids", "attention_mask"]},
    )  # fmt: skip
    args = {"max_new_tokens": 5, "do_sample": False}
    together = handler.predict(TEXTS, args)
    assert together == [handler.predict([text], args)[0] for text in TEXTS]
    assert all(isinstance(result.inference, str) for result in together)


def test_pads_a_decoder_on_the_right_without_generate(gpt):
    handler = HuggingFaceModelHandlerText(gpt, AutoModelForCausalLM, min_batch_size=6)
    for together, text in zip(handler.predict(TEXTS), TEXTS, strict=True):
        [alone] = handler.predict([text])
        torch.testing.assert_close(together.inference, alone.inference)


def test_works_in_a_keyed_handler(base):
    handler = KeyedModelHandler(HuggingFaceModelHandlerText(base, max_padded_size=20))
    results = run(list(enumerate(TEXTS)), RunInference(handler))
    assert {key: result.example for key, result in results} == dict(enumerate(TEXTS))


def test_rejects_elements_that_are_not_texts_and_invalid_tokenizer_args(base):
    handler = HuggingFaceModelHandlerText(base)
    for element in (5, b"cat", ["a", "cat", "sat"], (1, "cat"), {"text": "cat"}):
        with pytest.raises(ElementError, match="must be a text or a pair"):
            handler.predict([element])
    with pytest.raises(OptionError, match="return_tensors"):
        HuggingFaceModelHandlerText(base, tokenizer_args={"return_tensors": "pt"})
