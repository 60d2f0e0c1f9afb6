"""Adds a class and its probability to the rows of a CSV file, with an XGBoost model.

    python examples/xgboost_classification.py \\
        --input tumours.csv --output classified.csv --model_path model.ubj

Without arguments it tells malignant tumours from benign ones, which the model was not
trained on.
"""

import argparse
import os
import tempfile

import apache_beam as beam
import numpy as np
import pandas as pd
import xgboost
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from runinference import RunInference
from runinference.xgboost_inference import XGBoostModelHandlerPandas

COLUMNS = ["predicted", "probability"]


def run(argv=None):
    """Runs the pipeline; each row of the file travels as a data frame of one row."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    folder = tempfile.mkdtemp(prefix="classified-")
    if not args.model_path:
        train(folder)
    path = args.input or os.path.join(folder, "tumours.csv")
    output = args.output or os.path.join(folder, "classified.csv")
    handler = XGBoostModelHandlerPandas(
        model_class=xgboost.Booster,
        model_state=args.model_path or os.path.join(folder, "tumours.ubj"),
    )
    with FileSystems.open(path) as file:
        columns = list(pd.read_csv(file, nrows=0).columns)
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Path" >> beam.Create([path])
            | "Read" >> beam.FlatMap(read_rows)
            | "Classify" >> RunInference(handler)
            | "Format" >> beam.Map(as_line)
            | "Write"
            >> beam.io.WriteToText(
                output, shard_name_template="", header=",".join([*columns, *COLUMNS])
            )
        )
    print(f"Classified: {output}")


def read_rows(path):
    """The rows of a CSV file, each as a data frame of one row."""
    with FileSystems.open(path) as file:
        for chunk in pd.read_csv(file, chunksize=10_000):
            for i in range(len(chunk)):
                yield chunk.iloc[[i]]


def as_line(result):
    """A line of CSV: the row, its most probable class, and how probable that is."""
    [said] = result.inference
    chances = np.array([1 - said, said]) if np.ndim(said) == 0 else said
    row = result.example.assign(predicted=chances.argmax(), probability=chances.max())
    return row.to_csv(header=False, index=False).rstrip("\r\n")


def train(folder):
    """Writes a trained model to a folder, with the tumours it has not seen as CSV."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    tumours, kinds = load_breast_cancer(return_X_y=True, as_frame=True)
    seen, unseen, kinds, _ = train_test_split(tumours, kinds, random_state=0)
    model = xgboost.XGBClassifier(n_estimators=30, n_jobs=1, random_state=0)
    model.fit(seen, kinds).save_model(os.path.join(folder, "tumours.ubj"))
    unseen.to_csv(os.path.join(folder, "tumours.csv"), index=False)


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input", help="CSV file with the model's columns, in order")
    parser.add_argument(
        "--output", help="CSV file to write; by default in a temporary folder"
    )
    parser.add_argument("--model_path", help="a classifier that save_model wrote")
    args, pipeline_args = parser.parse_known_args(argv)
    if bool(args.model_path) != bool(args.input):
        parser.error("--input and --model_path belong together")
    return args, pipeline_args


if __name__ == "__main__":
    run()
