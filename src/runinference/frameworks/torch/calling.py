"""Call PyTorch models on batches: stack or pad the examples, call, and split the output."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from runinference.collate.batch_axis import BatchAxis
from runinference.collate.padding import NoPadding, Padding, Unsplit, get_unpad_cache
from runinference.collate.stack import reject_keyed_examples, stack_batch
from runinference.collate.unbatch import ListOutput, to_results
from runinference.errors import (
    BatchShapeError,
    BatchTypeError,
    OptionError,
    RunInferenceError,
    is_out_of_memory,
    suggest,
)
from runinference.extras import need
from runinference.frameworks.torch.batch_tensors import BatchTensors
from runinference.frameworks.torch.call_errors import explain_call_errors
from runinference.frameworks.torch.devices import parse_device
from runinference.frameworks.torch.loading import first_sentence
from runinference.frameworks.torch.transfers import Transfer, create_transfer
from runinference.handlers.compute_turn import compute_turn
from runinference.handlers.options import HandlerOptions
from runinference.results import PredictionResult

if TYPE_CHECKING:
    import torch
else:
    torch = need("torch", extra="torch")

_get_dtype = operator.attrgetter("dtype")
_InferenceArgs = dict[str, Any] | None
InferenceFn = Callable[..., Iterable[PredictionResult]]
TensorInferenceFn = Callable[
    [Sequence[Any], Any, Any, "dict[str, Any] | None", "str | None"], Iterable[PredictionResult]
]
"""An ``inference_fn`` for tensors.

It maps ``(batch, model, device, inference_args, model_id)`` to one result per tensor.
"""
KeyedTensorInferenceFn = Callable[
    [Sequence["dict[str, Any]"], Any, Any, "dict[str, Any] | None", "str | None"],
    Iterable[PredictionResult],
]
"""An ``inference_fn`` for dictionaries of tensors.

It maps ``(batch, model, device, inference_args, model_id)`` to one result per dictionary.
"""
MakeResults = Callable[[Any, Any, "str | None"], Iterable[Any]]


def default_tensor_inference_fn(
    batch: Sequence[torch.Tensor],
    model: torch.nn.Module,
    device: str | torch.device,
    inference_args: dict[str, Any] | None = None,
    model_id: str | None = None,
) -> Iterable[PredictionResult]:
    """Stack the tensors of a batch along a new first dimension, and call the model once.

    Args:
        batch: Tensors of the same shape.
        model: The model.
        device: The device of the model, which the batch is moved to.
        inference_args: Keyword arguments for the model call, or None.
        model_id: The path of the model, for the results.

    Returns:
        One result per tensor, in order. Inferences are on the CPU.

    Raises:
        BatchShapeError: The tensors have different shapes.
        ResultMismatchError: The output does not have one entry for each tensor.
    """
    return _TENSORS(batch, model, device, inference_args, model_id)


def default_keyed_tensor_inference_fn(
    batch: Sequence[Mapping[str, torch.Tensor]],
    model: torch.nn.Module,
    device: str | torch.device,
    inference_args: dict[str, Any] | None = None,
    model_id: str | None = None,
) -> Iterable[PredictionResult]:
    """Stack the tensors of each key along a new first dimension, and call the model once.

    Args:
        batch: Dictionaries with the same keys, which are the names of the model's parameters. The tensors of each
            key have the same shape.
        model: The model.
        device: The device of the model, which the batch is moved to.
        inference_args: Additional keyword arguments for the model call, or None.
        model_id: The path of the model, for the results.

    Returns:
        One result per example, in order. Inferences are on the CPU.

    Raises:
        BatchShapeError: The tensors of a key have different shapes, or the examples have different keys.
        ResultMismatchError: The output does not have one entry for each example.
    """
    return _KEYED_TENSORS(batch, model, device, inference_args, model_id)


def make_tensor_model_fn(model_fn: str) -> TensorInferenceFn:
    """Return an ``inference_fn`` for tensors that calls a method of the model.

    Args:
        model_fn: The name of the method, such as ``"generate"``.
    """
    return StackedInferenceFn(method=model_fn)


def make_keyed_tensor_model_fn(model_fn: str) -> KeyedTensorInferenceFn:
    """Return an ``inference_fn`` for dictionaries of tensors that calls a method of the model.

    Args:
        model_fn: The name of the method, such as ``"generate"``.
    """
    return StackedInferenceFn(keyed=True, method=model_fn)


@dataclass(frozen=True, eq=False)
class StackedInferenceFn:
    """An ``inference_fn`` that stacks tensors, or dictionaries of them if ``keyed``, and calls the model once."""

    keyed: bool = False
    method: str | None = None
    padding: Padding | NoPadding = field(default_factory=NoPadding)
    make_results: MakeResults = to_results
    list_output: ListOutput | None = None

    def __call__(
        self,
        batch: Sequence[Any],
        model: Any,
        device: Any,
        inference_args: _InferenceArgs = None,
        model_id: str | None = None,
    ) -> Iterable[PredictionResult]:
        is_split = not isinstance(self.padding, Unsplit)

        def call(examples: Sequence[Any]) -> Any:
            transfer = create_transfer(parse_device(device))
            tensors = self._join(examples, transfer)
            function = _get_method(model, self.method)
            args = inference_args or {}
            with torch.inference_mode():
                with compute_turn(), explain_call_errors(model, function, tensors, args):
                    transfer.wait_for_inputs()
                    output = function(*tensors.args, **tensors.kwargs, **args)
                    output = transfer.finish_call(output)
                output = transfer.to_cpu(output)
            if not is_split:
                return output

            def call_again(size: int) -> Any:
                # Calling only forward() does not compile the model for another size.
                again = partial(getattr(function, "forward", function), **args)
                with torch.inference_mode():
                    return tensors.call_again(again, size)

            key = self.method, tuple(args)
            axis = BatchAxis(model, key, self.list_output, call_again)
            return axis.unbatch(output, len(examples))

        if self.keyed and not isinstance(batch, Mapping):
            _check_keys(batch)
        rows = self.padding.rows(batch, call, get_unpad_cache(model, self.method))
        return self.make_results(batch, rows, model_id)

    def _join(self, examples: Sequence[Any], transfer: Transfer) -> BatchTensors:
        stack = partial(_stack, transfer.stack)
        if self.keyed:
            args, kwargs = [], self.padding.join_keys(examples, stack)
        else:
            args, kwargs = [self.padding.join(examples, stack)], self.padding.masks(examples)
        moved = {name: transfer.to_device(tensor) for name, tensor in kwargs.items()}
        return BatchTensors([*map(transfer.to_device, args)], moved)


_TENSORS = StackedInferenceFn()
_KEYED_TENSORS = StackedInferenceFn(keyed=True)


def with_padding(inference_fn: InferenceFn, padding: Padding) -> InferenceFn:
    """Return an inference function of this module with padding; raise `OptionError` for any other function."""
    stacked = _as_stacked(inference_fn)
    if stacked is None:
        raise OptionError(
            "padding has no effect on your own inference_fn, which gets the unpadded examples. To fix this, leave "
            "padding out, or use make_tensor_model_fn or make_keyed_tensor_model_fn."
        )
    if not stacked.keyed and isinstance(padding.value, Mapping):
        raise OptionError(
            "The value of Padding must be a number here: these examples are tensors, which have no keys. For "
            "dictionaries of tensors, use PytorchModelHandlerKeyedTensor."
        )
    return replace(stacked, padding=padding)


def without_splitting(inference_fn: InferenceFn, make_results: MakeResults) -> InferenceFn:
    """Return a function of this module without splitting of its output, and any other function unchanged."""
    stacked = _as_stacked(inference_fn)
    if stacked is None:
        return inference_fn
    return replace(stacked, padding=Unsplit(), make_results=make_results)


def check_padding(padding: Any) -> None:
    """Raise `OptionError` unless padding is a `Padding` or None."""
    if not isinstance(padding, (Padding, type(None))):
        raise OptionError(
            f"padding must be a Padding, such as Padding(value=0), but is {padding!r}."
        )


def with_list_output(inference_fn: InferenceFn, list_output: ListOutput | None) -> InferenceFn:
    """Return a function of this module that reads lists as declared, and any other function unchanged."""
    stacked = _as_stacked(inference_fn)
    if stacked is None or list_output is None:
        return inference_fn
    return replace(stacked, list_output=list_output)


def check_no_padding(padding: Padding | None) -> None:
    """Raise `OptionError` if there is padding, which doesn't apply to unsplit results."""
    if padding is not None:
        raise OptionError(
            "whole_results=True takes arrays whose rows have one length, so it does not support padding. To fix "
            "this, leave padding out and pass padded arrays, or leave whole_results out and pass lists of rows."
        )


def with_length_fn(
    options: HandlerOptions, length_fn: Callable[[Any], int] | None
) -> HandlerOptions:
    """Return options with ``batch_length_fn`` set, if another option needs it and it is not given."""
    given = {name for name, value in options.items() if value is not None}
    if "batch_length_fn" in given or not given & {"max_padded_size", "batch_bucket_boundaries"}:
        return options
    return {**options, "batch_length_fn": length_fn}


def keeps_examples(inference_fn: InferenceFn | None) -> bool:
    """Return whether an inference function stacks the examples of a list first, and so never modifies them."""
    return inference_fn is not None and _as_stacked(inference_fn) is not None


def _as_stacked(inference_fn: InferenceFn) -> StackedInferenceFn | None:
    if inference_fn is default_tensor_inference_fn:
        return _TENSORS
    if inference_fn is default_keyed_tensor_inference_fn:
        return _KEYED_TENSORS
    return inference_fn if isinstance(inference_fn, StackedInferenceFn) else None


def _stack(
    stack: Callable[[Any], Any],
    batch: Sequence[Any],
    what: str = "the batch",
    hint: Callable[[int], str] | None = None,
) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch
    for index, example in enumerate(batch):
        if not isinstance(example, torch.Tensor):
            reject_keyed_examples(batch)
            raise BatchTypeError(
                f"Element {index} of {what} is of type {type(example).__name__}, not a torch.Tensor. To fix this, "
                "convert it, for example with_preprocess_fn(torch.as_tensor).",
                index=index,
            )
    if len(set(map(_get_dtype, batch))) > 1:
        batch = _unify_dtypes(batch, what)
    try:
        return stack_batch(stack, batch, what, hint or _suggest_padding)
    except RuntimeError as error:
        if isinstance(error, RunInferenceError) or is_out_of_memory(error):
            raise
        raise BatchTypeError(
            f"The tensors of {what} cannot be stacked ({first_sentence(error)}). To fix this, convert them to "
            "dense tensors on the CPU with with_preprocess_fn, for example lambda x: x.to_dense()."
        ) from error


def _unify_dtypes(batch: Sequence[Any], what: str) -> Sequence[Any]:
    """Convert empty tensors, which have no values, to the dtype of the others."""
    filled = {index: example.dtype for index, example in enumerate(batch) if example.numel()}
    index, dtype = next(iter(filled.items()), (0, batch[0].dtype))
    for other, found in filled.items():
        if found != dtype:
            raise BatchShapeError(
                f"Element {other} of {what} has the dtype {found}, while element {index} has {dtype}. Elements "
                "of one batch need one dtype. To fix this, convert them with with_preprocess_fn, for example "
                f"lambda x: x.to({dtype}).",
                index=other,
            )
    return [example if example.dtype == dtype else example.to(dtype) for example in batch]


def _suggest_padding(dim: int) -> str:
    return f"pad them with padding=Padding({f'dim={dim}' if dim else ''})"


def _check_keys(batch: Sequence[Mapping[str, Any]]) -> None:
    for index, example in enumerate(batch):
        if not isinstance(example, Mapping):
            reject_keyed_examples(batch)
            raise BatchTypeError(
                f"Element {index} of the batch is of type {type(example).__name__}, not a dictionary of tensors. "
                "To fix this, convert it with with_preprocess_fn, or use the handler for tensors.",
                index=index,
            )
    keys = batch[0].keys()
    for index, example in enumerate(batch):
        if example.keys() != keys:
            raise BatchShapeError(
                f"Element {index} of the batch has the keys {sorted(example)}, but element 0 has {sorted(keys)}. "
                "To fix this, give all elements the same keys.",
                index=index,
            )


def _get_method(model: Any, name: str | None) -> Callable[..., Any]:
    if name is None:
        return model  # type: ignore[no-any-return]
    if not hasattr(model, name):
        names = (n for n in dir(model) if not n.startswith("_"))
        raise AttributeError(
            f"The model, a {type(model).__name__}, has no method {name!r}.{suggest(name, names)}"
        )
    return getattr(model, name)  # type: ignore[no-any-return]
