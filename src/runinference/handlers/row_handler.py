"""A handler that takes rows, and returns them with the predictions of another handler as columns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from apache_beam.pvalue import Row

from runinference.batching.element_size import batch_size_in_bytes
from runinference.collate.batch_axis import BatchAxis, repeat_first
from runinference.collate.chunks import Chunk, collision_error, is_chunk_type, to_chunk
from runinference.collate.columns import FEATURE_TYPES, read_columns
from runinference.collate.records import read_rows
from runinference.collate.row_features import Features, RowFeatures
from runinference.collate.row_inputs import ExampleInput, RowInput
from runinference.collate.row_outputs import OutputColumn, to_columns, to_python
from runinference.collate.unbatch import SplitRows, unbatch, unbatch_results
from runinference.collate.unsplit import returns_unsplit_results
from runinference.errors import ElementError, OptionError, PartialResult
from runinference.handlers.cached_batch import CacheForm
from runinference.handlers.cached_handler import CachedModelHandler
from runinference.handlers.call import OnPart, call_model, run_parts
from runinference.handlers.delegating import DelegatingHandler
from runinference.handlers.keyed import KeyedModelHandler, MaybeKeyedModelHandler
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.model_signature import ModelSignature, read_signature, resolve_columns
from runinference.handlers.prediction_columns import resolve_outputs
from runinference.handlers.row_options import RowOptions
from runinference.handlers.tunable import Tunable

_Row = Mapping[str, Any]
_MAX_MEASURED_ROWS = 256
_NUMPY_TYPES = {bool: "bool", int: "int64", float: "float64", str: "str", bytes: "bytes"}


def with_rows(handler: Any, options: RowOptions) -> Any:
    """Return a handler that takes rows. A handler with keys takes ``(key, row)``.

    Raises:
        OptionError: The columns don't fit the model, or the handler returns unsplit results.
    """
    if isinstance(handler, (KeyedModelHandler, MaybeKeyedModelHandler, CachedModelHandler)):
        return handler.map_inner(partial(with_rows, options=options))
    return RowModelHandler(handler, options, read_signature(handler))


ModelHandler._row_wrapper = with_rows


def map_row_handlers(handler: Any, function: Callable[[RowModelHandler], Any]) -> Any:
    """Return a handler with ``function(handler)`` instead of each handler of rows in it."""
    if isinstance(handler, RowModelHandler):
        return function(handler)
    if isinstance(handler, (KeyedModelHandler, MaybeKeyedModelHandler, CachedModelHandler)):
        return handler.map_inner(partial(map_row_handlers, function=function))
    return handler


def takes_rows(handler: Any) -> bool:
    """Return whether the elements of a handler are rows without keys."""
    inner = handler.inner if isinstance(handler, CachedModelHandler) else handler
    return isinstance(inner, RowModelHandler)


class RowModelHandler(CacheForm, DelegatingHandler):
    """Collect the columns of rows for a handler, call it once per batch, and add its predictions to the rows.

    A chunk (a DataFrame or an Arrow table) is one element, whose rows are one batch. The result is a chunk, too.

    Attributes:
        columns: The names of the feature columns.
        output: The columns of predictions.
        keep: The names of the columns that results have, too; None for all columns.
        optional: The names of the feature columns that rows may lack.
        feature_types: The types of the model's features by the names of their columns, if they are known.

    Args:
        handler: The handler of the model.
        options: The columns.
        signature: What the model declares about its inputs and its output.
    """

    def __init__(self, handler: Any, options: RowOptions, signature: ModelSignature) -> None:
        if returns_unsplit_results(handler):
            raise OptionError(
                "whole_results=True has no effect on rows. To fix this, leave with_no_batching out: an element "
                "that is a DataFrame or an Arrow table gets one result, a table with all of its rows."
            )
        super().__init__(handler)
        self._skips_batching = bool(handler.should_skip_batching())
        self._preprocess_fns = handler.get_preprocess_fns()
        self._postprocess_fns = handler.get_postprocess_fns()
        self.columns = resolve_columns(
            options.columns, signature, f"The model of {type(handler).__name__}"
        )
        self.output, self._class_columns = resolve_outputs(handler, options, signature)
        self.keep = options.keep
        features = signature.features or {}
        by_column = {name: signature.normalize_name(name) for name in self.columns}
        self.feature_types = {
            name: features[feature] for name, feature in by_column.items() if feature in features
        }
        types = [*signature.types] * (len(self.columns) if len(signature.types) == 1 else 1)
        if signature.features is None and len(types) == len(self.columns):
            self.feature_types = dict(zip(self.columns, types, strict=True))
        self.optional = frozenset(signature.optional if options.columns is None else ())
        self._types: Mapping[str, Sequence[type]] = {
            name: FEATURE_TYPES[kind]
            for name, kind in self.feature_types.items()
            if kind in FEATURE_TYPES
        }
        self._fields: tuple[str, ...] | None = None

    _without_effect = frozenset({"_fields", "_types", "feature_types", "keep"})

    def get_input(self, element: Any) -> Any:
        if is_chunk_type(type(element)):
            raise ElementError("A table has no single result.")
        [row] = read_rows([element])
        return {
            name: row[name] for name in self.columns if name in row or name not in self.optional
        }

    def get_output(self, element: Any, result: Any) -> Any:
        return tuple(getattr(result, column.name) for column in self.output)

    def make_result(self, element: Any, output: Any) -> Any:
        [kept] = self._keep_columns(read_rows([element]))
        return Row(**kept, **dict(zip([c.name for c in self.output], output, strict=True)))

    def with_types(
        self, fields: Sequence[str], types: Mapping[str, Sequence[type]]
    ) -> RowModelHandler:
        """Return a copy for rows of a schema.

        Args:
            fields: The names of all columns.
            types: The types of values by name, for columns whose values are checked.
        """
        return self._replace(
            _fields=tuple(fields),
            _types={**self._types, **{name: types[name] for name in self.columns if name in types}},
        )

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[Any]:
        """Return a row with predictions for each row, and a chunk for each chunk.

        Args:
            batch: Rows or chunks.
            model: The object that ``load_model`` returned.
            inference_args: Keyword arguments for the model call, or None.

        Raises:
            ElementError: A row lacks a column, or has a value of another type.
            ResultMismatchError: The model didn't return one prediction per row, or returned another type.
        """
        _check_list(batch)
        if not any(map(is_chunk_type, set(map(type, batch)))):
            if not batch:
                return SplitRows()
            return SplitRows(self._predict_rows(batch, model, inference_args))
        return SplitRows(
            self._predict_chunk(chunk, index, model, inference_args)
            if (chunk := to_chunk(element)) is not None
            else self._predict_rows([element], model, inference_args)[0]
            for index, element in enumerate(batch)
        )

    def run_in_parts(
        self,
        batch: Any,
        model: Any,
        inference_args: dict[str, Any] | None,
        on_part: OnPart | None = None,
    ) -> list[PartialResult]:
        _check_list(batch)
        if any(map(is_chunk_type, set(map(type, batch)))):
            parts = []
            for index, element in enumerate(batch):
                parts.append(self._run_part(element, model, inference_args))
                if on_part is not None:
                    on_part(index, parts[-1])
            return parts
        rows = read_rows(batch)
        kept = self._keep_columns(rows)
        examples = self._collate(self._read_features(rows), model)

        def finish(start: int, part: PartialResult) -> PartialResult:
            return self._finish(part, kept[start : start + part.size])

        return run_parts(self._unkeyed, examples, model, inference_args, on_part, finish)

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Return the size of a batch in bytes. If there are many rows, it is estimated from some of them."""
        step = -(-len(batch) // _MAX_MEASURED_ROWS)
        sample = batch[::step]
        return batch_size_in_bytes(sample) * len(batch) // max(1, len(sample))

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        options: Mapping[str, Any] = self._unkeyed.batch_elements_kwargs()
        length_fn = (
            self._unkeyed.default_length_fn() if isinstance(self._unkeyed, Tunable) else None
        )
        if length_fn is None or options.get("length_fn") != length_fn:  # a user's function of a row
            return options
        row_input = self._row_input_of_model
        if not isinstance(row_input, ExampleInput):
            row_input = ExampleInput()
        return {**options, "length_fn": partial(_measure_row, length_fn, row_input, self.columns)}

    def may_modify_examples(self) -> bool:
        return not self._row_input_of_model.is_table and super().may_modify_examples()

    @property
    def _row_input_of_model(self) -> RowInput:
        row_input: RowInput = getattr(self._unkeyed, "_row_input", None) or ExampleInput()
        return row_input

    def _predict_rows(self, batch: Sequence[Any], model: Any, args: Any) -> list[Row]:
        rows = read_rows(batch)
        kept = self._keep_columns(rows)
        output = self._call(self._read_features(rows), model, args)
        return self._make_rows(kept, output)

    def _read_features(self, rows: Sequence[_Row]) -> RowFeatures:
        found = {name for row in rows for name in row} if self.optional else ()
        names = self._select_columns(found)
        return RowFeatures(rows, names, self._types, self.optional)

    def _select_types(self, names: Sequence[str]) -> Mapping[str, Sequence[type]]:
        return {name: self._types[name] for name in names if name in self._types}

    def _select_columns(self, found: Collection[Any]) -> Sequence[str]:
        """Return the feature columns without the optional ones that no row has."""
        names = [name for name in self.columns if name in found or name not in self.optional]
        return names or self.columns

    def _predict_chunk(self, chunk: Chunk, index: int, model: Any, args: Any) -> Any:
        try:
            names = self._select_columns(chunk.names())
            features = chunk.features(names, self._select_types(names))
            chunk.check_output(self.keep, [column.name for column in self.output])
            if not len(features):
                return chunk.with_columns(
                    self.keep, {each.name: _make_empty(each) for each in self.output}
                )
            columns = to_columns(self._call(features, model, args), len(features), self.output)
        except ElementError as error:
            raise ElementError(str(error), index=index) from error
        return chunk.with_columns(self.keep, columns)

    def _run_part(self, element: Any, model: Any, args: Any) -> PartialResult:
        try:
            return PartialResult(1, list(self.run_inference([element], model, args)), None)
        except Exception as error:
            return PartialResult(1, None, error)

    def _finish(self, part: PartialResult, kept: list[dict[str, Any]]) -> PartialResult:
        if part.results is None:
            return part
        return part._replace(results=self._make_rows(kept, [*map(get_inference, part.results)]))

    def _collate(self, features: Features, model: Any) -> Any:
        return self._row_input_of_model.collate(features, model)

    def _call(self, features: Features, model: Any, args: Any) -> Any:
        """Return the output of the model for all rows, or a list with one output per row."""
        n_rows, batch = len(features), self._collate(features, model)
        if self._class_columns is not None:
            found = self._unkeyed.predict_classes(batch, model, args)
            return {self.output[0].name: found.labels, **self._class_columns.select(found)}
        if isinstance(batch, list):
            results = call_model(self._unkeyed, batch, model, args)
            return [*map(get_inference, unbatch_results(results, n_rows, self._list_output))]
        handler = self._unkeyed.with_no_batching(whole_results=True)

        def call(table: Any) -> Any:
            return get_inference(call_model(handler, table, model, args))

        output = call(batch)
        BatchAxis(
            model,
            ("rows", type(self._unkeyed), *(args or ())),
            self._list_output,
            lambda size: call(repeat_first(batch, size)),
        ).check(output, n_rows)
        if isinstance(output, list):
            return [*map(get_inference, unbatch(output, n_rows, self._list_output))]
        return output

    def _keep_columns(self, rows: Sequence[_Row]) -> list[dict[str, Any]]:
        """Return the kept columns of each row as a new dictionary.

        Raises:
            ElementError: A row lacks a column, or has one that isn't in the schema or has the name of an output.
        """
        names = self._fields if self.keep is None else self.keep
        if self.keep is None:
            self._check_fields(rows)
        if names is None:
            return [*map(dict, rows)]
        columns = read_columns(rows, names)
        if not names:
            return [{} for _ in rows]
        return [
            dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)
        ]

    def _check_fields(self, rows: Sequence[_Row]) -> None:
        outputs = {column.name for column in self.output}
        for index, row in enumerate(rows):
            if not outputs.isdisjoint(row):
                raise collision_error(
                    next(name for name in outputs if name in row),
                    f"Element {index} of the batch",
                    index,
                )
            if self._fields is not None and len(row) > len(self._fields):
                extra = next(name for name in row if name not in self._fields)
                raise ElementError(
                    f"Element {index} of the batch has a column {extra!r}, which the type of the PCollection "
                    f"lacks: {', '.join(self._fields)}. To fix this, remove the column, or list the columns to "
                    "keep.",
                    index=index,
                )

    def _make_rows(self, kept: list[dict[str, Any]], output: Any) -> list[Row]:
        for name, values in to_columns(output, len(kept), self.output).items():
            for row, value in zip(kept, to_python(values), strict=True):
                row[name] = value
        return [Row(**row) for row in kept]


def _measure_row(
    length_fn: Callable[[Any], int], row_input: RowInput, columns: Sequence[str], row: Any
) -> int:
    """Return the length of the example that a handler gets for a row."""
    [example] = row_input.collate(RowFeatures(read_rows([row]), columns), None)
    return length_fn(example)


def _check_list(batch: Any) -> None:
    if to_chunk(batch) is not None:
        raise ElementError(
            f"With with_no_batching, an element is a list of rows, but this is a {type(batch).__name__}. To "
            "fix this, leave with_no_batching out: a table is one element, and gets one result."
        )


def get_inference(result: Any) -> Any:
    """Return the inference of a ``PredictionResult`` of this library or of Beam, or any other result as it is."""
    if "inference" in getattr(type(result), "_fields", ()):
        return result.inference
    return list(result) if isinstance(result, Iterator) else result


def _make_empty(column: OutputColumn) -> Any:
    return np.empty(0, dtype=_NUMPY_TYPES.get(column.type, object))
