"""Detect drift of inputs and predictions: whether their distributions differ from those of a reference."""

from runinference.monitoring.drift_monitor import DriftMonitor
from runinference.monitoring.reference import FeatureSummary, ReferenceSummary

__all__ = ["DriftMonitor", "FeatureSummary", "ReferenceSummary"]
