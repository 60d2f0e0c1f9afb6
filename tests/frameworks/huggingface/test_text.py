"""The handler that tokenizes texts."""

from __future__ import annotations

import copy
import gc
import pickle
import shutil
import weakref

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartModel,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
)

import neighbor_cases
from common import run
from runinference import KeyedModelHandler, RunInference
from runinference.errors import ElementError, OptionError
from runinference.huggingface_inference import (
    HuggingFaceModelHandlerEmbedding,
    HuggingFaceModelHandlerTensor,
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


@pytest.mark.parametrize("text", ["half a pair: \ud83d", ("cat", "\udc00")])
def test_a_lone_surrogate_raises_an_error_with_a_fix(base, classifier, text):
    handlers = [HuggingFaceModelHandlerText(base, min_batch_size=2)]
    if isinstance(text, str):
        pipeline = HuggingFacePipelineModelHandler
        handlers.append(pipeline("text-classification", classifier, min_batch_size=2))
    for handler in handlers:
        with pytest.raises(ElementError, match="Element 1 .*lone surrogate.*with_preprocess_fn"):
            handler.predict(["cat", text])


ENCODER = {**neighbor_cases.ENCODER, "pad_token_id": 1}


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        ("bert", 34),
        ("camembert", 32),
        ("data2vec-text", 32),
        ("esm", 32),
        ("longformer", 32),
        ("mpnet", 32),
        ("xlm-roberta", 32),
    ],
)
def test_truncates_to_the_positions_of_the_model(kind, length, tmp_path):
    special = {"attention_window": 4} if kind == "longformer" else {}
    config = AutoConfig.for_model(kind, **ENCODER, **special)
    path = saved(tmp_path, AutoModel.from_config(config), closed=False)
    [result] = HuggingFaceModelHandlerText(path).predict(["cat " * 100])
    assert len(result.inference["last_hidden_state"]) == length
    with pytest.raises(ElementError, match=rf"has 100 tokens, .* at most {length}"):
        HuggingFaceModelHandlerText(path, tokenizer_args={"truncation": False}).predict(
            ["cat " * 100]
        )
    handler = HuggingFaceModelHandlerTensor(path, AutoModel)
    with pytest.raises(ElementError, match=rf"33 tokens|35 tokens.*at most {length}"):
        handler.predict([torch.full((length + 1,), 7)])


def test_truncates_to_the_positions_of_an_encoder(tmp_path):
    config = BartConfig(
        vocab_size=len(WORDS), d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
        max_position_embeddings=12,
    )  # fmt: skip
    path = saved(tmp_path, BartModel(config), closed=False)
    [result] = HuggingFaceModelHandlerText(path).predict(["cat " * 100])
    assert len(result.inference["encoder_last_hidden_state"]) == 12


def test_a_text_without_tokens_raises_an_error_that_names_it(tmp_path):
    handler = HuggingFaceModelHandlerText(
        saved(tmp_path, BertModel(bert()), closed=False), min_batch_size=2
    )
    with pytest.raises(ElementError, match=r"Element 1 of the batch is '', which has no tokens"):
        handler.predict(["cat", ""])


def test_frees_the_tokenizers_of_models_that_are_no_longer_used(base, folder, monkeypatch):
    load, tokenizers = AutoTokenizer.from_pretrained, weakref.WeakSet()

    def load_and_record(*args, **kwargs):
        tokenizers.add(made := load(*args, **kwargs))
        return made

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load_and_record)
    handler = HuggingFaceModelHandlerText(base, max_padded_size=20)
    for n in range(4):
        handler = copy.copy(handler)
        handler.update_model_path(str(shutil.copytree(base, folder / f"refresh-{n}")))
        assert handler.batch_elements_kwargs()["length_fn"]("cat") == 3
        gc.collect(1)
        assert len(tokenizers) <= 2
    del handler
    gc.collect()
    assert not tokenizers


def test_counts_the_tokens_of_the_updated_model(base, folder):
    handler = HuggingFaceModelHandlerText(base, max_padded_size=20)
    assert handler.batch_elements_kwargs()["length_fn"]("cat") == 3
    updated = copy.copy(handler)
    updated.update_model_path(saved(folder / "open", BertModel(bert()), closed=False))
    assert updated.batch_elements_kwargs()["length_fn"]("cat") == 1


def test_options_with_the_same_repr_do_not_share_a_tokenizer(base):
    class Length(int):
        def __repr__(self):
            return "a length"

    handlers = [
        HuggingFaceModelHandlerText(
            base, tokenizer_args={"max_length": Length(n), "truncation": True}, max_padded_size=20
        )
        for n in (3, 5)
    ]
    lengths = [each.batch_elements_kwargs()["length_fn"]("the cat " * 9) for each in handlers]
    assert lengths == [3, 5]


def test_models_support_weak_references(base):
    for handler in (HuggingFaceModelHandlerText(base), HuggingFaceModelHandlerEmbedding(base)):
        model = handler.load_model()
        assert weakref.ref(model)() is model


def test_two_columns_of_rows_are_a_pair_of_texts(tmp_path):
    path = saved(tmp_path, BertForSequenceClassification(bert(num_labels=1)))
    handler = HuggingFaceModelHandlerText(path, AutoModelForSequenceClassification)
    pairs = [("the cat", "good dog"), ("good dog", "the dog ran")]
    expected = [float(result.inference["logits"]) for result in handler.predict(pairs)]
    rows = [{"query": query, "text": text, "id": i} for i, (query, text) in enumerate(pairs)]
    options = {"columns": ["query", "text"], "output": {"logits": float}, "keep": ["id"]}
    by_tokens = HuggingFaceModelHandlerText(
        path, AutoModelForSequenceClassification, max_padded_size=20
    )
    for each in (handler, by_tokens):
        found = each.predict(rows, **options)
        assert [(row.id, row.logits) for row in found] == [
            (i, pytest.approx(score, abs=1e-5)) for i, score in enumerate(expected)
        ]
    with pytest.raises(ElementError, match="must be a text or a pair of texts"):
        handler.predict(rows, columns=["query", "text", "id"])


def test_scores_of_rerankers_equal_those_of_sentence_transformers(tmp_path):
    from sentence_transformers import CrossEncoder

    path = saved(tmp_path, BertForSequenceClassification(bert(num_labels=1)))
    queries = ["the cat", "good dog"]
    pairs = [(query, text) for query in queries for text in [*TEXTS, "the dog ran " * 20]]
    handler = HuggingFaceModelHandlerText(path, AutoModelForSequenceClassification)
    logits = [result.inference["logits"] for result in handler.predict(pairs)]
    assert {logit.shape for logit in logits} == {(1,)}
    encoder = CrossEncoder(path, device="cpu")
    expected = torch.as_tensor(encoder.predict(pairs))
    torch.testing.assert_close(torch.stack(logits).sigmoid()[:, 0], expected, atol=1e-5, rtol=0)
