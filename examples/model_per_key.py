"""Adds a column of predictions to a CSV file; each row goes to the model of its key.

    python examples/model_per_key.py \\
        --input patients.csv --key age_band --models 'models/*.pickle' \\
        --output predicted.csv --max_models 20

The name of a model's file, without its ending, is the key that it serves. Without
arguments, three models foresee how diabetes progresses: one for each band of age.
"""

import argparse
import os
import pickle
import tempfile
from pathlib import PurePath

import apache_beam as beam
import pandas as pd
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from runinference import KeyedModelHandler, KeyModelMapping, RunInference, samples
from runinference.sklearn_inference import SklearnModelHandlerPandas

PREDICTION = "prediction"


def run(argv=None):
    """Runs the pipeline; each row travels as a key, and a data frame of one row."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    path = args.input or write_patients()
    output = args.output or os.path.join(
        tempfile.mkdtemp(prefix="predicted-"), "predicted.csv"
    )
    models = args.models or train_models()
    handler = KeyedModelHandler(
        [KeyModelMapping([key], model) for key, model in handlers(models)],
        max_models_per_worker_hint=args.max_models,
    )
    with FileSystems.open(path) as file:
        columns = pd.read_csv(file, nrows=0).columns.drop(args.key)
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Path" >> beam.Create([path])
            | "Read" >> beam.FlatMap(read_rows, args.key)
            | "Predict" >> RunInference(handler)
            | "Format" >> beam.MapTuple(as_line)
            | "Write"
            >> beam.io.WriteToText(
                output,
                shard_name_template="",
                header=",".join([args.key, *columns, PREDICTION]),
            )
        )
    print(f"Predictions: {output}")


def handlers(pattern):
    """The key that each of these files serves, and its handler. Nothing is loaded."""
    [found] = FileSystems.match([pattern])
    if not found.metadata_list:
        raise FileNotFoundError(f"No model's file matches {pattern!r}.")
    for file in found.metadata_list:
        yield PurePath(file.path).stem, SklearnModelHandlerPandas(model_uri=file.path)


def read_rows(path, key):
    """The rows of a CSV file: the key of each, and the rest as a data frame."""
    with FileSystems.open(path) as file:
        for chunk in pd.read_csv(file, dtype={key: str}, chunksize=10_000):
            keys = chunk.pop(key)
            for i in range(len(chunk)):
                yield keys.iloc[i], chunk.iloc[[i]]


def as_line(key, result):
    """A line of CSV: the row that went in, and the prediction of its key's model."""
    row = result.example.assign(**{PREDICTION: result.inference})
    row.insert(0, "key", key)
    return row.to_csv(header=False, index=False).rstrip("\r\n")


def age_bands(patients):
    return pd.cut(patients.age, [0, 40, 60, 120], labels=["young", "middle", "old"])


def write_patients():
    """Writes the held-out patients as a CSV file, with bands of age; gives its path."""
    patients, _ = samples.held_out_diabetes()
    path = os.path.join(tempfile.mkdtemp(prefix="patients-"), "patients.csv")
    patients.assign(age_band=age_bands(patients)).to_csv(path, index=False)
    return path


def train_models():
    """Trains a model on the other patients of each band of age; gives their pattern."""
    from sklearn.datasets import load_diabetes
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    patients, progression = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    patients = patients.drop(samples.held_out_diabetes()[0].index)
    folder = tempfile.mkdtemp(prefix="models-")
    for band, rows in patients.groupby(age_bands(patients), observed=True):
        model = make_pipeline(StandardScaler(), Ridge(10))
        model.fit(rows, progression[rows.index])
        with open(os.path.join(folder, f"{band}.pickle"), "wb") as file:
            pickle.dump(model, file)
    return os.path.join(folder, "*.pickle")


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input", help="CSV file with a header")
    parser.add_argument("--key", default="age_band", help="the column of the keys")
    parser.add_argument(
        "--models",
        help="pattern of scikit-learn estimators, pickle files named for keys",
    )
    parser.add_argument(
        "--output", help="CSV file to write; by default in a temporary folder"
    )
    parser.add_argument(
        "--max_models",
        type=int,
        help="how many models a process holds at a time; by default all",
    )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
