"""Run machine-learning models inside Apache Beam pipelines.

Each framework's handlers are in a separate module, which imports the framework:
``runinference.sklearn_inference``, ``runinference.pytorch_inference``.
"""

from runinference.base import *  # noqa: F403
from runinference.base import __all__ as _base
from runinference.collate.padding import Padding
from runinference.transforms.bigquery_schema import bigquery_schema
from runinference.transforms.convert_rows import ResultsToRows, RowsToResults
from runinference.transforms.watch_file_pattern import WatchFilePattern

__all__ = [
    "Padding",
    "ResultsToRows",
    "RowsToResults",
    "WatchFilePattern",
    "bigquery_schema",
    *_base,
]
