"""Handlers for Hugging Face pipelines, and for models on tensors, texts and sentences to embed."""

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

__all__ = [
    "HuggingFaceModelHandlerEmbedding",
    "HuggingFaceModelHandlerKeyedTensor",
    "HuggingFaceModelHandlerTensor",
    "HuggingFaceModelHandlerText",
    "HuggingFacePipelineModelHandler",
    "PipelineTask",
    "default_pipeline_inference_fn",
]
