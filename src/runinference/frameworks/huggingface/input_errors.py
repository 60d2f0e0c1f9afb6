"""Explain which input of a Transformers model is invalid: its name, dtype, token IDs or shape."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from runinference.collate.unbatch import unbatch
from runinference.errors import ElementError, ModelInputError, RunInferenceError, suggest
from runinference.frameworks.huggingface.positions import find_max_tokens


@contextmanager
def explain_input_errors(model: Any, batch: Sequence[Any]) -> Iterator[None]:
    """Convert errors of the enclosed call to an `ElementError` that names the invalid tensor, if one is found."""
    try:
        yield
    except (TypeError, RuntimeError, IndexError, ValueError) as error:
        if isinstance(error, RunInferenceError) and not isinstance(error, ModelInputError):
            raise
        if (found := _find_invalid_tensor(model, batch)) is None:
            raise
        raise found from error


def check_input_names(model: Any, example: Any) -> None:
    """Raise `ElementError` for a key that is not an input of the model; Transformers 5 ignores unknown keys."""
    main = getattr(model, "main_input_name", None)
    if main is None or not isinstance(example, Mapping):
        return
    parameters = inspect.signature(model.forward).parameters.values()
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    if main not in known:
        return
    for name in example:
        if name not in known:
            raise ElementError(
                f"{type(model).__name__} has no input {name!r}.{suggest(str(name), known)} Its inputs are: "
                f"{', '.join(known)}."
            )


def _find_invalid_tensor(model: Any, batch: Sequence[Any]) -> ElementError | None:
    main = getattr(model, "main_input_name", "")
    if isinstance(batch, Mapping):
        batch = unbatch(batch, len(next(iter(batch.values()))))
    for index, example in enumerate(batch):
        tensors = example if isinstance(example, Mapping) else {main: example}
        for name, tensor in tensors.items():
            describe = _describe_invalid_ids if name == "input_ids" else _describe_wrong_precision
            if problem := describe(tensor, model):
                return ElementError(
                    f"Element {index} of the batch has {name} {problem}", index=index
                )
    return None


def _describe_wrong_precision(tensor: Any, model: Any) -> str | None:
    if tensor.is_floating_point() and tensor.dtype != model.dtype:
        return (
            f"of {tensor.dtype}, but the model computes in {model.dtype}. To fix this, convert it: "
            "with_preprocess_fn(lambda tensor: tensor.to(dtype))."
        )
    return None


def _describe_invalid_ids(ids: Any, model: Any) -> str | None:
    if ids.is_floating_point() or ids.is_complex():
        return (
            f"of {ids.dtype}, but token IDs are integers. To fix this, convert them: "
            "with_preprocess_fn(lambda ids: ids.long())."
        )
    if ids.ndim != 1:
        return (
            f"of shape {tuple(ids.shape)}, but an element must have shape (tokens,). To fix this, if a tokenizer "
            "returned it with return_tensors='pt', take its row: ids[0]."
        )
    size = getattr(model.config, "vocab_size", None)
    if size and ids.numel() and (int(ids.max()) >= size or int(ids.min()) < 0):
        return (
            f"from {int(ids.min())} to {int(ids.max())}, but the model's vocabulary has IDs from 0 to {size - 1}. "
            "To fix this, use the tokenizer that the model was trained with."
        )
    longest = find_max_tokens(model)
    if longest is not None and len(ids) > longest:
        return (
            f"of {len(ids)} tokens, but the model accepts at most {longest}. To fix this, truncate it: "
            f"tokenizer(text, truncation=True, max_length={longest})."
        )
    return None
