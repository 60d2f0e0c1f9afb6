"""Add a column of predictions to a CSV file with a scikit-learn model.

    python examples/table_regression.py \\
        --input patients.csv --output predicted.csv --model_path model.pickle

Without arguments, the example predicts disease progression for held-out diabetes
patients.
"""

import argparse
import os
import tempfile

import apache_beam as beam
import pandas as pd
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from runinference import RunInference, samples
from runinference.sklearn_inference import ModelFileType, SklearnModelHandlerPandas

PREDICTION = "prediction"


def run(argv=None):
    """Run the pipeline. Each row of the file becomes a one-row data frame."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    path = args.input or write_patients()
    output = args.output or os.path.join(
        tempfile.mkdtemp(prefix="predicted-"), "predicted.csv"
    )
    handler = SklearnModelHandlerPandas(
        model_uri=args.model_path or samples.diabetes_regressor(),
        model_file_type=ModelFileType[args.model_file_type],
    )
    with FileSystems.open(path) as file:
        columns = pd.read_csv(file, nrows=0).columns
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Path" >> beam.Create([path])
            | "Read" >> beam.FlatMap(read_rows)
            | "Predict" >> RunInference(handler)
            | "Format" >> beam.Map(as_line)
            | "Write"
            >> beam.io.WriteToText(
                output, shard_name_template="", header=",".join([*columns, PREDICTION])
            )
        )
    print(f"Predictions: {output}")


def read_rows(path):
    """Yield each row of a CSV file as a one-row data frame."""
    with FileSystems.open(path) as file:
        for chunk in pd.read_csv(file, chunksize=10_000):
            for i in range(len(chunk)):
                yield chunk.iloc[[i]]


def as_line(result):
    """Format a row and its prediction as a line of CSV."""
    row = result.example.assign(**{PREDICTION: result.inference})
    return row.to_csv(header=False, index=False).rstrip("\r\n")


def write_patients():
    """Write the held-out patients and their true progression to a CSV file."""
    patients, progression = samples.held_out_diabetes()
    path = os.path.join(tempfile.mkdtemp(prefix="patients-"), "patients.csv")
    patients.assign(progression=progression).to_csv(path, index=False)
    return path


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--input",
        help="CSV file with a header that includes the model's columns",
    )
    parser.add_argument(
        "--output",
        help="output CSV file; default: in a temporary folder",
    )
    parser.add_argument(
        "--model_path", help="scikit-learn estimator trained on data frames"
    )
    parser.add_argument(
        "--model_file_type",
        choices=["PICKLE", "JOBLIB"],
        default="PICKLE",
        help="file format of the model",
    )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
