"""Handlers for Hugging Face pipelines, and for models on tensors, texts and sentences to embed."""

from runinference.frameworks.huggingface.embedding import HuggingFaceModelHandlerEmbedding
from runinference.frameworks.huggingface.pipeline import (
    HuggingFacePipelineModelHandler,
    PipelineInferenceFn,
    default_pipeline_inference_fn,
)
from runinference.frameworks.huggingface.tasks import PipelineTask
from runinference.frameworks.huggingface.tensor import (
    HuggingFaceModelHandlerKeyedTensor,
    HuggingFaceModelHandlerTensor,
)
from runinference.frameworks.huggingface.text import HuggingFaceModelHandlerText
from runinference.frameworks.torch.calling import KeyedTensorInferenceFn, TensorInferenceFn

__all__ = [
    "HuggingFaceModelHandlerEmbedding",
    "HuggingFaceModelHandlerKeyedTensor",
    "HuggingFaceModelHandlerTensor",
    "HuggingFaceModelHandlerText",
    "HuggingFacePipelineModelHandler",
    "KeyedTensorInferenceFn",
    "PipelineInferenceFn",
    "PipelineTask",
    "TensorInferenceFn",
    "default_pipeline_inference_fn",
]
