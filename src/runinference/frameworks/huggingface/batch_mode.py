"""Determine how a model can be called on texts of different lengths without changing its predictions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

from runinference.collate.pytree import leaves_with_path
from runinference.extras import need
from runinference.frameworks.huggingface.tokenizer import BatchTokenizer

torch = need("torch", extra="transformers")

#: Arguments of a call that return the token scores of one step of generation.
ONE_STEP = {
    "max_new_tokens": 1,
    "do_sample": False,
    "use_cache": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}

Row = Mapping[str, Any]
#: Calls a model on a batch of tokenized texts, and returns the output for each of them, without padding.
CallFn = Callable[[Sequence[Row]], Sequence[Any]]


class BatchMode(Enum):
    """What the texts in one call of a model have in common."""

    PADDED = "padded"  # nothing: they are padded to the longest
    SAME_LENGTH = "same length"
    SINGLE = "single"  # each text has its own call


def find_batch_mode(model: Any, tokenizer: BatchTokenizer, call: CallFn) -> BatchMode:
    """Compare the output of a model for a short text alone and in a batch.

    Models without an attention mask, with convolutions or with a wrong padding token also process the padding.
    Classifiers without a padding token fail for more than one text.
    """
    fallback = BatchMode.PADDED if accepts_mask(model) else BatchMode.SAME_LENGTH
    rows = _make_rows(tokenizer)
    if rows is None or getattr(model, "is_quantized", False):
        return fallback
    short, other, long = rows
    try:
        [alone] = call([short])
    except Exception:
        return fallback  # The model needs more than a text.
    if fallback is BatchMode.PADDED and _agrees(alone, call, short, long):
        return BatchMode.PADDED
    return BatchMode.SAME_LENGTH if _agrees(alone, call, short, other) else BatchMode.SINGLE


def accepts_mask(model: Any) -> bool:
    """Return whether a model takes an attention mask."""
    return "attention_mask" in inspect.signature(model.forward).parameters


def depends_on_padded_prompt(model: Any, args: Mapping[str, Any]) -> bool:
    """Return whether padding of the prompt changes a generated text, although the model ignores padding.

    A limit on the length of prompt and text includes the padding, and a penalty for repetitions also applies to
    the padding token.
    """
    defaults = args.get("generation_config") or getattr(model, "generation_config", None)

    def get(name: str) -> Any:
        return args.get(name, getattr(defaults, name, None))

    names = [*_ENCODER_SETTINGS]
    if not getattr(model.config, "is_encoder_decoder", False):
        if get("max_new_tokens") is None:
            return True
        names += _PROMPT_SETTINGS
    return any(get(name) not in (None, 0, 1) for name in names)


_ENCODER_SETTINGS = ("encoder_no_repeat_ngram_size", "encoder_repetition_penalty")
_PROMPT_SETTINGS = (
    "logits_processor",
    "min_length",
    "no_repeat_ngram_size",
    "penalty_alpha",
    "prompt_lookup_num_tokens",
    "repetition_penalty",
    "stopping_criteria",
)


def group_rows(rows: Sequence[Row], mode: BatchMode) -> list[list[int]]:
    """Return the indices of the rows that share a call."""
    if mode is BatchMode.PADDED:
        return [[*range(len(rows))]]
    groups: dict[Any, list[int]] = {}
    for index, row in enumerate(rows):
        key = len(row["input_ids"]) if mode is BatchMode.SAME_LENGTH else index
        groups.setdefault(key, []).append(index)
    return [*groups.values()]


def call_in_groups(rows: Sequence[Row], mode: BatchMode, call: CallFn) -> list[Any]:
    """Call a model on each group of rows, and return the outputs in the order of the rows."""
    outputs: list[Any] = [None] * len(rows)
    for indices in group_rows(rows, mode):
        for index, output in zip(indices, call([rows[i] for i in indices]), strict=True):
            outputs[index] = output
    return outputs


def _make_rows(tokenizer: BatchTokenizer) -> tuple[Row, Row, Row] | None:
    """Return a short text, another one of its length, and a longer one; None if the tokenizer has none."""
    special = {*tokenizer.tokenizer.all_special_ids}
    first = len(tokenizer.tokenizer) // 2
    ids = [i for i in range(first, len(tokenizer.tokenizer)) if i not in special][:8]
    texts = tokenizer.decode([ids[:2], ids])
    short, long = tokenizer.encode(texts)
    changed = next((n for n, i in enumerate(short["input_ids"].tolist()) if i not in special), None)
    if changed is None or len(short["input_ids"]) >= len(long["input_ids"]):
        return None
    other = {**short, "input_ids": short["input_ids"].clone()}
    other["input_ids"][changed] = ids[-1]
    return short, other, long


def _agrees(alone: Any, call: CallFn, row: Row, neighbor: Row) -> bool:
    """Return whether the output for a row is the same beside a neighbor."""
    try:
        beside = call([row, neighbor])[0]
    except Exception:
        return False
    leaves, others = leaves_with_path(alone), dict(leaves_with_path(beside))
    return all(_is_close(leaf, others.get(path)) for path, leaf in leaves)


def _is_close(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor) or not one.is_floating_point():
        return True
    if not isinstance(other, torch.Tensor) or one.shape != other.shape:
        return False
    # Batches of another size are computed in another order.
    tolerance = 1e-3 if one.dtype in (torch.float32, torch.float64) else 5e-2
    one, other = one.float(), other.float()
    scale = float(one[one.isfinite()].abs().max()) if one.isfinite().any() else 1.0
    return bool(torch.allclose(one, other, tolerance, tolerance * scale, equal_nan=True))
