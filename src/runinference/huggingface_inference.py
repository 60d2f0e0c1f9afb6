"""Handlers for Hugging Face pipelines, and for models on tensors, texts and sentences to embed."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from runinference.frameworks.huggingface.embedding import HuggingFaceModelHandlerEmbedding
from runinference.frameworks.huggingface.pipeline import (
    HuggingFacePipelineModelHandler,
    default_pipeline_inference_fn,
)
from runinference.frameworks.huggingface.tasks import PipelineTask
from runinference.frameworks.huggingface.tensor import (
    HuggingFaceModelHandlerKeyedTensor,
    HuggingFaceModelHandlerTensor,
)
from runinference.frameworks.huggingface.text import HuggingFaceModelHandlerText
from runinference.results import PredictionResult

#: Types of ``inference_fn``: ``(batch, model, device, inference_args, model_id)`` to the results.
TensorInferenceFn = Callable[
    [Sequence[Any], Any, Any, "dict[str, Any] | None", "str | None"], Iterable[PredictionResult]
]
KeyedTensorInferenceFn = Callable[
    [Sequence["dict[str, Any]"], Any, Any, "dict[str, Any] | None", "str | None"],
    Iterable[PredictionResult],
]
#: The type of a pipeline's ``inference_fn``: ``(batch, pipeline, inference_args)`` to one result per element.
PipelineInferenceFn = Callable[[Sequence[Any], Any, "dict[str, Any] | None"], Iterable[Any]]

__all__ = [
    "HuggingFaceModelHandlerEmbedding",
    "HuggingFaceModelHandlerKeyedTensor",
    "HuggingFaceModelHandlerTensor",
    "HuggingFaceModelHandlerText",
    "HuggingFacePipelineModelHandler",
    "PipelineTask",
    "default_pipeline_inference_fn",
]
