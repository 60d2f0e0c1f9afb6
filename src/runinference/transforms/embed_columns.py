"""A transform that adds the embeddings of columns to rows."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam

from runinference.collate.columns import read_columns
from runinference.collate.records import is_record, read_rows
from runinference.collate.row_outputs import OutputColumn, to_columns
from runinference.errors import ElementError, OptionError, describe
from runinference.handlers.keyed import KeyedModelHandler
from runinference.handlers.row_handler import get_inference
from runinference.transforms.row_types import check_names, get_fields, make_row_type
from runinference.transforms.run_inference import RunInference

#: The steps of equal handlers share a model.
_MODEL_IDENTIFIER = "embeddings"
_COLLISION = (
    "The rows already have a column {!r}, the name of a column of vectors. To fix this, choose another name with "
    "output."
)


class _EmbeddedRow(NamedTuple):
    """A row and the vectors found so far. It is the key of the text to embed next."""

    row: Any
    vectors: dict[str, Any]


class EmbedColumns(beam.PTransform):  # type: ignore[misc]
    """Add the vectors that a handler computes for columns to each row, or replace the columns by them.

    Dictionaries stay dictionaries, and other rows become ``beam.Row``.

    Args:
        handler: The handler of an embedding model.
        outputs: The column of vectors for each column.
        inference_args: Keyword arguments for each model call.
        handling: The options of ``RunInference.with_exception_handling``, if failed rows become dead letters.

    Raises:
        OptionError: The handler has preprocessing or postprocessing functions, or can't be pickled.
    """

    def __init__(
        self,
        handler: Any,
        outputs: Mapping[str, OutputColumn],
        inference_args: dict[str, Any] | None = None,
        handling: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._args = handler, outputs, inference_args
        self._steps = {
            column: _make_step(handler, column, output, inference_args)
            for column, output in outputs.items()
        }
        self._handling = handling
        self._pickled = _dumps(self._args)

    def __reduce__(self) -> Any:
        # MLTransform writes its transforms with jsonpickle, which changes some values, such as integer keys.
        return _loads, (self._pickled,)

    def default_label(self) -> str:
        return "Embed " + ", ".join(self._steps)

    def with_exception_handling(self, **handling: Any) -> EmbedColumns:
        """Return a copy that outputs a tuple: the rows with vectors, and the dead letters of all other rows.

        Args:
            **handling: The options of ``RunInference.with_exception_handling``.
        """
        return EmbedColumns(*self._args, handling)

    def expand(self, rows: beam.PCollection) -> Any:
        row_type = _get_row_type(rows.element_type, self._args[1])
        found, failed = rows | "Start" >> beam.Map(_start), []
        for column, step in self._steps.items():
            if self._handling is None:
                found = found | f"Embed {column}" >> step
            else:
                step = step.with_exception_handling(**self._handling)
                found, letters = found | f"Embed {column}" >> step
                failed += [*letters.failed_preprocessing, letters.failed_inferences]
                failed += letters.failed_postprocessing
        results = found | "Finish" >> beam.Map(_finish).with_output_types(row_type)
        if self._handling is None:
            return results
        return results, failed | beam.Flatten() | "Failed rows" >> beam.Map(_read_letter)


def _make_step(
    handler: Any, column: str, output: OutputColumn, inference_args: Any
) -> RunInference:
    added = None if output.name == column else output.name
    keyed = (
        KeyedModelHandler(handler)
        .with_preprocess_fn(partial(_read_column, column=column, added=added))
        .with_postprocess_fn(partial(_add_vector, output=output))
    )
    return RunInference(keyed, inference_args=inference_args, model_identifier=_MODEL_IDENTIFIER)


def _start(row: Any) -> Any:
    return _EmbeddedRow(row, {})


def _read_column(element: Any, column: str, added: str | None) -> Any:
    """Return the row with the text of a column. Raise `ElementError` if it lacks it, or has the added column."""
    if not is_record(element.row):
        raise ElementError(
            "Embeddings are added to rows (beam.Row, named tuples, dataclasses, dictionaries or Series), but this "
            f"element is a {type(element.row).__name__}. To fix this, convert it before MLTransform."
        )
    [fields] = read_rows([element.row])
    if added is not None and added in fields:
        raise ElementError(_COLLISION.format(added))
    [text] = read_columns([fields], [column])[column]
    return element, text


def _add_vector(result: Any, output: OutputColumn) -> Any:
    element, prediction = result
    [vector] = to_columns([get_inference(prediction)], 1, [output])[output.name]
    return element._replace(vectors={**element.vectors, output.name: vector})


def _finish(element: Any) -> Any:
    row, vectors = element
    if isinstance(row, dict):
        return {**row, **vectors}
    return beam.Row(**{**read_rows([row])[0], **vectors})


def _read_letter(letter: Any) -> Any:
    """Return the dead letter of the row, for that of any stage."""
    element, error = letter
    return (element if isinstance(element, _EmbeddedRow) else element[0]).row, error


def _get_row_type(element_type: Any, outputs: Mapping[str, OutputColumn]) -> Any:
    """Return the type of the results, if the rows have a schema. Raise `OptionError` if it lacks a column,
    or has one of the new columns."""
    fields = get_fields(element_type)
    if fields is None:
        return Any
    check_names("columns", outputs, fields)
    for column, output in outputs.items():
        if output.name != column and output.name in fields:
            raise OptionError(_COLLISION.format(output.name))
    types = {output.name: output.type for output in outputs.values()}
    return make_row_type({**fields, **types})


def _dumps(args: Any) -> str:
    try:
        return base64.b64encode(pickle.dumps(args)).decode()
    except Exception as error:
        raise OptionError(
            f"The handler can't be written to the artifact location: {describe(error, 300)}. To fix this, define "
            "its functions and classes at the top level of a module."
        ) from error


def _loads(pickled: str) -> EmbedColumns:
    return EmbedColumns(*pickle.loads(base64.b64decode(pickled)))
