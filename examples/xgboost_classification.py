"""Add a class and its probability to each row of a CSV file with an XGBoost model.

    python examples/xgboost_classification.py \\
        --input tumors.csv --output classified.csv --model_path model.ubj

Without arguments, the example trains a model and classifies held-out tumors as
malignant or benign.
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
    """Run the pipeline. Each element is a DataFrame of many rows."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    folder = tempfile.mkdtemp(prefix="classified-")
    if not args.model_path:
        train(folder)
    path = args.input or os.path.join(folder, "tumors.csv")
    output = args.output or os.path.join(folder, "classified.csv")
    handler = XGBoostModelHandlerPandas(
        model_class=xgboost.Booster,
        model_state=args.model_path or os.path.join(folder, "tumors.ubj"),
    )
    handler = handler.with_no_batching(whole_results=True)  # one result per DataFrame
    with FileSystems.open(path) as file:
        columns = list(pd.read_csv(file, nrows=0).columns)
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Path" >> beam.Create([path])
            | "Read" >> beam.FlatMap(read_chunks)
            | "Classify" >> RunInference(handler)
            | "Format" >> beam.Map(as_lines)
            | "Write"
            >> beam.io.WriteToText(
                output, shard_name_template="", header=",".join([*columns, *COLUMNS])
            )
        )
    print(f"Classified: {output}")


def read_chunks(path):
    """Yield the rows of a CSV file in DataFrames of up to 10,000 rows."""
    with FileSystems.open(path) as file:
        yield from pd.read_csv(file, chunksize=10_000)


def as_lines(result):
    """Format rows, their classes and the probabilities as lines of CSV."""
    scores = result.inference  # the probability of class 1, or of each class
    if scores.ndim == 1:
        scores = np.column_stack([1 - scores, scores])
    rows = result.example.assign(
        predicted=scores.argmax(axis=1), probability=scores.max(axis=1)
    )
    return rows.to_csv(header=False, index=False).rstrip("\r\n")


def train(folder):
    """Write a trained model and the held-out tumors to a folder."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    tumors, labels = load_breast_cancer(return_X_y=True, as_frame=True)
    train_rows, test_rows, labels, _ = train_test_split(tumors, labels, random_state=0)
    model = xgboost.XGBClassifier(n_estimators=30, n_jobs=1, random_state=0)
    model.fit(train_rows, labels).save_model(os.path.join(folder, "tumors.ubj"))
    test_rows.to_csv(os.path.join(folder, "tumors.csv"), index=False)


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input", help="CSV file with the model's columns, in order")
    parser.add_argument(
        "--output", help="output CSV file; default: in a temporary folder"
    )
    parser.add_argument("--model_path", help="classifier saved with save_model")
    args, pipeline_args = parser.parse_known_args(argv)
    if bool(args.model_path) != bool(args.input):
        parser.error("Set --input and --model_path together.")
    return args, pipeline_args


if __name__ == "__main__":
    run()
