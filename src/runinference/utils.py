"""The names of ``apache_beam.ml.inference.utils``."""

from runinference.refresh import WatchFilePattern

__all__ = ["WatchFilePattern"]
