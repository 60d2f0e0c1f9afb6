"""Transforms that convert between rows with columns of predictions and ``PredictionResult`` objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import apache_beam as beam

from runinference.checks import check_text
from runinference.collate.chunks import to_chunk
from runinference.collate.columns import Column
from runinference.collate.records import is_record, read_rows
from runinference.collate.row_features import Features, RowFeatures
from runinference.collate.row_outputs import to_columns, to_python
from runinference.errors import ElementError, OptionError
from runinference.handlers.options import KeywordsChecked
from runinference.handlers.row_handler import get_inference
from runinference.handlers.row_options import OutputOption, RowOptions
from runinference.results import PredictionResult
from runinference.transforms.row_types import (
    check_names,
    find_pair_types,
    get_fields,
    get_kinds,
    get_pair_types,
    make_row_type,
)


class ResultsToRows(KeywordsChecked, beam.PTransform):  # type: ignore[misc]
    """Convert ``PredictionResult`` objects to rows with columns of the example and of the prediction.

    Examples that are rows (``beam.Row``, named tuples, dataclasses, dictionaries or Series) have columns. Any
    other example, such as a text, is the value of the only column in ``keep``. If an example is a table with many
    rows, its result becomes one row for each of them. In a PCollection of pairs of a key and a result, the results
    are converted.

    If ``keep`` lists columns, the output has a schema.

    >>> from runinference import PredictionResult
    >>> results = [PredictionResult("good", {"label": "positive", "score": 0.75}, "model")]
    >>> to_rows = ResultsToRows({"label": str, "score": float}, keep={"text": str})
    >>> with beam.Pipeline() as pipeline:
    ...     _ = pipeline | beam.Create(results) | to_rows | beam.Map(print)
    Row(text='good', label='positive', score=0.75)
    """

    def __init__(
        self,
        output: OutputOption = "prediction",
        keep: str | Sequence[str] | Mapping[str, Any] | None = None,
        *,
        model_id: str | None = None,
    ) -> None:
        """Choose the columns.

        Args:
            output: The name of the column with the prediction. To declare the type of its values, pass a
                dictionary, such as ``{"prediction": float}``. Several names stand for its fields.
            keep: The names of the columns of the example, or their types by name, such as ``{"id": int}``. By
                default, all columns of the example.
            model_id: The name of a column with the ID of the model. By default, there is none.

        Raises:
            OptionError: A name is used twice, or isn't text.
        """
        super().__init__()
        types: Mapping[str, Any] = keep if isinstance(keep, Mapping) else {}
        names = tuple(keep) if isinstance(keep, Mapping) else keep
        options = RowOptions.create(None, output, names)
        assert options is not None
        _check_model_id(model_id, [*(each.name for each in options.output), *(options.keep or ())])
        self._options = options
        self._types = types
        self._kinds = {name: kind for name in types if (kind := get_kinds(types[name]))}
        self._model_id = model_id

    def expand(self, results: beam.PCollection) -> beam.PCollection:
        return _convert(results, self._to_rows, self._get_row_type())

    def _get_row_type(self) -> Any:
        if self._options.keep is None:
            return Any
        fields = {name: self._types.get(name, Any) for name in self._options.keep}
        fields |= {column.name: column.type for column in self._options.output}
        if self._model_id is not None:
            fields[self._model_id] = str | None
        return make_row_type(fields)

    def _to_rows(self, result: Any) -> Iterator[Any]:
        if not hasattr(result, "example") or not hasattr(result, "inference"):
            raise ElementError(
                f"ResultsToRows converts PredictionResult objects, but this element is a {type(result).__name__}. "
                "To fix this, leave it out if RunInference returns rows, with columns, output or keep."
            )
        features, is_table = self._read(result.example)
        n_rows, columns = len(features), {name: features.values(name) for name in features.names}
        for name, kind in self._kinds.items():
            Column(name, columns[name], kind)  # checks the types
        output = get_inference(result)
        found = to_columns(output if is_table else [output], n_rows, self._options.output)
        columns |= {name: to_python(values) for name, values in found.items()}
        if self._model_id is not None:
            columns[self._model_id] = [result.model_id] * n_rows
        for row in zip(*columns.values(), strict=True):
            yield beam.Row(**dict(zip(columns, row, strict=True)))

    def _read(self, example: Any) -> tuple[Features, bool]:
        """Return the kept columns of an example, and whether it is a table."""
        keep = self._options.keep
        if (chunk := to_chunk(example)) is not None:
            names = chunk.names() if keep is None else keep
            features: Features = chunk.features(names)
        elif is_record(example):
            [row] = read_rows([example])
            names = list(row) if keep is None else keep
            features = RowFeatures([row], names)
        elif keep is not None and len(keep) <= 1:
            return RowFeatures([dict.fromkeys(keep, example)], keep), False
        else:
            raise ElementError(
                f"The example of a result is a {type(example).__name__}, which has no columns. To fix this, name "
                'one column for it, such as keep=["text"].'
            )
        outputs = [column.name for column in self._options.output]
        for name in [*outputs, self._model_id]:
            if name in names:
                raise ElementError(
                    f"The example of a result already has a column {name!r}. To fix this, choose another name "
                    "with output or model_id, or leave the column out of keep."
                )
        return features, chunk is not None


class RowsToResults(KeywordsChecked, beam.PTransform):  # type: ignore[misc]
    """Convert rows with columns of predictions to ``PredictionResult`` objects.

    The example of a result is the row without these columns. A dictionary stays a dictionary, and a DataFrame or
    an Arrow table stays one. The inference is the value of the column, or a dictionary of the values of several
    columns. In a PCollection of pairs of a key and a row, the rows are converted.

    >>> rows = [beam.Row(text="good", label="positive", score=0.75)]
    >>> with beam.Pipeline() as pipeline:
    ...     results = pipeline | beam.Create(rows) | RowsToResults(["label", "score"])
    ...     _ = results | beam.Map(lambda result: print(result.example.text, result.inference))
    good {'label': 'positive', 'score': 0.75}
    """

    def __init__(
        self, output: str | Sequence[str] = "prediction", *, model_id: str | None = None
    ) -> None:
        """Choose the columns.

        Args:
            output: The name of the column with the prediction, or the names of several.
            model_id: The name of the column with the ID of the model. By default, results have none.

        Raises:
            OptionError: A name is used twice, or isn't text. When the pipeline is built: the rows have a schema
                without one of the columns.
        """
        super().__init__()
        if isinstance(output, Mapping):
            raise OptionError(
                "output must be the names of columns, but is a dictionary. To fix this, pass a list of its keys."
            )
        options = RowOptions.create(None, output, None)
        assert options is not None
        self._output = [column.name for column in options.output]
        _check_model_id(model_id, self._output)
        self._names = [*self._output, *([] if model_id is None else [model_id])]
        self._model_id = model_id

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        value = get_pair_types(rows.element_type)[1]
        fields = get_fields(rows.element_type) or get_fields(value)
        if fields is not None:
            check_names("output or model_id", self._names, fields)
        return _convert(rows, self._to_results, PredictionResult)

    def _to_results(self, row: Any) -> Iterator[PredictionResult]:
        if (chunk := to_chunk(row)) is not None:
            features: Features = chunk.features(self._names)
            values = {name: features.array(name) for name in self._names}
            rest = [name for name in chunk.names() if name not in values]
            yield self._make(chunk.with_columns(rest, {}), values)
            return
        [fields] = read_rows([row])
        features = RowFeatures([fields], self._names)
        values = {name: features.values(name)[0] for name in self._names}
        example = {name: value for name, value in fields.items() if name not in values}
        yield self._make(example if isinstance(row, dict) else beam.Row(**example), values)

    def _make(self, example: Any, values: Mapping[str, Any]) -> PredictionResult:
        inference = {name: values[name] for name in self._output}
        model_id = None if self._model_id is None else values[self._model_id]
        return PredictionResult(
            example, inference if len(inference) > 1 else inference[self._output[0]], model_id
        )


def _check_model_id(name: str | None, others: Sequence[str]) -> None:
    if name is None:
        return
    check_text("model_id", name)
    if name in others:
        raise OptionError(
            f"{name!r} is the name of two columns. To fix this, choose another name with model_id."
        )


def _convert(
    elements: beam.PCollection, convert: Callable[[Any], Iterator[Any]], kind: Any
) -> beam.PCollection:
    """Apply a function to each element, or to the value of each pair of a key and a value."""
    if pair := find_pair_types(elements.element_type):
        key_type = beam.typehints.Tuple[pair[0], kind]
        return elements | beam.FlatMap(partial(_convert_value, convert)).with_output_types(key_type)
    return elements | beam.FlatMap(partial(_convert_element, convert)).with_output_types(kind)


def _convert_value(convert: Callable[[Any], Iterator[Any]], pair: Any) -> Iterator[Any]:
    key, value = pair
    for converted in convert(value):
        yield key, converted


def _convert_element(convert: Callable[[Any], Iterator[Any]], element: Any) -> Iterator[Any]:
    if type(element) is tuple and len(element) == 2:
        raise ElementError(
            "An element is a pair of a key and a value, but the type of the PCollection is not a pair. To fix "
            "this, declare it on the transform before, for example with_output_types(tuple[str, Any])."
        )
    return convert(element)
