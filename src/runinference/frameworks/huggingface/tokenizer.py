"""Tokenize batches of texts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary, WeakValueDictionary

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


def use_lowercase(tokenizer: Any, uri: str) -> None:
    """Make a tokenizer convert texts to lowercase."""
    if not tokenizer.is_fast:
        raise ModelLoadError(
            f"{uri!r} (model_uri) has the setting 'do_lower_case', which needs a fast tokenizer. To fix this, "
            "leave use_fast out of load_tokenizer_args, or convert the texts with with_preprocess_fn(str.lower)."
        )
    normalizers = need("tokenizers", extra="transformers").normalizers
    backend = tokenizer.backend_tokenizer
    others = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *others])


class BatchTokenizer:
    """A converter of texts to token IDs and back, with a lock, because tokenizers store truncation settings.

    Args:
        tokenizer: A tokenizer of Transformers.
        args: Keywords for each of its calls.
        prompt: Text to prepend to each text, and to the first text of a pair.
        max_tokens: The number of tokens that the model accepts, or None if there is no limit.
    """

    def __init__(
        self,
        tokenizer: Any,
        args: Mapping[str, Any],
        prompt: str = "",
        max_tokens: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.args = args
        self.prompt = prompt
        self.max_tokens = max_tokens
        self._lock = get_lock(tokenizer)

    def encode(self, texts: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the int64 tensors of shape (tokens,) of each text or pair of texts, by name.

        Raises:
            ElementError: An element is not a text or a pair of texts, or has more tokens than the model accepts.
        """
        _check_texts(texts)
        with self._lock, explain_unencodable_texts(texts):
            encoded = self.tokenizer([self._add_prompt(text) for text in texts], **self.args)
        columns = {
            # Without the dtype, a text without tokens would become a tensor of floats.
            key: [torch.tensor(row, dtype=torch.int64) for row in rows]
            for key, rows in encoded.items()
        }
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        for index, row in enumerate(rows):
            if self.max_tokens is not None and len(row["input_ids"]) > self.max_tokens:
                raise ElementError(
                    f"Element {index} of the batch has {len(row['input_ids'])} tokens, but the model accepts at "
                    f"most {self.max_tokens}. To fix this, truncate it: tokenizer_args={{'truncation': True, "
                    f"'max_length': {self.max_tokens}}}.",
                    index=index,
                )
        return rows

    def count(self, text: str) -> int:
        """Return the number of tokens that start each text with this text, without those that end a text."""
        with self._lock:
            ids = self.tokenizer(text, **self.args)["input_ids"]
        return len(ids) - bool(ids and ids[-1] in self.tokenizer.all_special_ids)

    def decode(self, rows: Sequence[Any]) -> list[str]:
        """Return the text of each row of token IDs."""
        with self._lock:
            return [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]

    def padding(
        self, side: Literal["right", "left"], unpad: bool = True, mask: bool = True
    ) -> Padding:
        """Return the padding for tensors that this tokenizer encodes, with or without an attention mask."""
        pad = self.tokenizer.pad_token_id
        value = {
            "input_ids": 0 if pad is None else pad,
            "attention_mask": 0,
            "token_type_ids": getattr(self.tokenizer, "pad_token_type_id", 0),
            "special_tokens_mask": 1,
        }
        return Padding(value, "attention_mask" if mask else None, side=side, unpad=unpad)

    def _add_prompt(self, text: Any) -> Any:
        if isinstance(text, str):
            return self.prompt + text
        first, second = text
        return self.prompt + first, second


def make_single_token(row: Mapping[str, Any], token: int, mask: int = 1) -> dict[str, Any]:
    """Return tensors like those of an encoded text, for a text that consists of one token."""
    values = {"input_ids": token, "attention_mask": mask}
    return {name: torch.tensor([values.get(name, 0)]) for name in row}


def check_tokenizer_args(tokenizer_args: Mapping[str, Any]) -> None:
    """Raise `OptionError` if keywords of the tokenizer's call would not give one row for each text."""
    for name in ("return_tensors", "return_overflowing_tokens"):
        if tokenizer_args.get(name):
            raise OptionError(
                f"tokenizer_args must not have {name!r}: each text must become one row, which the handler then "
                "batches. To fix this, leave it out."
            )


def get_lock(tokenizer: Any) -> threading.RLock:
    """Return the lock to hold while a tokenizer is called. It stores settings of the call, such as max_length."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(tokenizer, threading.RLock())


_LOCKS: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def share_tokenizer(key: Hashable, load: Callable[[], BatchTokenizer]) -> BatchTokenizer:
    """Return the tokenizer with a key, which exists once per process while it is used."""
    tokenizer = _SHARED.get(key)
    if tokenizer is None:
        tokenizer = _SHARED.setdefault(key, load())
    return tokenizer


_SHARED: WeakValueDictionary[Hashable, BatchTokenizer] = WeakValueDictionary()


def freeze(value: Any) -> Hashable:
    """Return a hashable copy of settings, which equals that of equal settings only.

    >>> freeze({"a": [1]}) == freeze({"a": [1]}), freeze(1) == freeze(True)
    (True, False)
    """
    if isinstance(value, Mapping):
        return frozenset((key, freeze(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return (type(value), *map(freeze, value))
    try:
        hash(value)
    except TypeError:
        return object()  # equals nothing else
    return type(value), value


@contextmanager
def explain_unencodable_texts(batch: Sequence[Any]) -> Iterator[None]:
    """Convert an error of the enclosed call to an `ElementError` if a text can't be encoded as UTF-8."""
    try:
        yield
    except (TypeError, ValueError) as error:
        for index, element in enumerate(batch):
            if not all(
                map(_is_encodable, element if isinstance(element, (tuple, list)) else [element])
            ):
                raise ElementError(
                    f"Element {index} of the batch contains a lone surrogate, which cannot be encoded as "
                    "UTF-8. To fix this, replace it with with_preprocess_fn, for example lambda text: "
                    'text.encode(errors="replace").decode().',
                    index=index,
                ) from error
        raise


def _is_encodable(text: Any) -> bool:
    return not isinstance(text, str) or text.encode(errors="ignore").decode() == text


def _check_texts(texts: Sequence[Any]) -> None:
    for index, text in enumerate(texts):
        is_pair = isinstance(text, (tuple, list)) and len(text) == 2
        if not isinstance(text, str) and not (is_pair and all(isinstance(t, str) for t in text)):
            raise ElementError(
                f"Element {index} of the batch is of type {type(text).__name__}, but must be a text or a pair of "
                "texts. To fix this, extract the text with with_preprocess_fn, or wrap the handler in "
                "KeyedModelHandler if elements are (key, text).",
                index=index,
            )
