"""Machine-learning inference as one step of an Apache Beam pipeline.

Handlers of a framework live in modules of their own, which import it: ``runinference.sklearn_inference``,
``runinference.pytorch_inference``.
"""

from runinference.base import (
    KeyedModelHandler,
    MaybeKeyedModelHandler,
    ModelHandler,
    PredictionResult,
    RunInference,
)

__all__ = [
    "KeyedModelHandler",
    "MaybeKeyedModelHandler",
    "ModelHandler",
    "PredictionResult",
    "RunInference",
]
