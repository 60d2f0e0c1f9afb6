"""Tokenize batches of texts."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from runinference.collate.padding import Padding
from runinference.errors import ElementError, ModelLoadError, OptionError
from runinference.extras import need
from runinference.frameworks.huggingface.loading import explain_load_errors

torch = need("torch", extra="transformers")
transformers = need("transformers", extra="transformers")


def load_tokenizer(uri: str, load_tokenizer_args: Mapping[str, Any], option: str) -> Any:
    """Load a tokenizer that can pad."""
    args = {"trust_remote_code": False, **load_tokenizer_args}
    with explain_load_errors(uri, option, "AutoTokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(uri, **args)
    return prepare_tokenizer(tokenizer, uri, option)


def prepare_tokenizer(tokenizer: Any, uri: str, option: str) -> Any:
    """Set a padding token if the tokenizer has none; raise `ModelLoadError` if its vocabulary is empty."""
    # Transformers 5 creates such a tokenizer if a model has no tokenizer files.
    if len(tokenizer) - len(tokenizer.all_special_ids) < 2:
        raise ModelLoadError(
            f"{uri!r} ({option}) has no tokenizer files, so every token would be unknown. To fix this, save the "
            "tokenizer to the model's directory: tokenizer.save_pretrained(path)."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


class BatchTokenizer:
    """A converter of texts to token IDs and back, with a lock, because tokenizers store truncation settings."""

    def __init__(self, tokenizer: Any, args: dict[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.args = args
        self.prompt = ""
        self.lower = False
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the int64 tensors of shape (tokens,) of each text or pair of texts, by name."""
        _check_texts(texts)
        with self._lock:
            encoded = self.tokenizer([self._prepare(text) for text in texts], **self.args)
        columns = {key: list(map(torch.tensor, rows)) for key, rows in encoded.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def decode(self, rows: Sequence[Any]) -> list[str]:
        """Return the text of each row of token IDs."""
        with self._lock:
            return [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]

    def padding(self, side: Literal["right", "left"], unpad: bool) -> Padding:
        """Return the padding for tensors that this tokenizer encodes."""
        pad = self.tokenizer.pad_token_id
        value = {
            "input_ids": 0 if pad is None else pad,
            "attention_mask": 0,
            "token_type_ids": getattr(self.tokenizer, "pad_token_type_id", 0),
            "special_tokens_mask": 1,
        }
        return Padding(value, mask="attention_mask", side=side, unpad=unpad)

    def _prepare(self, text: Any) -> Any:
        if isinstance(text, str):
            text = self.prompt + text
            return text.lower() if self.lower else text
        return tuple(text)


def check_tokenizer_args(tokenizer_args: Mapping[str, Any]) -> None:
    """Raise `OptionError` if keywords of the tokenizer's call would not give one row for each text."""
    for name in ("return_tensors", "return_overflowing_tokens"):
        if tokenizer_args.get(name):
            raise OptionError(
                f"tokenizer_args must not have {name!r}: each text must become one row, which the handler then "
                "batches. To fix this, leave it out."
            )


def _check_texts(texts: Sequence[Any]) -> None:
    for index, text in enumerate(texts):
        is_pair = isinstance(text, (tuple, list)) and len(text) == 2
        if not isinstance(text, str) and not (is_pair and all(isinstance(t, str) for t in text)):
            raise ElementError(
                f"Element {index} of the batch is of type {type(text).__name__}, but must be a text or a pair of "
                "texts. To fix this, extract the text with with_preprocess_fn, or wrap the handler in "
                "KeyedModelHandler if elements are (key, text)."
            )
