"""Results become rows, rows become results, and each conversion undoes the other."""

from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from apache_beam.dataframe.convert import to_dataframe, to_pcollection
from apache_beam.ml.inference.base import PredictionResult as BeamsResult
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.typehints.row_type import RowTypeConstraint

from row_models import PEOPLE, people_handler, people_model, people_rows
from runinference import (
    KeyedModelHandler,
    PredictionResult,
    ResultsToRows,
    RowsToResults,
    RunInference,
)
from runinference.errors import OptionError


class Person(NamedTuple):
    id: int
    age: int


EXAMPLES = {
    "dictionary": {"id": 7, "age": 30},
    "beam.Row": beam.Row(id=7, age=30),
    "named tuple": Person(7, 30),
    "Series": pd.Series({"id": 7, "age": 30}),
    "DataFrame": pd.DataFrame({"id": [7], "age": [30]}),
    "Arrow table": pa.table({"id": [7], "age": [30]}),
}


def test_each_kind_of_example_becomes_the_columns_of_a_row():
    tables = ("DataFrame", "Arrow table")
    results = [
        PredictionResult(example, np.array([0.5]) if kind in tables else np.float64(0.5), "m")
        for kind, example in EXAMPLES.items()
    ]
    with beam.Pipeline() as pipeline:
        rows = pipeline | beam.Create(results) | ResultsToRows("p", model_id="model")
        assert_that(rows, equal_to([beam.Row(id=7, age=30, p=0.5, model="m")] * len(EXAMPLES)))


def test_declared_columns_are_a_schema():
    results = [
        BeamsResult(Person(1, 30), {"label": "no", "score": 1.0}, "m"),
        PredictionResult(Person(2, 40), {"label": "yes", "score": 0.5}),
    ]
    output = {"label": str, "score": float}
    with beam.Pipeline() as pipeline:
        rows = pipeline | beam.Create(results) | ResultsToRows(output, {"id": int}, model_id="m")
        fields = [("id", int), ("label", str), ("score", float), ("m", str | None)]
        assert rows.element_type == RowTypeConstraint.from_fields(fields)
        sums = to_pcollection(to_dataframe(rows).groupby("label").id.sum())
        assert_that(sums, equal_to([1, 2]))


def test_an_example_without_columns_is_the_value_of_the_only_one():
    results = [PredictionResult("good", 1), PredictionResult("bad", 0)]
    with beam.Pipeline() as pipeline:
        keyed = pipeline | beam.Create([*enumerate(results)])
        rows = keyed | ResultsToRows({"p": int}, keep={"text": str})
        row_type = RowTypeConstraint.from_fields([("text", str), ("p", int)])
        assert rows.element_type.tuple_types == (int, row_type)
        expected = [(0, beam.Row(text="good", p=1)), (1, beam.Row(text="bad", p=0))]
        assert_that(rows, equal_to(expected))
        rows = keyed | beam.Values() | "Only" >> ResultsToRows(keep=[])
        assert_that(rows, equal_to([beam.Row(prediction=n) for n in (1, 0)]), label="CheckOnly")


def test_the_results_of_whole_tables_become_one_row_per_row(tmp_path):
    handler = people_handler(tmp_path).with_no_batching(whole_results=True)
    frame = PEOPLE.assign(n=pd.array([1, None, 3, 4, 5, 6], "Int64"))
    with beam.Pipeline() as pipeline:
        results = pipeline | beam.Create([frame]) | RunInference(handler)
        rows = results | ResultsToRows({"label": str}, keep={"city": str, "n": int | None})
        pairs = rows | beam.Map(lambda row: (row.city, row.n, row.label))
        labels = people_model().predict(PEOPLE)
        n = [1, None, 3, 4, 5, 6]
        assert_that(pairs, equal_to([*zip(PEOPLE.city, n, labels, strict=True)]))


def test_rows_with_predictions_become_results_and_rows_again(tmp_path):
    handler = KeyedModelHandler(people_handler(tmp_path))
    keyed = [(row["id"] % 2, beam.Row(**row)) for row in people_rows()]
    labels = people_model().predict(PEOPLE).tolist()
    with beam.Pipeline() as pipeline:
        rows = pipeline | beam.Create(keyed) | RunInference(handler, output="label")
        results = rows | RowsToResults("label")
        assert results.element_type.tuple_types == (int, PredictionResult)
        pairs = [(k, PredictionResult(row, x)) for (k, row), x in zip(keyed, labels, strict=True)]
        assert_that(results, equal_to(pairs))
        again = results | ResultsToRows("label")
        rows = [
            (k, beam.Row(**r.as_dict(), label=x)) for (k, r), x in zip(keyed, labels, strict=True)
        ]
        assert_that(again, equal_to(rows), label="Again")


def test_tables_with_predictions_become_results_with_arrays():
    frame = pd.DataFrame({"id": [1, 2], "p": [0.5, 0.25], "label": ["a", "b"], "m": ["x", "x"]})
    with beam.Pipeline() as pipeline:
        tables = pipeline | beam.Create([frame, pa.Table.from_pandas(frame)])
        results = tables | RowsToResults(["label", "p"])
        names = results | beam.Map(lambda result: [*pa.table(result.example).column_names])
        assert_that(names, equal_to([["id", "m"]] * 2), label="Names")
        values = results | "Values" >> beam.Map(
            lambda result: [result.inference[name].tolist() for name in ("label", "p")]
        )
        assert_that(values, equal_to([[["a", "b"], [0.5, 0.25]]] * 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResultsToRows("id", keep=["id"]), "'id' is in output and in keep"),
        (lambda: ResultsToRows("p", model_id="p"), "'p' is the name of two columns"),
        (lambda: RowsToResults("p", model_id="p"), "'p' is the name of two columns"),
        (lambda: ResultsToRows("p", model_id=3), "model_id must be a non-empty string"),
        (lambda: ResultsToRows("p", keeps="id"), "Did you mean 'keep'"),
        (lambda: RowsToResults({"p": float}), "output must be the names"),
    ],
)
def test_wrong_options_are_an_error_before_the_pipeline_runs(make, message):
    with pytest.raises((OptionError, TypeError), match=message):
        make()


def test_a_schema_without_the_column_is_an_error_before_the_pipeline_runs():
    rows = beam.Pipeline() | beam.Create([beam.Row(id=1, labell="x")])
    with pytest.raises(OptionError, match=r"no column 'label'.* Did you mean 'labell'"):
        rows | RowsToResults("label")


@pytest.mark.parametrize(
    ("element", "transform", "message"),
    [
        (3, ResultsToRows(), "is a int.*RunInference returns rows"),
        (PredictionResult("x", 1), ResultsToRows(), r"str, which has no columns.*keep=\["),
        (PredictionResult({"a": 1}, 1), ResultsToRows(keep="b"), "no column 'b'.*columns are a"),
        (PredictionResult({"a": 1}, 1), ResultsToRows("a"), "already has a column 'a'"),
        (PredictionResult({"a": 1}, 1), ResultsToRows(model_id="a"), "already has a column 'a'"),
        (PredictionResult({"a": 1}, 1), ResultsToRows(keep={"a": str}), "1 of type int .* is str"),
        (PredictionResult({"a": 1}, 1), ResultsToRows({"p": str}), "type int, and .* is str"),
        ({"a": 1}, RowsToResults("b"), "no column 'b'"),
        ((1, {"a": 1}), RowsToResults("a"), "pair of a key and a value"),
    ],
)
def test_an_element_that_cannot_be_converted_is_an_error(element, transform, message):
    with pytest.raises(Exception, match=message), beam.Pipeline() as pipeline:
        pipeline | beam.Create([element]).with_output_types(Any) | transform
