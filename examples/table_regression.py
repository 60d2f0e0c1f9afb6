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
from apache_beam.dataframe.convert import to_pcollection
from apache_beam.dataframe.io import read_csv
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from runinference import RunInference, samples
from runinference.sklearn_inference import ModelFileType, SklearnModelHandlerPandas

PREDICTION = "prediction"


def run(argv=None):
    """Run the pipeline. Each element is a DataFrame with many rows of the file."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    path = args.input or write_patients()
    output = args.output or os.path.join(
        tempfile.mkdtemp(prefix="predicted-"), "predicted.csv"
    )
    handler = SklearnModelHandlerPandas(
        model_uri=args.model_path or samples.diabetes_regressor(),
        model_file_type=ModelFileType[args.model_file_type],
    ).with_no_batching(whole_results=True)
    with FileSystems.open(path) as file:
        header = pd.read_csv(file, nrows=0).assign(**{PREDICTION: []})
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Read" >> ReadFrames(path, args.chunk_size)
            | "Predict" >> RunInference(handler)
            | "Format" >> beam.Map(format_rows)
            | "Write"
            >> beam.io.WriteToText(
                output,
                shard_name_template="",
                header=header.to_csv(index=False).rstrip("\r\n"),
            )
        )
    print(f"Predictions: {output}")


class ReadFrames(beam.PTransform):
    """Read a CSV file as DataFrames with up to ``chunk_size`` rows."""

    def __init__(self, path, chunk_size):
        super().__init__()
        self.path = path
        self.chunk_size = chunk_size

    def expand(self, pipeline):
        table = pipeline | read_csv(self.path, chunksize=self.chunk_size)
        return to_pcollection(table, yield_elements="pandas")


def format_rows(result):
    """Format the rows of a frame and their predictions as lines of CSV."""
    rows = result.example.assign(**{PREDICTION: result.inference})
    return rows.to_csv(header=False, index=False).rstrip("\r\n")


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
        "--model_path", help="scikit-learn estimator trained on DataFrames"
    )
    parser.add_argument(
        "--model_file_type",
        choices=["PICKLE", "JOBLIB"],
        default="PICKLE",
        help="file format of the model",
    )
    parser.add_argument(
        "--chunk_size",
        type=int,
        default=10_000,
        help="maximum number of rows per frame",
    )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
