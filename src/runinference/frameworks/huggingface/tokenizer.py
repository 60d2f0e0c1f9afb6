"""How texts become tensors: by the tokenizer of the model."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from runinference.collate.padding import Padding
from runinference.errors import ElementError, ModelLoadError, OptionError
from runinference.extras import need
from runinference.frameworks.huggingface.loading import explained

torch = need("torch", extra="transformers")
transformers = need("transformers", extra="transformers")


def load_tokenizer(uri: str, load_tokenizer_args: Mapping[str, Any], option: str) -> Any:
    """The tokenizer of a model, with a token to pad with.

    Raises:
        ModelNotFoundError: There is no such directory, and no such model in the cache or on the hub.
        ModelLoadError: It holds no tokenizer.
    """
    args = {"trust_remote_code": False, **load_tokenizer_args}
    with explained(uri, option, "AutoTokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(uri, **args)
    return ready_for_batches(tokenizer, uri, option)


def ready_for_batches(tokenizer: Any, uri: str, option: str) -> Any:
    """The tokenizer; if it has no token to pad with, it takes the one that ends a text. Masks hide it.

    Raises:
        ModelLoadError: It knows no words: Transformers 5 makes such a one where the files are missing.
    """
    if len(tokenizer) - len(tokenizer.all_special_ids) < 2:
        raise ModelLoadError(
            f"{uri!r} ({option}) has no files of a tokenizer, and every text would be unknown words. Save it to "
            "the directory of the model: tokenizer.save_pretrained(path)."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


class Tokens:
    """Makes tensors of texts; one thread at a time, because tokenizers keep how to truncate in themselves."""

    def __init__(self, tokenizer: Any, args: dict[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.args = args
        self.prompt = ""
        self.lower = False
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[Any]) -> list[dict[str, Any]]:
        """For each text or pair of texts, its tensors of shape (tokens,), int64.

        Raises:
            ElementError: An element is neither a text nor a pair of texts.
        """
        _check_texts(texts)
        with self._lock:
            encoded = self.tokenizer([self._prepared(text) for text in texts], **self.args)
        columns = {key: list(map(torch.tensor, rows)) for key, rows in encoded.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def decode(self, rows: Sequence[Any]) -> list[str]:
        """The texts that tokens stand for."""
        with self._lock:
            return [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]

    def padding(self, side: Literal["right", "left"], unpad: bool) -> Padding:
        """How examples of this tokenizer become one batch."""
        pad = self.tokenizer.pad_token_id
        value = {
            "input_ids": 0 if pad is None else pad,
            "attention_mask": 0,
            "token_type_ids": getattr(self.tokenizer, "pad_token_type_id", 0),
            "special_tokens_mask": 1,
        }
        return Padding(value, mask="attention_mask", side=side, unpad=unpad)

    def _prepared(self, text: Any) -> Any:
        if isinstance(text, str):
            text = self.prompt + text
            return text.lower() if self.lower else text
        return tuple(text)


def checked(tokenizer_args: dict[str, Any]) -> dict[str, Any]:
    """Keywords of a tokenizer's call.

    Raises:
        OptionError: One of them keeps it from giving one row for each text.
    """
    for name in ("return_tensors", "return_overflowing_tokens"):
        if tokenizer_args.get(name):
            raise OptionError(
                f"tokenizer_args must not have {name!r}: each text must become one row, and batches are made "
                "after that."
            )
    return tokenizer_args


def _check_texts(texts: Sequence[Any]) -> None:
    for index, text in enumerate(texts):
        pair = isinstance(text, (tuple, list)) and len(text) == 2
        if not isinstance(text, str) and not (pair and all(isinstance(t, str) for t in text)):
            kind = type(text).__name__
            raise ElementError(
                f"Element {index} of the batch is of type {kind}, and must be a text or a pair of texts. Take the "
                "text out of it before, with_preprocess_fn, or wrap the handler in KeyedModelHandler if elements "
                "are (key, text)."
            )
