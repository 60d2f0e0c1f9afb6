"""The configuration and the elements of one random pipeline."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.transforms import window

from pipelines.rows import UNLIMITED, Row, RowHandler
from runinference import (
    KeyedModelHandler,
    KeyModelMapping,
    MaybeKeyedModelHandler,
    RunInference,
)

KEYS = ("a", "b", "c", "d")
#: The model of each key in a pipeline with per-key models. The key "d" has no model.
MODELS = {"a": "first", "b": "first", "c": "other"}
WINDOW_FNS = {
    "global": window.GlobalWindows(),
    "fixed": window.FixedWindows(5),
    "sliding": window.SlidingWindows(6, 2),
    "sessions": window.Sessions(3),
}
#: Preprocessing and postprocessing function number i fails for rows whose number is a multiple of these plus i.
PREPROCESS_DIVISOR = 7
POSTPROCESS_DIVISOR = 11


@dataclass(frozen=True)
class TimestampedElement:
    """An element, its event time in seconds, and the side inputs that arrive with it, if any.

    Attributes:
        value: The element.
        timestamp: Its event time.
        model_update: The path of a new model, or the paths of those of both mappings.
        suffix: The argument that the model adds to its name.
    """

    value: Any
    timestamp: int
    model_update: Any = None
    suffix: str = ""

    def side_inputs(self, case: Case) -> dict[str, Any]:
        """Return the side inputs of the element, as the DoFn gets them."""
        found: dict[str, Any] = {}
        if case.model_updates:
            found["update"] = self.model_update
        if case.arguments:
            found["arguments"] = {"suffix": np.array(self.suffix)}
        return found


@dataclass(frozen=True)
class Case:
    """One pipeline.

    Attributes:
        threads: The elements of each bundle of each thread.
        keys: `none`, `keyed`, `maybe` or `per key`.
        batching: The handler's batching options.
        window_fn: A key of `WINDOW_FNS`.
        output_format: The structure of a batch's predictions, one of `OUTPUT_FORMATS`.
        max_rows: The size of the largest batch that fits into memory.
        dead_letters: Whether failed elements become dead letters.
        prebatched: Whether elements are lists of examples.
        max_models: How many models a worker may hold, with per-key models.
        model_updates: Whether elements arrive with model updates.
        arguments: Whether elements arrive with inference arguments.
        in_place: Whether calls that fail modify their rows first.
        joins_threads: Whether threads may share a call.
        unsplit: Whether elements are lists of rows with one unsplit result.
        overlaps: Whether the calls of batches overlap, if the batch size is fixed.
        n_preprocess: The number of preprocessing functions.
        n_postprocess: The number of postprocessing functions.
    """

    threads: tuple[tuple[tuple[TimestampedElement, ...], ...], ...]
    keys: str = "none"
    batching: dict[str, Any] = field(default_factory=dict)
    window_fn: str = "global"
    output_format: str = "list"
    max_rows: int = UNLIMITED
    dead_letters: bool = True
    prebatched: bool = False
    max_models: int | None = None
    model_updates: bool = False
    arguments: bool = False
    in_place: bool = False
    joins_threads: bool = False
    unsplit: bool = False
    overlaps: bool = False
    n_preprocess: int = 0
    n_postprocess: int = 0

    def handler(self) -> Any:
        """Return the handler with its keys and functions."""
        handler = self._base_handler()
        if self.prebatched or self.unsplit:
            handler = handler.with_no_batching(whole_results=self.unsplit)
        for number in range(self.n_preprocess):
            handler = handler.with_preprocess_fn(_FailOnMultiples(PREPROCESS_DIVISOR + number))
        for number in range(self.n_postprocess):
            handler = handler.with_postprocess_fn(_FailOnMultiples(POSTPROCESS_DIVISOR + number))
        return handler

    def _base_handler(self) -> Any:
        if self.keys == "none":
            return self.row_handler("m")
        if self.keys == "keyed":
            return KeyedModelHandler(self.row_handler("m"))
        if self.keys == "maybe":
            return MaybeKeyedModelHandler(self.row_handler("m"))
        mappings = [
            KeyModelMapping([k for k in MODELS if MODELS[k] == name], self.row_handler(name))
            for name in ("first", "other")
        ]
        return KeyedModelHandler(mappings, max_models_per_worker_hint=self.max_models)

    def row_handler(self, name: str) -> RowHandler:
        """Return the handler without keys and functions."""
        handler = RowHandler(name, self.output_format, self.max_rows, **self.batching)
        handler.in_place, handler.joins_threads = self.in_place, self.joins_threads
        return handler

    def transform(self) -> RunInference:
        """Return the transform. Its side inputs are placeholders."""
        transform = RunInference(
            self.handler(),
            model_metadata_pcoll=_placeholder() if self.model_updates else None,
            inference_args=beam.pvalue.AsDict(_placeholder()) if self.arguments else None,
        )
        return transform.with_exception_handling() if self.dead_letters else transform

    @property
    def elements(self) -> list[TimestampedElement]:
        """The elements of all threads and bundles."""
        return [element for bundles in self.threads for bundle in bundles for element in bundle]

    def assign_windows(self, element: TimestampedElement) -> Any:
        """Return the windows of an element."""
        context = window.WindowFn.AssignContext(element.timestamp, element.value)
        return WINDOW_FNS[self.window_fn].assign(context)

    def window_end(self, element_window: Any) -> int | None:
        """Return the end of a window in microseconds, or `None` for sessions, which only a runner merges."""
        return None if self.window_fn == "sessions" else element_window.end.micros


@functools.cache
def _placeholder() -> beam.PCollection:
    return beam.Pipeline() | beam.Impulse()


class _FailOnMultiples:
    """Raise an error for rows whose number is a multiple of the divisor, and for their results."""

    def __init__(self, divisor: int) -> None:
        self.divisor = divisor

    def __call__(self, element: Any) -> Any:
        if row_number(element) % self.divisor == 0:
            raise ArithmeticError(f"a multiple of {self.divisor}")
        return element


def row_number(element: Any) -> int:
    """Return the number of a row, or of the row that belongs to a result, with or without a key."""
    if isinstance(element, Row):
        return element.n
    if isinstance(element, dict):
        return int(element["n"])
    last = element[1]
    return row_number(last) if isinstance(last, (Row, dict, tuple)) else int(last)
