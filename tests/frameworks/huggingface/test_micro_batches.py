"""Micro-batches of texts of similar length: the shapes of the model's calls, and the results."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertModel

from common import RUNNER, CollectElements
from runinference import RunInference
from runinference.huggingface_inference import (
    HuggingFaceModelHandlerEmbedding,
    HuggingFaceModelHandlerText,
)
from tiny_transformers import WORDS, saved

LENGTHS = np.random.default_rng(0).lognormal(3, 0.9, 512).clip(1, 126).astype(int)
#: Texts of these lengths in words, each of which begins with another word than the one before.
TEXTS = [" ".join(WORDS[5 + (i + k) % 12] for k in range(n)) for i, n in enumerate(LENGTHS)]
HANDLERS = [HuggingFaceModelHandlerText, HuggingFaceModelHandlerEmbedding]


@pytest.fixture(scope="module")
def path(folder):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=len(WORDS), num_hidden_layers=1, max_position_embeddings=128, **sizes
    )
    return saved(folder / "long", BertModel(config))


def make_handler(kind: Any, path: str, check: Any, **options: Any) -> Any:
    """Return a handler that passes the token IDs of each call of its model to a function."""

    class Checked(kind):
        def load_model(self):
            loaded = super().load_model()
            module = getattr(loaded.model, "model", loaded.model)
            hook = lambda module, args, kwargs: check(kwargs["input_ids"])  # noqa: E731
            module.register_forward_pre_hook(hook, with_kwargs=True)
            return loaded

    return Checked(path, **options)


@pytest.mark.parametrize("kind", HANDLERS)
def test_texts_of_mixed_lengths_need_little_padding_by_default(kind, path):
    sizes = []
    handler = make_handler(kind, path, lambda ids: sizes.append(ids.numel()))
    results = handler.predict(TEXTS)
    assert sum(sizes) < 1.2 * sum(LENGTHS + 2)
    assert len(sizes) < len(TEXTS) / 8
    assert [result.example for result in results] == TEXTS
    alone = kind(path, max_batch_size=1).predict(TEXTS[::50])
    for result, expected in zip(results[::50], alone, strict=True):
        torch.testing.assert_close(result.inference, expected.inference)


@pytest.mark.parametrize(
    "options",
    [
        {"max_padded_size": 10_000},
        {"element_size_fn": len, "max_batch_size": 10**6},
        {"min_batch_size": 60, "batch_length_fn": len, "batch_bucket_boundaries": [10**6]},
    ],
)
def test_with_limits_on_length_or_weight_a_batch_is_one_call(options, path):
    calls = []
    check = lambda ids: calls.append(len(ids))  # noqa: E731
    make_handler(HuggingFaceModelHandlerEmbedding, path, check, **options).predict(TEXTS[:60])
    assert calls == [60]


def test_a_micro_batch_has_at_most_as_many_texts_as_a_batch(path):
    calls = []
    check = lambda ids: calls.append(len(ids))  # noqa: E731
    for options in ({"max_batch_size": 5}, {"min_batch_size": 5, "max_batch_size": 5}):
        calls.clear()
        handler = make_handler(HuggingFaceModelHandlerEmbedding, path, check, **options)
        handler.predict(["cat"] * 12)
        assert calls == [5, 5, 2]


def test_generated_texts_are_batched_like_other_elements(gpt):
    handler = HuggingFaceModelHandlerText(gpt, AutoModelForCausalLM, method="generate")
    assert not handler.batch_elements_kwargs()


@pytest.mark.parametrize("kind", HANDLERS)
def test_out_of_memory_halves_the_batch_until_its_texts_fit(kind, path):
    sizes = []

    def check(ids):
        if ids.numel() > 512:
            raise torch.OutOfMemoryError("out of memory")
        sizes.append(ids.numel())

    texts = TEXTS[:128]
    results = make_handler(kind, path, check).predict(texts)
    assert max(sizes) > 256
    assert [result.example for result in results] == texts
    for result, expected in zip(results, kind(path).predict(texts), strict=True):
        torch.testing.assert_close(result.inference, expected.inference)


def test_only_the_texts_that_the_model_fails_for_become_dead_letters(path):
    cat, mat = WORDS.index("cat"), WORDS.index("mat")

    def check(ids):
        if ((ids[:, 1] == cat) & (ids[:, 2] == mat)).any():
            raise ValueError("no cat mat")

    texts = [*TEXTS[:60], "cat mat", *TEXTS[60:90], "cat mat good"]
    handler = make_handler(HuggingFaceModelHandlerEmbedding, path, check)
    good: list[Any] = []
    dead: list[Any] = []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        elements = pipeline | beam.Create(texts, reshuffle=False)
        results, letters = elements | RunInference(handler).with_exception_handling()
        results | "good" >> beam.ParDo(CollectElements(good))
        letters.failed_inferences | "dead" >> beam.ParDo(CollectElements(dead))
    assert [result.example for result in CollectElements.take(good)] == TEXTS[:90]
    assert [text for text, _ in CollectElements.take(dead)] == ["cat mat", "cat mat good"]
