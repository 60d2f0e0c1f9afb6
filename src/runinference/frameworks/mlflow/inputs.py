"""Convert examples, or the columns of rows, to what an MLflow model takes for a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runinference.collate.exact import cast
from runinference.collate.frames import is_dataframe
from runinference.collate.named_inputs import InputSpec, bind_inputs, stack_columns
from runinference.collate.records import is_record, read_rows, records_to_frame
from runinference.collate.row_features import Features, FrameFeatures, RowFeatures
from runinference.collate.row_inputs import FrameInput, NamedInput, RowInput
from runinference.collate.stack import reject_keyed_examples
from runinference.collate.tables import (
    check_unique_columns,
    concat_tables,
    is_sparse,
    to_tables,
)
from runinference.errors import BatchShapeError
from runinference.extras import need
from runinference.frameworks.mlflow.signature import (
    get_columns,
    get_properties,
    get_tensors,
    takes_objects,
)

_NAMED_INPUT = NamedInput(lambda model: {spec.name: spec for spec in get_tensors(model)})


class SignatureInput(RowInput):
    """A DataFrame, arrays if the signature has tensors, or dictionaries if it has objects or optional columns."""

    def collate(self, features: Features, model: Any) -> Any:
        may_lack = isinstance(features, RowFeatures) and features.optional
        if may_lack or get_properties(model):
            return features.examples()
        row_input = _NAMED_INPUT if get_tensors(model) else FrameInput()
        return row_input.collate(features, model)


def divide_by_columns(batch: Any, model: Any) -> list[tuple[list[int], Any]]:
    """Divide a batch into examples with the same optional columns, which can share a call of the model.

    A model takes no missing integers, so an optional integer that is missing is left out.

    Returns:
        The indices and the examples of each part. A batch that isn't divided has no indices.
    """
    optional = {spec.name: spec for spec in get_columns(model) or () if not spec.required}
    if not optional or not isinstance(batch, (list, tuple)):
        return [([], batch)]
    integers = [name for name, spec in optional.items() if _is_integer(spec.dtype)]
    parts: dict[frozenset[str], tuple[list[int], list[Any]]] = {}
    for index, example in enumerate(batch):
        if is_record(example):
            [example] = read_rows([example])
            if missing := [name for name in integers if _is_missing(example.get(name, 0))]:
                example = {name: example[name] for name in example if name not in missing}
        names = example.keys() if hasattr(example, "keys") else ()
        indices, examples = parts.setdefault(frozenset(optional.keys() & {*names}), ([], []))
        indices.append(index)
        examples.append(example)
    return [*parts.values()]


def make_input(batch: Any, model: Any) -> Any:
    """Return a batch in the form that a model takes.

    Args:
        batch: A list of examples, or a table with all of them: a DataFrame, an array, a sparse matrix, or arrays
            by input name.
        model: The model.

    Raises:
        BatchShapeError: The examples differ in shape or columns, or a table of an example has several rows.
        ElementError: An example cannot be converted without changing a value.
    """
    is_table = not isinstance(batch, (list, tuple))
    first = batch if is_table else batch[0]
    if not is_table:
        reject_keyed_examples(batch)
    columns, tensors = get_columns(model), get_tensors(model)
    if _is_table(first) or (is_record(first) and (columns or not _is_arrays(first))):
        if takes_objects(model) and not is_table:
            return batch
        table = batch if is_table else _join_rows(batch, columns or [])
        if columns and isinstance(table, Mapping):
            pandas = need("pandas", extra="mlflow")
            table = pandas.DataFrame({name: [*values] for name, values in table.items()})
        if not is_dataframe(table):
            return table
        check_unique_columns([table])
        if not tensors:
            return _convert_columns(table, columns or [])
        batch = _NAMED_INPUT.collate(FrameFeatures(table, list(table.columns)), model)
    elif not is_table and (takes_objects(model) or not _is_nested(first)):
        return batch
    if not tensors:
        return stack_columns(batch)
    arrays = bind_inputs(batch, tensors, {})
    return arrays if tensors[0].name else arrays[""]


def _is_table(example: Any) -> bool:
    return is_dataframe(example) or is_sparse(example)


def _is_nested(value: Any) -> bool:
    """Return whether a value is an array, a list or a dictionary."""
    return hasattr(value, "__len__") and not isinstance(value, (str, bytes))


def _is_arrays(example: Any) -> bool:
    """Return whether an example is a dictionary of arrays by input name."""
    return isinstance(example, Mapping) and any(map(_is_nested, example.values()))


def _join_rows(examples: Sequence[Any], columns: Sequence[InputSpec]) -> Any:
    """Return a table with the rows of examples that are records, frames or sparse matrices of one row."""
    if is_record(examples[0]):
        return _join_records(examples, [spec.name for spec in columns if spec.dtype is None])
    tables = to_tables(examples)
    for index, table in enumerate(tables):
        if table.shape[0] != 1:
            raise BatchShapeError(
                f"Element {index} of the batch is a table of shape {table.shape}, but an element is one row. To "
                "fix this, emit one table per row, pass columns or output to RunInference, which takes tables of "
                "any length, or use handler.with_no_batching(whole_results=True).",
                index=index,
            )
    return concat_tables(tables, examples)


def _join_records(records: Sequence[Any], may_be_nested: Sequence[str]) -> Any:
    """Return a frame with the values of records, which are lists or dictionaries in some columns."""
    if not may_be_nested:
        return records_to_frame(records)
    rows = read_rows(records)
    nested = [name for name in may_be_nested if any(_is_nested(row.get(name)) for row in rows)]
    frame = records_to_frame(
        [{name: value for name, value in row.items() if name not in nested} for row in rows]
    )
    pandas = need("pandas", extra="mlflow")
    for name in nested:
        frame[name] = pandas.Series([row.get(name) for row in rows], dtype=object)
    return frame


def _convert_columns(frame: Any, columns: Sequence[InputSpec]) -> Any:
    """Return a frame whose numbers have the types of the signature, if these hold the values.

    MLflow rejects whole numbers for a column of floats, and the columns that this function doesn't convert.
    """
    changed = {}
    for spec in columns:
        if spec.name not in frame.columns:
            continue
        column = frame[spec.name]
        if not isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":  # nullable
            values = FrameFeatures(frame, [spec.name]).array(spec.name)
            column = changed[spec.name] = type(column)(values, index=frame.index)
        if column.dtype == np.float64 and column.isna().all() and not _is_number(spec.dtype):
            changed[spec.name] = column.astype(object).where(column.notna(), None)
        elif _needs_cast(column.dtype, spec.dtype):
            converted, changed_value = cast(column.to_numpy(), spec.dtype)
            if changed_value is None:
                changed[spec.name] = converted
    return frame.assign(**changed) if changed else frame


def _needs_cast(found: Any, dtype: Any) -> bool:
    is_possible = _is_number(found) and _is_number(dtype) and np.can_cast(found, dtype, "same_kind")
    return is_possible and found != dtype


def _is_integer(dtype: Any) -> bool:
    return _is_number(dtype) and dtype.kind != "f"


def _is_missing(value: Any) -> bool:
    pandas = need("pandas", extra="mlflow")
    return np.ndim(value) == 0 and bool(pandas.isna(value))


def _is_number(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind in "iuf"
