"""W13: rows, DataFrames and Arrow tables, and a scikit-learn pipeline that encodes a column of texts."""

import functools
import pickle
import tempfile
from pathlib import Path

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks.harness import Case, Outcome, Sink, check_share, identity, run_pipeline
from runinference import RunInference
from runinference.sklearn_inference import SklearnModelHandlerPandas

CHUNK = 4_096
ONE_ROW = "ours with frames of one row"
FEATURES = ["age", "income", "city"]


def cases(scale):
    model, path = train_model()
    handler = SklearnModelHandlerPandas(model_uri=path)
    few, many = max(64, int(10_000 * scale)), max(2 * CHUNK, int(50_000 * scale))
    elements = {ONE_ROW: max(64, few // 20)}
    yield Case(
        workload="W13",
        variant="rows, without a pipeline",
        n=few,
        runs={
            "limit": functools.partial(bare_loop, model, few),
            "ours": functools.partial(predict_rows, handler, few),
            ONE_ROW: functools.partial(predict_frames, handler, elements[ONE_ROW]),
        },
        check=check_share(functools.partial(check, model), few, elements),
        elements=elements,
        goals={f"ours ÷ {ONE_ROW}": ("≥", 20)},
    )
    whole = functools.partial(run_chunks, handler, frames, many)
    yield make_case(
        "rows",
        many,
        rows,
        functools.partial(run_rows, handler, many),
        {"ours with whole frames": whole},
        {"ours ÷ ours with whole frames": ("≥", 0.5)},
    )
    goals = {"ours of the ideal": ("≥", 0.85)}
    yield make_case(f"frames of {CHUNK:,}", many, frames, whole, {}, goals)
    arrow = functools.partial(run_chunks, handler, tables, many)
    yield make_case(f"Arrow tables of {CHUNK:,}", many, tables, arrow, {}, goals)


def make_case(variant, n, make_elements, ours, runs, goals):
    model, _ = train_model()
    return Case(
        workload="W13",
        variant=variant,
        n=n,
        runs={
            "limit": functools.partial(bare_loop, model, n),
            "floor": functools.partial(floor, functools.partial(make_elements, n)),
            "ours": ours,
            **runs,
        },
        check=functools.partial(check, model, n),
        goals=goals,
    )


@functools.cache
def table(n):
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": np.arange(n),
            "age": generator.integers(18, 90, n),
            "income": generator.normal(40, 10, n),
            "city": generator.choice(["Lima", "Oslo", "Rome"], n),
        }
    )


@functools.cache
def rows(n):
    frame = table(n)
    columns = zip(*(frame[name].tolist() for name in frame.columns), strict=True)
    return [beam.Row(id=i, age=a, income=b, city=c) for i, a, b, c in columns]


@functools.cache
def frames(n):
    return [table(n).iloc[start : start + CHUNK] for start in range(0, n, CHUNK)]


@functools.cache
def tables(n):
    return [pa.Table.from_pandas(frame, preserve_index=False) for frame in frames(n)]


@functools.cache
def train_model():
    frame = table(2_000)
    labels = (frame.age + frame.income > 95).astype(int)
    columns = ColumnTransformer(
        [
            ("city", OneHotEncoder(sparse_output=False), ["city"]),
            ("numbers", StandardScaler(), ["age", "income"]),
        ]
    )
    model = make_pipeline(columns, HistGradientBoostingClassifier())
    model.fit(frame[FEATURES], labels)
    path = Path(tempfile.mkdtemp(prefix="benchmark-")) / "table.pickle"
    path.write_bytes(pickle.dumps(model))
    return model, str(path)


def bare_loop(model, n):
    outcome = Outcome()
    for frame in frames(n):
        result = frame.assign(prediction=model.predict(frame[FEATURES]))
        outcome.add_batch(result["id"], result["prediction"])
    return outcome


def floor(make_elements):
    return run_pipeline(make_elements, beam.Map(identity), FloorSink(None))


def run_rows(handler, n):
    return run_pipeline(
        functools.partial(rows, n), RunInference(handler, keep=["id"]), RowSink(None)
    )


def run_chunks(handler, make_chunks, n):
    infer = RunInference(handler, output="prediction")
    return run_pipeline(functools.partial(make_chunks, n), infer, ChunkSink(None))


def predict_rows(handler, n):
    results = handler.predict(rows(n), keep=["id"])
    outcome = Outcome()
    outcome.add_batch([row.id for row in results], [row.prediction for row in results])
    return outcome


def predict_frames(handler, n):
    """Predict on DataFrames of one row, without the ID, which the results would not have."""
    frame = table(n)
    results = handler.predict([frame[FEATURES].iloc[[i]] for i in range(n)])
    outcome = Outcome()
    outcome.add_batch(frame["id"], [result.inference for result in results])
    return outcome


class RowSink(Sink):
    def process(self, row):
        self._bundle.add(row.id, row.prediction)


class ChunkSink(Sink):
    def process(self, chunk):
        self._bundle.add_batch(chunk["id"], chunk["prediction"])


class FloorSink(Sink):
    """Count the rows of elements that are rows or tables."""

    def process(self, element):
        if isinstance(element, beam.Row):
            self._bundle.add(element.id, 0)
        else:
            self._bundle.add_batch(element["id"], np.zeros(len(element)))


@functools.cache
def expected(model, n):
    return model.predict(table(n)[FEATURES])


def check(model, n, contender, outcome):
    """Check that every row came out once, with the correct prediction."""
    outcome.check(np.arange(n), 0 if contender == "floor" else expected(model, n))
