"""Determine how a model can be called on texts of different lengths without changing its predictions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any

from runinference.collate.micro_batches import MicroBatchLimits, divide_by_length
from runinference.collate.padding import Padding
from runinference.collate.pytree import leaves_with_path
from runinference.extras import need
from runinference.frameworks.huggingface.pretrained import no_cache_args
from runinference.frameworks.huggingface.tokenizer import BatchTokenizer
from runinference.frameworks.torch.calling import StackedInferenceFn

torch = need("torch", extra="transformers")

Row = Mapping[str, Any]
#: Calls a model on a batch of tokenized texts, and returns the output for each of them, without padding.
CallFn = Callable[[Sequence[Row]], Sequence[Any]]


class BatchMode(Enum):
    """What the texts in one call of a model have in common."""

    PADDED = "padded"  # nothing: they are padded to the longest
    SAME_LENGTH = "same length"
    SINGLE = "single"  # each text has its own call


def find_batch_mode(model: Any, tokenizer: BatchTokenizer, call: CallFn) -> BatchMode:
    """Compare the outputs of a model for short texts alone and in a batch.

    Models without an attention mask, with convolutions or with a wrong padding token also process the padding.
    Classifiers without a padding token fail for more than one text.
    """
    fallback = BatchMode.PADDED if accepts_mask(model) else BatchMode.SAME_LENGTH
    rows = _make_rows(tokenizer)
    if rows is None or getattr(model, "is_quantized", False):
        return fallback
    try:
        alone = [output for row in rows for output in call([row])]
    except Exception:
        return fallback  # The model needs more than a text.
    if fallback is BatchMode.PADDED and _agrees(alone, call, rows):
        return BatchMode.PADDED
    pairs = zip(alone, rows, strict=True)
    if all(_agrees([output], call, [row, _replace_token(row, rows[-1])]) for output, row in pairs):
        return BatchMode.SAME_LENGTH
    return BatchMode.SINGLE


def make_probe(model: Any, method: str | None, padding: Padding, device: Any) -> CallFn:
    """Return a function that calls a model for `find_batch_mode`, with as many outputs as it can return."""
    function = StackedInferenceFn(True, method, padding)
    if method == "generate":
        # The scores of the first token that continues each text.
        args = {
            "max_new_tokens": 1,
            "do_sample": False,
            "use_cache": False,
            "output_logits": True,
            "return_dict_in_generate": True,
        }
        return lambda rows: [x.inference["logits"] for x in function(rows, model, device, args)]
    args = no_cache_args(model)

    def call(rows: Sequence[Row]) -> list[Any]:
        try:
            results = list(function(rows, model, device, {**args, "output_hidden_states": True}))
        except Exception:
            results = list(function(rows, model, device, args))
        return [result.inference for result in results]

    return call


def accepts_mask(model: Any) -> bool:
    """Return whether a model takes an attention mask."""
    forward = getattr(model, "forward", None)
    return forward is not None and "attention_mask" in inspect.signature(forward).parameters


def depends_on_padded_prompt(model: Any, args: Mapping[str, Any]) -> bool:
    """Return whether padding of the prompt changes a generated text, although the model ignores padding.

    A limit on the length of prompt and text includes the padding, and a penalty for repetitions also applies to
    the padding token.
    """
    defaults = args.get("generation_config") or getattr(model, "generation_config", None)

    def get(name: str) -> Any:
        return args.get(name, getattr(defaults, name, None))

    neutral = _ENCODER_SETTINGS
    if not getattr(model.config, "is_encoder_decoder", False):
        if get("max_new_tokens") is None:
            return True
        neutral = {**_ENCODER_SETTINGS, **_PROMPT_SETTINGS}
    return any(get(name) not in (None, value) for name, value in neutral.items())


#: Settings that also apply to padding, and their values without an effect.
_ENCODER_SETTINGS: dict[str, Any] = {
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1,
}
_PROMPT_SETTINGS: dict[str, Any] = {
    "logits_processor": None,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "penalty_alpha": None,
    "prompt_lookup_num_tokens": None,
    "repetition_penalty": 1,
    "stopping_criteria": None,
}


def group_rows(rows: Sequence[Row], mode: BatchMode, limits: MicroBatchLimits) -> list[list[int]]:
    """Return the indices of the rows that share a call."""
    if mode is BatchMode.SINGLE:
        return [[index] for index in range(len(rows))]
    if mode is BatchMode.SAME_LENGTH:
        limits = replace(limits, max_padding=0)
    return divide_by_length([len(row["input_ids"]) for row in rows], limits)


def call_in_groups(
    rows: Sequence[Row], mode: BatchMode, limits: MicroBatchLimits, call: CallFn
) -> list[Any]:
    """Call a model on each group of rows, and return the outputs in the order of the rows."""
    outputs: list[Any] = [None] * len(rows)
    for indices in group_rows(rows, mode, limits):
        for index, output in zip(indices, call([rows[i] for i in indices]), strict=True):
            outputs[index] = output
    return outputs


#: The words of each text, as positions in a list of words. The last text is the longest.
_TEXTS = ([0, 1], [2], [3, 4, 5], [*range(10)])


def _make_rows(tokenizer: BatchTokenizer) -> list[Row] | None:
    """Return texts of different lengths; None if all texts of the tokenizer have one length."""
    special = {*tokenizer.tokenizer.all_special_ids}
    first = len(tokenizer.tokenizer) // 2
    words = [i for i in range(first, len(tokenizer.tokenizer)) if i not in special]
    texts = tokenizer.decode([[words[n % len(words)] for n in text] for text in _TEXTS])
    rows: list[Row] = [*tokenizer.encode(texts)]
    lengths = [len(row["input_ids"]) for row in rows]
    return rows if 0 < min(lengths) < lengths[-1] else None


def _replace_token(row: Row, other: Row) -> Row:
    """Return a row of the same length with another token in the middle."""
    ids = row["input_ids"].clone()
    ids[len(ids) // 2] = other["input_ids"][len(other["input_ids"]) // 2]
    return {**row, "input_ids": ids}


def _agrees(alone: Sequence[Any], call: CallFn, rows: Sequence[Row]) -> bool:
    """Return whether the outputs for the first rows are the same in one call with all rows."""
    try:
        together = call(rows)
    except Exception:
        return False
    for one, other in zip(alone, together, strict=False):
        others = dict(leaves_with_path(other))
        if not all(_is_close(leaf, others.get(path)) for path, leaf in leaves_with_path(one)):
            return False
    return True


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
