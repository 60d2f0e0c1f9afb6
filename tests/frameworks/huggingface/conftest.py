"""Saved tiny models, and no access to the Hub."""

from __future__ import annotations

import huggingface_hub.constants
import pytest
import torch
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from tiny_transformers import WORDS, bert, saved


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def classifier(folder):
    return saved(folder / "classifier", BertForSequenceClassification(bert(num_labels=3)))


@pytest.fixture(scope="module")
def base(folder):
    return saved(folder / "base", BertModel(bert()))


@pytest.fixture(scope="module")
def masked(folder):
    return saved(folder / "masked", BertForMaskedLM(bert()))


@pytest.fixture(scope="module")
def gpt(folder):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=1.0
    )
    config.bos_token_id = config.eos_token_id = 3
    return saved(folder / "gpt", GPT2LMHeadModel(config), closed=False)
