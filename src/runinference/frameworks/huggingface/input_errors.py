"""What is wrong with the inputs of a model: a name; or, where a call failed, a type, an id, a shape."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from runinference.collate.unbatch import unbatch
from runinference.errors import ElementError, RunInferenceError, suggest


@contextmanager
def inputs_explained(model: Any, batch: Sequence[Any]) -> Iterator[None]:
    """Says of a call that fails inside it what is wrong with the tensors it was given, where that is known.

    Args:
        model: A model of Transformers.
        batch: Its examples: tensors, or dictionaries of tensors.

    Raises:
        ElementError: An input has floats where ids of tokens belong, ids that the model does not have, more
            tokens than it takes, or another precision. Any other error passes as it is.
    """
    try:
        yield
    except RunInferenceError:
        raise
    except (TypeError, RuntimeError, IndexError, ValueError) as error:
        if (said := _wrong_tensor(model, batch)) is None:
            raise
        raise ElementError(said) from error


def check_names(model: Any, example: Any) -> None:
    """Does nothing where a model knows all keys of an example; Transformers 5 itself ignores those it does not.

    Raises:
        ElementError: A key is not among the model's inputs.
    """
    main = getattr(model, "main_input_name", None)
    if main is None or not isinstance(example, Mapping):
        return
    given = inspect.signature(model.forward).parameters.values()
    known = [parameter.name for parameter in given if parameter.kind is not parameter.VAR_KEYWORD]
    if main not in known:
        return
    for name in example:
        if name not in known:
            raise ElementError(
                f"{type(model).__name__} has no input {name!r}.{suggest(str(name), known)} The keys of an example "
                f"may be: {', '.join(known)}."
            )


def _wrong_tensor(model: Any, batch: Sequence[Any]) -> str | None:
    """What is wrong with the first tensor that the model cannot take."""
    main = getattr(model, "main_input_name", "")
    examples = (
        unbatch(batch, len(next(iter(batch.values())))) if isinstance(batch, Mapping) else batch
    )
    for index, example in enumerate(examples):
        for name, tensor in (example if isinstance(example, Mapping) else {main: example}).items():
            wrong = (
                _wrong_ids(tensor, model.config)
                if name == "input_ids"
                else _wrong_precision(tensor, model)
            )
            if wrong:
                return f"Element {index} of the batch has {name} {wrong}"
    return None


def _wrong_precision(tensor: Any, model: Any) -> str | None:
    if tensor.is_floating_point() and tensor.dtype != model.dtype:
        return (
            f"of {tensor.dtype}, and the model computes in {model.dtype}: convert it before, with_preprocess_fn, "
            "by tensor.to(dtype)."
        )
    return None


def _wrong_ids(ids: Any, config: Any) -> str | None:
    if ids.is_floating_point() or ids.is_complex():
        return (
            f"of {ids.dtype}, and the ids of tokens are whole numbers: convert them, "
            "with_preprocess_fn(lambda ids: ids.long())."
        )
    if ids.ndim != 1:
        return (
            f"of shape {tuple(ids.shape)}, and one example is of shape (tokens,): take the row out "
            "of it, ids[0], where a tokenizer gave it with return_tensors='pt'."
        )
    size = getattr(config, "vocab_size", None)
    if size and ids.numel() and (int(ids.max()) >= size or int(ids.min()) < 0):
        return (
            f"from {int(ids.min())} to {int(ids.max())}, and the model knows those from 0 to {size - 1}: "
            "take the tokenizer it was trained with."
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest and len(ids) > longest:
        return (
            f"of {len(ids)} tokens, and the model takes {longest} at most: cut it off, "
            f"tokenizer(text, truncation=True, max_length={longest})."
        )
    return None
