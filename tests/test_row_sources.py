"""Rows from files keep their types through a model to other files, SQL-like transforms and BigQuery's schema."""

import json
from itertools import chain

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from apache_beam.testing.util import assert_that, equal_to
from sklearn.tree import DecisionTreeClassifier

from row_models import save
from runinference import RunInference
from runinference.sklearn_inference import SklearnModelHandlerPandas

FEATURES = ["age", "income"]


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

    def make(keep=("id", "city")):
        return RunInference(handler, keep=keep, output="label")

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
    table = make_table(100)
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


def test_rows_can_be_written_to_avro_and_read_again(folder, infer):
    table = make_table(50)
    with beam.Pipeline() as pipeline:
        rows = pipeline | beam.Create([beam.Row(**row) for row in table.to_dict("records")])
        rows | infer(keep=None) | beam.io.WriteToAvro(str(folder / "avro"))
    with beam.Pipeline() as pipeline:
        read = beam.io.ReadFromAvro(str(folder / "avro-*"), as_rows=True)
        again = RunInference(
            infer()._model_handler.inner_handlers()[0], output="again", keep=["label"]
        )
        same = pipeline | read | again | beam.Map(lambda row: row.label == row.again)
        assert_that(same, equal_to([True] * 50))
