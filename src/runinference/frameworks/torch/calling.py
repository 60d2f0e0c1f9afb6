"""How a PyTorch model answers a batch: examples become tensors, and its output one result for each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from runinference.collate.padding import NoPadding, Padding, Unsplit
from runinference.collate.pytree import known_of
from runinference.collate.stack import reject_keyed_examples, stack_batch
from runinference.collate.unbatch import to_results
from runinference.errors import BatchShapeError, OptionError, suggest
from runinference.extras import need
from runinference.frameworks.torch.devices import stack_for, to_cpu, to_device
from runinference.results import PredictionResult

torch = need("torch", extra="torch")

_InferenceArgs = dict[str, Any] | None
Results = Callable[[Any, Any, "str | None"], Iterable[Any]]


def default_tensor_inference_fn(
    batch: Sequence[Any],
    model: Any,
    device: Any,
    inference_args: _InferenceArgs = None,
    model_id: str | None = None,
) -> Iterable[PredictionResult]:
    """Stacks tensors of one shape along a new first dimension, and calls the model with them.

    Raises:
        BatchShapeError: A tensor has another shape than the others.
        ResultMismatchError: The output does not have one entry for each tensor.
    """
    return infer(None, batch, model, device, inference_args, model_id)


def default_keyed_tensor_inference_fn(
    batch: Sequence[Mapping[str, Any]],
    model: Any,
    device: Any,
    inference_args: _InferenceArgs = None,
    model_id: str | None = None,
) -> Iterable[PredictionResult]:
    """Stacks the tensors of each key, and calls the model with the keys as keywords.

    Raises:
        BatchShapeError: A tensor has another shape than the others, or an example has other keys.
        ResultMismatchError: The output does not have one entry for each example.
    """
    return infer_keyed(None, batch, model, device, inference_args, model_id)


def make_tensor_model_fn(model_fn: str) -> Callable[..., Iterable[PredictionResult]]:
    """An ``inference_fn`` for tensors that calls the model's method ``model_fn``, such as ``"generate"``."""
    return functools.partial(infer, model_fn)


def make_keyed_tensor_model_fn(model_fn: str) -> Callable[..., Iterable[PredictionResult]]:
    """An ``inference_fn`` for dictionaries of tensors that calls the model's method ``model_fn``."""
    return functools.partial(infer_keyed, model_fn)


def infer(
    method: str | None,
    batch: Sequence[Any],
    model: Any,
    device: Any,
    inference_args: _InferenceArgs = None,
    model_id: str | None = None,
    padding: Padding | NoPadding = NoPadding(),
    results: Results = to_results,
) -> Iterable[PredictionResult]:
    """One result for each tensor, from one call of the model or of its method."""
    stack = functools.partial(_stack, stack_for(device))

    def call(examples: Sequence[Any]) -> Any:
        inputs = to_device(padding.join(examples, stack), device)
        masks = _move(padding.masks(examples), device)
        with torch.inference_mode():
            output = _method(model, method)(inputs, **masks, **(inference_args or {}))
            return to_cpu(output, device)

    return results(batch, padding.rows(batch, call, known_of(model, method)), model_id)


def infer_keyed(
    method: str | None,
    batch: Sequence[Mapping[str, Any]],
    model: Any,
    device: Any,
    inference_args: _InferenceArgs = None,
    model_id: str | None = None,
    padding: Padding | NoPadding = NoPadding(),
    results: Results = to_results,
) -> Iterable[PredictionResult]:
    """One result for each dictionary of tensors, from one call of the model or of its method."""
    stack = functools.partial(_stack, stack_for(device))

    def call(examples: Sequence[Mapping[str, Any]]) -> Any:
        inputs = _move(padding.join_keys(examples, stack), device)
        with torch.inference_mode():
            output = _method(model, method)(**inputs, **(inference_args or {}))
            return to_cpu(output, device)

    if not isinstance(batch, Mapping):
        _check_keys(batch)
    return results(batch, padding.rows(batch, call, known_of(model, method)), model_id)


def padded(inference_fn: Any, padding: Padding) -> Callable[..., Iterable[PredictionResult]]:
    """The same function of ours, with padding."""
    inference_fn, function = _as_ours(inference_fn)
    if function is infer and isinstance(padding.value, Mapping):
        raise OptionError(
            "The value of Padding must be a number here: these examples are tensors, which have no keys. "
            "Dictionaries of tensors are for PytorchModelHandlerKeyedTensor."
        )
    if function not in (infer, infer_keyed):
        raise OptionError(
            "padding has no effect on an inference_fn of your own, which gets the examples as they came. Leave "
            "padding out, or take make_tensor_model_fn or make_keyed_tensor_model_fn."
        )
    return functools.partial(inference_fn, padding=padding)


def unsplit(inference_fn: Any, results: Results) -> Callable[..., Iterable[PredictionResult]]:
    """The same function of ours, whose results ``results`` makes of the whole output; any other as it is."""
    inference_fn, function = _as_ours(inference_fn)
    if function not in (infer, infer_keyed):
        return inference_fn  # type: ignore[no-any-return]
    return functools.partial(inference_fn, padding=Unsplit(), results=results)


def padding_of(inference_fn: Any) -> Padding | None:
    """The padding that a function of ours was given."""
    return (getattr(inference_fn, "keywords", None) or {}).get("padding")


def refuse_padding(padding: Padding | None) -> None:
    """Raises where there is padding: the rows of one tensor have one length."""
    if padding is not None:
        raise OptionError(
            "whole_results=True is for arrays of rows, which have one length, and padding is for rows of several. "
            "Leave padding out and give padded arrays; or leave whole_results out, and give lists of rows."
        )


def _as_ours(inference_fn: Any) -> tuple[Any, Any]:
    """A function, and which of ours it calls, if it does."""
    inference_fn = _WITHOUT_METHOD.get(inference_fn, inference_fn)
    return inference_fn, getattr(inference_fn, "func", None)


_WITHOUT_METHOD = {
    default_tensor_inference_fn: functools.partial(infer, None),
    default_keyed_tensor_inference_fn: functools.partial(infer_keyed, None),
}


def needs_lengths(options: Mapping[str, Any]) -> bool:
    """Whether an option stands there that needs lengths, and none that gives them."""
    if options.get("batch_length_fn") is not None:
        return False
    return any(options.get(n) is not None for n in ("max_padded_size", "batch_bucket_boundaries"))


def _move(tensors: Mapping[str, Any], device: Any) -> dict[str, Any]:
    return {key: to_device(tensor, device) for key, tensor in tensors.items()}


def _stack(
    stack: Callable[[Any], Any],
    batch: Sequence[Any],
    what: str = "the batch",
    cure: Callable[[int], str] | None = None,
) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch
    for index, example in enumerate(batch):
        if not isinstance(example, torch.Tensor):
            reject_keyed_examples(batch)
            raise BatchShapeError(
                f"Element {index} of {what} is of type {type(example).__name__}, not a torch.Tensor. Convert it "
                "before, for example with_preprocess_fn(torch.as_tensor)."
            )
    return stack_batch(stack, batch, what, cure or _pad_them)


def _pad_them(dim: int) -> str:
    return f"pad them with padding=Padding({f'dim={dim}' if dim else ''})"


def _check_keys(batch: Sequence[Mapping[str, Any]]) -> None:
    keys = batch[0].keys()
    for index, example in enumerate(batch):
        if example.keys() != keys:
            raise BatchShapeError(
                f"Element {index} of the batch has the keys {sorted(example)}, and element 0 has {sorted(keys)}. "
                "Give all elements the same keys."
            )


def _method(model: Any, name: str | None) -> Callable[..., Any]:
    if name is None:
        return model  # type: ignore[no-any-return]
    if not hasattr(model, name):
        near = suggest(name, (n for n in dir(model) if not n.startswith("_")))
        raise AttributeError(f"The model, a {type(model).__name__}, has no method {name!r}.{near}")
    return getattr(model, name)  # type: ignore[no-any-return]
