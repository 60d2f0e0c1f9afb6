"""Classify the rows of a CSV file, and write labels and probabilities to Parquet files.

    python examples/csv_to_parquet.py \\
        --input patients.csv --output predicted --model_path model.pickle

Without arguments, the example predicts for diabetes patients whether their disease
progresses fast.
"""

import argparse
import glob
import os
import pickle
import tempfile

import apache_beam as beam
import pandas as pd
from apache_beam.options.pipeline_options import PipelineOptions
from runinference import RunInference
from runinference.sklearn_inference import SklearnModelHandlerPandas
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler


def run(argv=None):
    """Run the pipeline. Each element is a row of the file."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    folder = tempfile.mkdtemp(prefix="patients-")
    output = args.output or os.path.join(folder, "predicted")
    handler = SklearnModelHandlerPandas(args.model_path or train(folder))
    infer = RunInference(
        handler, keep=args.keep, output="label", probabilities="probability_{}"
    )
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Read" >> beam.io.ReadFromCsv(args.input or write_patients(folder))
            | "Classify" >> infer
            | "Write" >> beam.io.WriteToParquet(output, file_name_suffix=".parquet")
        )
    table = pd.concat(map(pd.read_parquet, glob.glob(f"{output}-*.parquet")))
    print(table.sort_values(args.keep).head(3).to_string(index=False))


def read_patients():
    """Return patients, one of whose columns is text, and the speed of progression."""
    patients, progression = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    sex = patients["sex"].map({1.0: "female", 2.0: "male"})
    return patients.assign(sex=sex), (progression > 200).map(
        {True: "fast", False: "slow"}
    )


def train(folder):
    """Train a pipeline that encodes the text, and return the path of its file."""
    patients, speed = read_patients()
    numbers = ["age", "bmi", "bp"]
    columns = ColumnTransformer(
        [("sex", OneHotEncoder(), ["sex"]), ("numbers", StandardScaler(), numbers)]
    )
    model = make_pipeline(columns, LogisticRegression())
    model.fit(patients[["sex", *numbers]], speed)
    path = os.path.join(folder, "model.pickle")
    with open(path, "wb") as file:
        pickle.dump(model, file)
    return path


def write_patients(folder):
    """Write the patients to a CSV file, and return its path."""
    path = os.path.join(folder, "patients.csv")
    patients, _ = read_patients()
    patients.to_csv(path, index_label="patient")
    return path


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--input",
        help="CSV files with a header that includes the model's columns",
    )
    parser.add_argument(
        "--output",
        help="prefix of the Parquet files; default: in a temporary folder",
    )
    parser.add_argument(
        "--model_path",
        help="scikit-learn classifier trained on DataFrames, as a pickle",
    )
    parser.add_argument(
        "--keep",
        nargs="*",
        default=["patient"],
        help="columns to copy to the output",
    )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
