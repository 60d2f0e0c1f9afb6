"""A small cross-encoder whose weights are set instead of trained."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

from runinference.samples import text_data, text_models
from runinference.samples.cache import get_or_train

_SOURCES = (__file__, text_data.__file__, text_models.__file__)
_STOP_WORDS = re.findall(r"\w+", "a and by did had how in is on saw see the to what when where who")
#: The difference of two attention scores after which a softmax ignores the smaller one.
_SHARPNESS = 16.0


def reranker() -> str:
    """Return the directory of a cross-encoder, which scores a passage for a query.

    The score of a pair (query, passage) grows with the share of the words in the query that the passage contains.
    Articles, question words, and other common words don't count. The vocabulary of the model is the words of
    [held_out_questions][runinference.samples.held_out_questions].
    """
    return get_or_train("reranker", "", "transformers", _make_reranker, _SOURCES)


def _make_reranker(path: Path) -> None:
    """Set the weights of a BERT with two layers, which copy their input and add one number to each token.

    Layer 1: a token attends to the same word in the passage or, if there is none, to itself, and stores which one.
    Layer 2: the first token averages this over the words of the query.
    """
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    rng = random.Random(0)
    questions = [text_data.make_question(rng, held_out=False) for _ in range(1_000)]
    tokenizer = text_models.make_tokenizer(f"{x.question} {x.context}" for x in questions)
    n_words = len(tokenizer)
    # Each word has a dimension. The other dimensions hold one number each.
    in_passage, is_content, is_found, share = range(n_words, n_words + 4)
    size = n_words + 4
    options: dict[str, Any] = {"num_labels": 1}
    config = BertConfig(
        vocab_size=n_words,
        hidden_size=size,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=1,
        max_position_embeddings=64,
        layer_norm_eps=1e8,  # then a normalization only subtracts the mean
        **options,
    )
    model: Any = BertForSequenceClassification(config)
    sharpness = _SHARPNESS * size**0.5
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(1e4)
        words = model.bert.embeddings.word_embeddings.weight
        words[:, :n_words] = torch.eye(n_words)
        for word, number in tokenizer.get_vocab().items():
            words[number, is_content] = float(word.isalnum() and word not in _STOP_WORDS)
        model.bert.embeddings.token_type_embeddings.weight[1, in_passage] = 1
        find, average = (layer.attention for layer in model.bert.encoder.layer)
        for attention in (find, average):
            attention.self.key.weight.copy_(torch.eye(size))
            attention.output.dense.weight.copy_(torch.eye(size))
        find.self.query.weight[:n_words, :n_words] = sharpness * torch.eye(n_words)
        find.self.query.bias[in_passage] = sharpness / 2
        find.self.value.weight[is_found, in_passage] = 1
        average.self.query.bias[is_content] = sharpness
        average.self.query.bias[in_passage] = -sharpness
        average.self.value.weight[share, is_found] = 1
        model.bert.pooler.dense.weight[0, share] = 1
        model.classifier.weight[0, 0] = 10
        model.classifier.bias.fill_(-4)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
