"""Rows from files keep their types through a model to other files, SQL-like transforms and BigQuery's schema.

`make fuzz` has files of 200,000 rows in all formats (`HYPOTHESIS_PROFILE=thorough`).
"""

import json
import os
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import apache_beam as beam
import fastavro
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from apache_beam.dataframe.convert import to_dataframe, to_pcollection
from apache_beam.io.gcp import bigquery_tools
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.typehints.row_type import RowTypeConstraint
from sklearn.tree import DecisionTreeClassifier

from row_models import save
from runinference import RunInference, bigquery_schema
from runinference.errors import OptionError
from runinference.sklearn_inference import SklearnModelHandlerPandas

FEATURES = ["age", "income"]
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
N_ROWS = 200_000 if THOROUGH else 100  # of formats whose rows take longer


def make_table(n_rows):
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": np.arange(n_rows),
            "age": generator.integers(18, 90, n_rows),
            "income": generator.normal(40, 10, n_rows),
            "city": generator.choice(["Lima", "Oslo", "Rome"], n_rows),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


@pytest.fixture(scope="module")
def infer(folder):
    table = make_table(500)
    labels = np.where(table.age + table.income > 95, "yes", "no")
    model = DecisionTreeClassifier(max_depth=3).fit(table[FEATURES], labels)
    handler = SklearnModelHandlerPandas(save(model, folder))

    def make(keep=("id", "city"), **options):
        return RunInference(handler, keep=keep, output="label", **options)

    make.predict = lambda table: model.predict(table[FEATURES])
    return make


def read_all(folder, pattern, read):
    return pd.concat([read(path) for path in sorted(folder.glob(pattern))]).sort_values("id")


def check(found, table, infer):
    assert list(found.columns) == ["id", "city", "label"]
    assert found["id"].tolist() == table["id"].tolist()
    assert found["city"].tolist() == table["city"].tolist()
    assert found["label"].tolist() == infer.predict(table).tolist()


def test_arrow_tables_of_a_parquet_file_stay_tables(folder, infer):
    table = make_table(200_000)
    table.to_parquet(folder / "in.parquet", row_group_size=20_000)
    schema = pa.schema([("id", pa.int64()), ("city", pa.string()), ("label", pa.string())])
    with beam.Pipeline() as pipeline:
        (
            pipeline
            | beam.io.ReadFromParquetBatched(str(folder / "in.parquet"))
            | infer()
            | beam.Map(lambda part: part.replace_schema_metadata(None).cast(schema))
            | beam.io.WriteToParquetBatched(str(folder / "out"), schema)
        )
    check(read_all(folder, "out-*", pd.read_parquet), table, infer)


def test_rows_of_a_csv_file_get_a_prediction_and_are_written_to_one(folder, infer):
    table = make_table(200_000)
    table.to_csv(folder / "in.csv", index=False)
    with beam.Pipeline() as pipeline:
        rows = pipeline | beam.io.ReadFromCsv(str(folder / "in.csv")) | infer()
        rows | beam.io.WriteToCsv(str(folder / "csv"))
    check(read_all(folder, "csv-*", pd.read_csv), table, infer)


def test_rows_of_parquet_files_are_written_as_json(folder, infer):
    table = make_table(N_ROWS)
    table.to_parquet(folder / "small.parquet")
    with beam.Pipeline() as pipeline:
        read = beam.io.ReadFromParquet(str(folder / "small.parquet"), as_rows=True)
        (pipeline | read | infer() | beam.io.WriteToJson(str(folder / "json")))
    lines = chain.from_iterable(path.read_text().splitlines() for path in folder.glob("json-*"))
    found = pd.DataFrame([json.loads(line) for line in lines]).sort_values("id")
    check(found, table, infer)
    (folder / "in.json").write_text(table.to_json(orient="records", lines=True))
    with beam.Pipeline() as pipeline:
        labels = pipeline | beam.io.ReadFromJson(str(folder / "in.json")) | infer()
        labels |= beam.Map(lambda row: row.label)
        assert_that(labels, equal_to(infer.predict(table).tolist()))


class Customer(NamedTuple):
    id: int
    age: int | None
    income: float
    city: str


def typed_rows(pipeline, table):
    rows = [Customer(**row) for row in table.to_dict("records")]
    return pipeline | beam.Create(rows).with_output_types(Customer)


def test_rows_are_written_to_parquet_files_with_their_schema(folder, infer):
    table = make_table(N_ROWS)
    with beam.Pipeline() as pipeline:
        rows = typed_rows(pipeline, table) | infer(keep=None, probabilities="p_{}")
        rows | beam.io.WriteToParquet(str(folder / "typed"))
    found = read_all(folder, "typed-*", pd.read_parquet)
    schema = pa.parquet.read_schema(next(folder.glob("typed-*")))
    types = ["int64", "int64", "double", "string", "string", "double", "double"]
    assert schema.names == ["id", "age", "income", "city", "label", "p_no", "p_yes"]
    assert [str(kind) for kind in schema.types] == types
    check(found[["id", "city", "label"]], table, infer)
    assert (found.p_no + found.p_yes).tolist() == pytest.approx([1] * N_ROWS)


def test_the_schema_of_a_bigquery_table_follows_from_the_rows(folder, infer):
    table = make_table(N_ROWS)
    with beam.Pipeline() as pipeline:
        rows = typed_rows(pipeline, table) | infer(keep=None, probabilities="p_{}")
        schema = bigquery_schema(rows)
        kinds = ["INTEGER", "INTEGER", "FLOAT", "STRING", "STRING", "FLOAT", "FLOAT"]
        assert [field["type"] for field in schema["fields"]] == kinds
        assert [f["name"] for f in schema["fields"] if f["mode"] == "NULLABLE"] == ["age"]
        # Beam loads files of this format into BigQuery.
        avro = bigquery_tools.get_avro_schema_from_table_schema(schema)
        dictionaries = rows | beam.Map(lambda row: row._asdict())
        dictionaries | beam.io.WriteToAvro(str(folder / "bigquery"), avro)
    files = [path.open("rb") for path in folder.glob("bigquery-*")]
    found = pd.DataFrame(chain.from_iterable(map(fastavro.reader, files))).sort_values("id")
    check(found[["id", "city", "label"]], table, infer)


def test_columns_that_bigquery_has_no_type_for_are_an_error():
    class Vectors(NamedTuple):
        vector: Sequence[float]
        names: list[str]
        small: np.float32
        inner: Customer

    fields = {field["name"]: field for field in bigquery_schema(Vectors)["fields"]}
    assert fields["vector"] == {"name": "vector", "type": "FLOAT", "mode": "REPEATED"}
    assert (fields["names"]["mode"], fields["small"]["type"]) == ("REPEATED", "FLOAT")
    assert [field["name"] for field in fields["inner"]["fields"]] == list(Customer._fields)
    for kind in (Any, dict[str, int], Sequence[Sequence[int]], int | str):
        row_type = RowTypeConstraint.from_fields([("x", kind)])
        with pytest.raises(OptionError, match=r"no type for the column 'x'.*output=\{'x': float\}"):
            bigquery_schema(row_type)
    for kind in (list[int] | None, beam.typehints.Optional[list[str]]):
        row_type = RowTypeConstraint.from_fields([("x", kind)])
        with pytest.raises(OptionError, match="'x' can be None or an array.* with an empty list"):
            bigquery_schema(row_type)
    with pytest.raises(OptionError, match="has no schema"):
        bigquery_schema(beam.Pipeline() | beam.Create([{"a": 1}]))


def test_dataframes_of_many_rows_are_predicted_and_read_again(infer):
    table = make_table(200_000)
    chunks = [table[i : i + 20_000] for i in range(0, len(table), 20_000)]
    proxy = table[:0].assign(label=pd.Series(dtype=object))[["id", "label"]]
    with beam.Pipeline() as pipeline:
        frames = pipeline | beam.Create(chunks) | infer(keep=["id"])
        counts = to_dataframe(frames, proxy=proxy).groupby("label").id.count()
        expected = pd.Series(infer.predict(table)).value_counts()
        assert_that(to_pcollection(counts), equal_to(expected.tolist()))


def test_rows_can_be_written_to_avro_and_read_again(folder, infer):
    table = make_table(N_ROWS)
    with beam.Pipeline() as pipeline:
        rows = pipeline | beam.Create([beam.Row(**row) for row in table.to_dict("records")])
        rows | infer(keep=None) | beam.io.WriteToAvro(str(folder / "avro"))
    with beam.Pipeline() as pipeline:
        read = beam.io.ReadFromAvro(str(folder / "avro-*"), as_rows=True)
        again = RunInference(
            infer()._model_handler.inner_handlers()[0], output="again", keep=["label"]
        )
        same = pipeline | read | again | beam.Map(lambda row: row.label == row.again)
        assert_that(same, equal_to([True] * N_ROWS))
