"""The names of ``apache_beam.ml.inference.base``."""

from runinference.dead_letters import RunInferenceDLQ
from runinference.errors import RateLimitExceeded
from runinference.handler import (
    ExampleT,
    ModelHandler,
    ModelT,
    PostProcessT,
    PredictionT,
    PreProcessT,
)
from runinference.keyed import KeyedModelHandler, MaybeKeyedModelHandler
from runinference.mapped import KeyModelMapping, KeyT
from runinference.remote import RemoteModelHandler
from runinference.results import PredictionResult
from runinference.transform import RunInference
from runinference.updates import KeyModelPathMapping, ModelMetadata

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
