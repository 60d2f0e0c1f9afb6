"""The names of ``apache_beam.ml.inference.utils``."""

from runinference.transforms.watch_file_pattern import WatchFilePattern

__all__ = ["WatchFilePattern"]
