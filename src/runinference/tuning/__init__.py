"""Measure batch sizes and other options of a handler, and recommend the fastest ones."""

from runinference.tuning.result import Measurement, TuningResult
from runinference.tuning.tuner import tune

__all__ = ["Measurement", "TuningResult", "tune"]
