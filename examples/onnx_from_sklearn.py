"""Compare a scikit-learn model with its ONNX export, row by row.

    python examples/onnx_from_sklearn.py --input rows.csv --output answers.csv \\
        --original_path model.pickle --model_path model.onnx

Without arguments, the example trains a classifier for three kinds of wine, exports it
with skl2onnx, and compares the two models on held-out wines.
"""

import argparse
import csv
import pickle
import tempfile
from pathlib import Path

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from runinference import KeyedModelHandler, RunInference
from runinference.onnx_inference import OnnxModelHandlerNumpy
from runinference.sklearn_inference import SklearnModelHandlerNumpy

COLUMNS = ["row", "label", "original_label", "difference"]


def run(argv=None):
    """Run the pipeline. Row numbers are the keys that join both results."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    folder = Path(tempfile.mkdtemp(prefix="onnx-"))
    if not args.model_path:
        train_and_export(folder)
    exported = OnnxModelHandlerNumpy(
        model_uri=args.model_path or str(folder / "wine.onnx"),
        output_names=["label", "probabilities"],
    )
    original = SklearnModelHandlerNumpy(
        model_uri=args.original_path or str(folder / "wine.pickle"),
        inference_fn=labels_and_probabilities,
    )
    output = args.output or str(folder / "answers.csv")
    with beam.Pipeline(options=options) as pipeline:
        rows = (
            pipeline
            | "Path" >> beam.Create([args.input or str(folder / "wine.csv")])
            | "Read" >> beam.FlatMap(read_rows)
        )
        answers = {
            "onnx": rows | "Run ONNX" >> RunInference(KeyedModelHandler(exported)),
            "original": rows
            | "Run scikit-learn" >> RunInference(KeyedModelHandler(original)),
        }
        compared = (
            answers | "Join" >> beam.CoGroupByKey() | "Compare" >> beam.Map(compare)
        )
        _ = (
            compared
            | "Format" >> beam.Map(lambda line: ",".join(map(str, line)))
            | "Write"
            >> beam.io.WriteToText(
                output, shard_name_template="", header=",".join(COLUMNS)
            )
        )
        _ = (
            compared
            | "Collect" >> beam.combiners.ToList()
            | "Summarize" >> beam.Map(summarize)
            | "Print" >> beam.Map(print)
        )
    print(f"Answers: {output}")


def labels_and_probabilities(model, batch, inference_args=None):
    """Return labels and probabilities under the names of the ONNX outputs."""
    rows = np.stack(batch)
    return {"label": model.predict(rows), "probabilities": model.predict_proba(rows)}


def compare(answers):
    """Return the row number, both labels and the maximum probability difference."""
    number, by_model = answers
    [onnx] = [result.inference for result in by_model["onnx"]]
    [original] = [result.inference for result in by_model["original"]]
    difference = np.abs(onnx["probabilities"] - original["probabilities"]).max()
    return number, onnx["label"], original["label"], f"{difference:.1e}"


def summarize(lines):
    """Return one sentence about all rows."""
    same = sum(label == original for _, label, original, _ in lines)
    max_difference = max(float(difference) for *_, difference in lines)
    return (
        f"{same} of {len(lines)} labels are the same; "
        f"probabilities differ by {max_difference:.0e} at most"
    )


def read_rows(path):
    """Yield each row of a numeric CSV file as an array, keyed by row number."""
    with FileSystems.open(path) as file:
        lines = csv.reader(file.read().decode("utf-8").splitlines())
    next(lines)  # skip the header
    for number, line in enumerate(lines):
        yield number, np.array(line, np.float64)


def train_and_export(folder):
    """Write a trained model as pickle and as ONNX, and held-out wines as CSV."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_wine
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    wines = load_wine()
    seen, unseen, kinds, _ = train_test_split(wines.data, wines.target, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(seen, kinds)
    (folder / "wine.pickle").write_bytes(pickle.dumps(model))
    exported = to_onnx(model, seen[:1].astype(np.float32), options={"zipmap": False})
    (folder / "wine.onnx").write_bytes(exported.SerializeToString())
    header = ",".join(name.replace(" ", "_") for name in wines.feature_names)
    np.savetxt(
        folder / "wine.csv",
        unseen,
        delimiter=",",
        header=header,
        comments="",
        fmt="%.17g",
    )


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input", help="numeric CSV file with a header")
    parser.add_argument(
        "--output", help="output CSV file; default: in a temporary folder"
    )
    parser.add_argument(
        "--model_path", help="classifier in ONNX format, exported without zipmap"
    )
    parser.add_argument(
        "--original_path",
        help="the same classifier as a pickle file from a trusted source",
    )
    args, pipeline_args = parser.parse_known_args(argv)
    if bool(args.model_path) != bool(args.original_path) or bool(
        args.model_path
    ) != bool(args.input):
        parser.error("Set --input, --model_path and --original_path together.")
    return args, pipeline_args


if __name__ == "__main__":
    run()
