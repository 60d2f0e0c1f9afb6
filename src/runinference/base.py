"""The names of ``apache_beam.ml.inference.base``."""

from runinference.errors import RateLimitExceeded
from runinference.handler import ModelHandler
from runinference.keyed import KeyedModelHandler, MaybeKeyedModelHandler
from runinference.results import PredictionResult
from runinference.transform import RunInference

__all__ = [
    "KeyedModelHandler",
    "MaybeKeyedModelHandler",
    "ModelHandler",
    "PredictionResult",
    "RateLimitExceeded",
    "RunInference",
]
