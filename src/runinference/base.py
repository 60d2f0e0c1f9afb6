"""The names of ``apache_beam.ml.inference.base``, and additional ones."""

from runinference.errors import RateLimitExceeded
from runinference.handlers.key_mapping import KeyModelMapping, KeyT
from runinference.handlers.keyed import KeyedModelHandler, MaybeKeyedModelHandler
from runinference.handlers.model_handler import (
    ExampleT,
    ModelHandler,
    ModelHandlerLike,
    ModelT,
    PostProcessT,
    PredictionT,
    PreProcessT,
)
from runinference.handlers.model_update import KeyModelPathMapping, ModelMetadata
from runinference.handlers.options import HandlerOptions
from runinference.remote.handler import RemoteModelHandler
from runinference.remote.retry import Backoff, retry_after, worth_retrying
from runinference.results import PredictionResult
from runinference.transforms.dead_letters import RunInferenceDLQ
from runinference.transforms.run_inference import RunInference

try:
    from apache_beam.io.components.rate_limiter import RateLimiter
except ImportError:  # needs packages that Beam doesn't install by default
    from runinference.remote.request_pool import RateLimiter

__all__ = [
    "Backoff",
    "ExampleT",
    "HandlerOptions",
    "KeyModelMapping",
    "KeyModelPathMapping",
    "KeyT",
    "KeyedModelHandler",
    "MaybeKeyedModelHandler",
    "ModelHandler",
    "ModelHandlerLike",
    "ModelMetadata",
    "ModelT",
    "PostProcessT",
    "PreProcessT",
    "PredictionResult",
    "PredictionT",
    "RateLimitExceeded",
    "RateLimiter",
    "RemoteModelHandler",
    "RunInference",
    "RunInferenceDLQ",
    "retry_after",
    "worth_retrying",
]
