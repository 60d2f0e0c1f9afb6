"""Rows have a schema when the pipeline is built, and columns are checked against it."""

import typing
from typing import NamedTuple

import apache_beam as beam
import pandas as pd
import pyarrow as pa
import pytest
from apache_beam.dataframe.convert import to_dataframe, to_pcollection
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.typehints.row_type import RowTypeConstraint

from row_models import PEOPLE, people_handler, people_model, people_rows
from runinference import KeyedModelHandler, RunInference
from runinference.errors import OptionError


class Person(NamedTuple):
    id: int
    age: int | None
    income: float
    city: str


def typed(rows, row_type=Person):
    return beam.Create([row_type(**row) for row in rows]).with_output_types(row_type)


def expected_rows():
    labels = people_model().predict(PEOPLE).tolist()
    return [beam.Row(id=i, label=label) for i, label in enumerate(labels)]


def as_pairs(results):
    return results | "AsPairs" >> beam.Map(lambda row: (row.id, row.label))


def test_the_schema_has_the_kept_columns_and_the_type_of_the_prediction(tmp_path):
    handler = people_handler(tmp_path)
    pipeline = beam.Pipeline()
    rows = pipeline | typed(people_rows())
    everything = rows | "All" >> RunInference(handler, output="label")
    fields = [("id", int), ("age", int | None), ("income", float), ("city", str)]
    assert everything.element_type == RowTypeConstraint.from_fields([*fields, ("label", str)])
    some = rows | "Some" >> RunInference(handler, keep=["id"], output={"label": str})
    assert some.element_type == RowTypeConstraint.from_fields([("id", int), ("label", str)])
    keyed = rows | beam.WithKeys(lambda row: row.city).with_output_types(tuple[str, Person])
    keyed |= RunInference(KeyedModelHandler(handler), keep=[], output="label")
    assert keyed.element_type.tuple_types[1] == RowTypeConstraint.from_fields([("label", str)])
    for element, kind in ((PEOPLE, pd.DataFrame), (pa.Table.from_pandas(PEOPLE), pa.Table)):
        chunks = pipeline | f"{kind}" >> beam.Create([element])
        chunks |= f"Infer {kind}" >> RunInference(handler, output="label")
        assert chunks.element_type is kind


def test_dictionaries_have_a_schema_if_the_kept_columns_are_listed(tmp_path):
    rows = beam.Pipeline() | beam.Create(people_rows())
    found = rows | RunInference(people_handler(tmp_path), keep=["id"], output="label")
    assert found.element_type == RowTypeConstraint.from_fields([("id", typing.Any), ("label", str)])


def test_columns_with_names_that_no_schema_can_have_are_rows_without_one(tmp_path):
    rows = [{"the id": row["id"], **row} for row in people_rows()]
    infer = RunInference(people_handler(tmp_path), keep=["the id"], output="class")
    with beam.Pipeline() as pipeline:
        found = pipeline | beam.Create(rows) | infer
        assert not isinstance(found.element_type, RowTypeConstraint)
        pairs = found | beam.Reshuffle() | beam.Map(lambda row: tuple(row.as_dict().values()))
        assert_that(pairs, equal_to([(row.id, row.label) for row in expected_rows()]))


def test_results_can_be_shuffled_and_used_as_a_dataframe(tmp_path):
    with beam.Pipeline() as pipeline:
        results = pipeline | typed(people_rows())
        results |= RunInference(people_handler(tmp_path), output="label")
        counts = to_pcollection(to_dataframe(results).groupby("label").id.count())
        results |= beam.Reshuffle()
        assert_that(as_pairs(results), equal_to([(r.id, r.label) for r in expected_rows()]))
        labels = [row.label for row in expected_rows()]
        assert_that(counts, equal_to([labels.count(x) for x in set(labels)]), label="Counts")


def test_the_annotations_of_a_class_can_be_text(tmp_path):
    class Written(NamedTuple):  # as with "from __future__ import annotations"
        age: "int"
        income: "float"
        city: "str | None"

    found = beam.Pipeline() | beam.Create([]).with_output_types(Written)
    found |= RunInference(people_handler(tmp_path), output="label")
    fields = [("age", int), ("income", float), ("city", str | None), ("label", str)]
    assert found.element_type == RowTypeConstraint.from_fields(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"incme": float}, "no column 'income' .columns.. Did you mean 'incme'"),
        ({"income": str}, "column 'income' has the type str, .* takes numbers"),
        ({"income": float, "city": int}, "column 'city' has the type int, .* takes text"),
        ({"income": float, "prediction": int}, "already have a column 'prediction'"),
    ],
)
def test_columns_that_do_not_fit_are_an_error_before_the_pipeline_runs(fields, message, tmp_path):
    row_type = RowTypeConstraint.from_fields([*{"age": int, "city": str, **fields}.items()])
    rows = beam.Pipeline() | beam.Create([]).with_output_types(row_type)
    with pytest.raises(OptionError, match=message):
        rows | RunInference(people_handler(tmp_path), output="prediction")


def test_exactly_the_bad_rows_become_dead_letters(tmp_path):
    good = people_rows()
    bad = [
        {**good[0], "age": "old"},
        {**good[0], "age": True},
        {**good[0], "age": None},
        {**good[0], "income": None},
        {**good[0], "city": ["Oslo"]},
        {**good[0], "extra": 1},
        {k: v for k, v in good[0].items() if k != "city"},
    ]
    rows = [*bad[:3], *good[:3], *bad[3:], *good[3:]]
    handler = people_handler(tmp_path, min_batch_size=13)
    with beam.Pipeline() as pipeline:
        typed_rows = beam.Map(lambda row: beam.Row(**row)).with_output_types(Person)
        rows = pipeline | beam.Create(rows) | typed_rows
        infer = RunInference(handler, output="label").with_exception_handling()
        results, dead_letters = rows | infer
        found = results | beam.Map(lambda row: (row.id, row.label))
        assert_that(found, equal_to([(r.id, r.label) for r in expected_rows()]))
        failed = dead_letters.failed_inferences | beam.Map(lambda letter: letter[0].as_dict())
        assert_that(failed, equal_to(bad), label="DeadLetters")


def test_keyed_rows_keep_their_windows_in_batches_across_bundles(tmp_path):
    handler = KeyedModelHandler(people_handler(tmp_path, max_batch_duration_secs=0.01))
    elements = [TimestampedValue((row["city"], row), row["id"]) for row in people_rows()]
    with beam.Pipeline() as pipeline:
        rows = pipeline | beam.Create(elements) | beam.Map(lambda element: element)
        rows |= beam.WindowInto(FixedWindows(2))
        results = rows | RunInference(handler, keep=["id"], output="label")
        stamped = results | beam.MapTuple(
            lambda key, row, window=beam.DoFn.WindowParam: (row.id, row.label, float(window.start))
        )
        expected = [(row.id, row.label, row.id // 2 * 2.0) for row in expected_rows()]
        assert_that(stamped, equal_to(expected))


def test_rows_and_their_errors_cross_the_border_of_a_subprocess(tmp_path):
    handler = KeyedModelHandler(people_handler(tmp_path))
    missing = {k: v for k, v in people_rows()[0].items() if k != "income"}
    elements = [(row["city"], row) for row in [*people_rows(), missing]]
    with beam.Pipeline() as pipeline:
        infer = RunInference(handler, keep=["id"], output="label")
        results, dead_letters = (
            pipeline | beam.Create(elements) | infer.with_exception_handling(use_subprocess=True)
        )
        assert_that(results | beam.Values(), equal_to(expected_rows()))
        letters = dead_letters.failed_inferences | beam.Map(
            lambda letter: (letter[0], "no column 'income'" in letter[1][1])
        )
        assert_that(letters, equal_to([(("Oslo", missing), True)]), label="DeadLetters")
