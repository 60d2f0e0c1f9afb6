"""Small language models, each a two-layer BERT with a vocabulary of about a hundred words, trained in seconds."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from runinference.samples import text_data, training
from runinference.samples.cache import get_or_train
from runinference.samples.text_data import LABELS, Question

_SOURCES = (__file__, text_data.__file__, training.__file__)


def review_classifier() -> str:
    """Return the directory of a Hugging Face model that classifies reviews as POSITIVE or NEGATIVE.

    The vocabulary of the model is the words of [held_out_reviews][runinference.samples.held_out_reviews],
    and *not*. The first call trains it, which takes a few seconds.
    """
    return get_or_train("review_classifier", "", "transformers", _train_review_classifier, _SOURCES)


def question_answerer() -> str:
    """Return the directory of a Hugging Face model for extractive question answering, as in SQuAD.

    The model takes pairs (question, context), like those of
    [held_out_questions][runinference.samples.held_out_questions], and returns start and end logits.
    """
    return get_or_train("question_answerer", "", "transformers", _train_question_answerer, _SOURCES)


def blank_filler() -> str:
    """Return the directory of a Hugging Face model that predicts the word at ``[MASK]``.

    The model covers days, months, animals and opposites, see
    [held_out_blanks][runinference.samples.held_out_blanks].
    """
    return get_or_train("blank_filler", "", "transformers", _train_blank_filler, _SOURCES)


def _train_review_classifier(path: Path) -> None:
    import torch
    from transformers import BertForSequenceClassification

    reviews, _ = text_data.make_reviews()
    tokenizer = make_tokenizer(text for text, _ in reviews)
    rng = random.Random(0)

    def compute_loss(model: Any) -> Any:
        texts, labels = zip(*rng.sample(reviews, 64), strict=True)
        return model(**_encode(tokenizer, texts), labels=torch.tensor(labels)).loss

    names = {"id2label": dict(enumerate(LABELS)), "label2id": {x: i for i, x in enumerate(LABELS)}}
    _train(path, BertForSequenceClassification, tokenizer, compute_loss, steps=120, **names)


def _train_question_answerer(path: Path) -> None:
    import torch
    from transformers import BertForQuestionAnswering

    rng = random.Random(0)

    def make_questions(n: int) -> list[Question]:
        return [text_data.make_question(rng, held_out=False) for _ in range(n)]

    tokenizer = make_tokenizer(f"{x.question} {x.context}" for x in make_questions(1_000))

    def compute_loss(model: Any) -> Any:
        questions = make_questions(64)
        encoded = tokenizer(
            [x.question for x in questions],
            [x.context for x in questions],
            padding=True,
            return_tensors="pt",
        )
        spans = [_find_answer(encoded, row, x) for row, x in enumerate(questions)]
        starts, ends = torch.tensor(spans).T
        return model(**encoded, start_positions=starts, end_positions=ends).loss

    _train(path, BertForQuestionAnswering, tokenizer, compute_loss, steps=250)


def _find_answer(encoded: Any, row: int, question: Question) -> tuple[int, int]:
    """Return the first and the last token of the answer."""
    start = question.context.index(question.answer)
    last = start + len(question.answer) - 1
    return encoded.char_to_token(row, start, 1), encoded.char_to_token(row, last, 1)


def _train_blank_filler(path: Path) -> None:
    from transformers import BertForMaskedLM

    facts, _ = text_data.make_facts()
    tokenizer = make_tokenizer(text for text, _ in facts)
    rng = random.Random(0)

    def compute_loss(model: Any) -> Any:
        sample = rng.sample(facts, 64)
        target = _encode(tokenizer, [text for text, _ in sample])["input_ids"]
        masked = _encode(tokenizer, [text_data.mask(*fact) for fact in sample])
        labels = target.masked_fill(masked["input_ids"] == target, -100)
        return model(**masked, labels=labels).loss

    _train(path, BertForMaskedLM, tokenizer, compute_loss, steps=400)


def make_tokenizer(texts: Iterable[str]) -> Any:
    """Make a tokenizer whose vocabulary is the words of some texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = [f"{name}_token" for name in ("pad", "unk", "cls", "sep", "mask")]
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=64,
        **dict(zip(names, special, strict=True)),
    )


def _encode(tokenizer: Any, texts: Sequence[str]) -> Any:
    return tokenizer(list(texts), padding=True, return_tensors="pt")


def _train(
    path: Path,
    model_class: Any,
    tokenizer: Any,
    compute_loss: Callable[[Any], Any],
    steps: int,
    **config: Any,
) -> None:
    """Train a small BERT on a loss that is computed on a new batch at each step, and save both."""
    from transformers import BertConfig

    with training.reproducible():
        model = model_class(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=128,
                max_position_embeddings=64,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                **config,
            )
        )
        losses = (compute_loss(model) for _ in range(steps))
        training.fit(model, losses, steps, max_lr=3e-3)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
