"""Run a different scikit-learn model for each key of a CSV file.

    python examples/model_per_key.py \\
        --input patients.csv --key age_band --models 'models/*.pickle' \\
        --output predicted.csv --max_models 20

The output is the CSV file with a column of predictions. The name of each model file,
without its extension, is the key that the model serves. Without arguments, three models
predict disease progression in diabetes patients, one model per age band.
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
    """Run the pipeline. Each element is a key and a DataFrame with its rows."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    path = args.input or write_patients()
    output = args.output or os.path.join(
        tempfile.mkdtemp(prefix="predicted-"), "predicted.csv"
    )
    models = args.models or train_models()
    handler = KeyedModelHandler(
        [KeyModelMapping([key], model) for key, model in make_handlers(models)],
        max_models_per_worker_hint=args.max_models,
    )
    handler = handler.with_no_batching(whole_results=True)  # one result per DataFrame
    with FileSystems.open(path) as file:
        columns = pd.read_csv(file, nrows=0).columns.drop(args.key)
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Path" >> beam.Create([path])
            | "Read" >> beam.FlatMap(read_rows, args.key)
            | "Predict" >> RunInference(handler)
            | "Format" >> beam.MapTuple(as_lines)
            | "Write"
            >> beam.io.WriteToText(
                output,
                shard_name_template="",
                header=",".join([args.key, *columns, PREDICTION]),
            )
        )
    print(f"Predictions: {output}")


def make_handlers(pattern):
    """Yield the key and the handler of each model file. No model is loaded here."""
    [found] = FileSystems.match([pattern])
    if not found.metadata_list:
        raise FileNotFoundError(f"No model file matches {pattern!r}.")
    for file in found.metadata_list:
        yield PurePath(file.path).stem, SklearnModelHandlerPandas(model_uri=file.path)


def read_rows(path, key):
    """Yield each key of a CSV file with a DataFrame of up to 10,000 of its rows."""
    with FileSystems.open(path) as file:
        for chunk in pd.read_csv(file, dtype={key: str}, chunksize=10_000):
            for value, rows in chunk.groupby(key, dropna=False):
                yield value, rows.drop(columns=key)


def as_lines(key, result):
    """Format a key, its rows and their predictions as lines of CSV."""
    rows = result.example.assign(**{PREDICTION: result.inference})
    rows.insert(0, "key", key)
    return rows.to_csv(header=False, index=False).rstrip("\r\n")


def age_bands(patients):
    return pd.cut(patients.age, [0, 40, 60, 120], labels=["young", "middle", "old"])


def write_patients():
    """Write the held-out patients and their age bands to CSV and return the path."""
    patients, _ = samples.held_out_diabetes()
    path = os.path.join(tempfile.mkdtemp(prefix="patients-"), "patients.csv")
    patients.assign(age_band=age_bands(patients)).to_csv(path, index=False)
    return path


def train_models():
    """Train one model per age band on the other patients and return a file pattern."""
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
    parser.add_argument("--key", default="age_band", help="column that holds the keys")
    parser.add_argument(
        "--models",
        help="file pattern of pickled scikit-learn estimators, named after their keys",
    )
    parser.add_argument(
        "--output", help="output CSV file; default: in a temporary folder"
    )
    parser.add_argument(
        "--max_models",
        type=int,
        help="maximum number of models in memory per process; default: no limit",
    )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
