"""The names of ``apache_beam.ml.inference.base``."""

from runinference.dead_letters import RunInferenceDLQ
from runinference.errors import RateLimitExceeded
from runinference.handler import ModelHandler
from runinference.keyed import KeyedModelHandler, KeyModelMapping, MaybeKeyedModelHandler
from runinference.remote import RemoteModelHandler
from runinference.results import PredictionResult
from runinference.transform import RunInference
from runinference.updates import KeyModelPathMapping, ModelMetadata

__all__ = [
    "KeyModelMapping",
    "KeyModelPathMapping",
    "KeyedModelHandler",
    "MaybeKeyedModelHandler",
    "ModelHandler",
    "ModelMetadata",
    "PredictionResult",
    "RateLimitExceeded",
    "RemoteModelHandler",
    "RunInference",
    "RunInferenceDLQ",
]
