"""The names of ``apache_beam.ml.inference.base``."""

from runinference.errors import RateLimitExceeded
from runinference.handlers.keyed import KeyedModelHandler, MaybeKeyedModelHandler
from runinference.handlers.model_handler import (
    ExampleT,
    ModelHandler,
    ModelT,
    PostProcessT,
    PredictionT,
    PreProcessT,
)
from runinference.handlers.model_per_key import KeyModelMapping, KeyT
from runinference.handlers.model_update import KeyModelPathMapping, ModelMetadata
from runinference.remote.handler import RemoteModelHandler
from runinference.results import PredictionResult
from runinference.transforms.dead_letters import RunInferenceDLQ
from runinference.transforms.run_inference import RunInference

__all__ = [
    "ExampleT",
    "KeyModelMapping",
    "KeyModelPathMapping",
    "KeyT",
    "KeyedModelHandler",
    "MaybeKeyedModelHandler",
    "ModelHandler",
    "ModelMetadata",
    "ModelT",
    "PostProcessT",
    "PreProcessT",
    "PredictionResult",
    "PredictionT",
    "RateLimitExceeded",
    "RemoteModelHandler",
    "RunInference",
    "RunInferenceDLQ",
]
