"""Cascade two models: the second only processes images that the first is unsure about.

    python examples/cascade.py \\
        --input images.csv --output digits --quick_model quick.pickle \\
        --thorough_model thorough.joblib --sure 0.9

Without arguments, a logistic regression classifies handwritten digits, and a random
forest reclassifies the ones with a low probability.
"""

import argparse
import json
import os
import tempfile

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from runinference import KeyedModelHandler, RunInference, samples
from runinference.sklearn_inference import ModelFileType, SklearnModelHandlerNumpy


def run(argv=None):
    """Run the pipeline. Each image is keyed by its line number."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    output = args.output or os.path.join(tempfile.mkdtemp(prefix="digits-"), "digits")
    quick = SklearnModelHandlerNumpy(
        model_uri=args.quick_model or samples.digits_classifier(),
        inference_fn=probabilities,
    )
    thorough = SklearnModelHandlerNumpy(
        model_uri=args.thorough_model or samples.digits_forest(),
        model_file_type=ModelFileType.JOBLIB,
        inference_fn=probabilities,
    )
    images = np.loadtxt(args.input or write_digits(), delimiter=",", ndmin=2)
    with beam.Pipeline(options=options) as pipeline:
        sure, unsure = (
            pipeline
            | "Images" >> beam.Create(enumerate(images))
            | "Quick model" >> RunInference(KeyedModelHandler(quick))
            | "Route"
            >> beam.FlatMapTuple(route, args.sure).with_outputs("unsure", main="sure")
        )
        reclassified = (
            unsure
            | "Thorough model" >> RunInference(KeyedModelHandler(thorough))
            | "Thorough answers" >> beam.MapTuple(answer)
        )
        _ = (
            (sure, reclassified)
            | "All answers" >> beam.Flatten()
            | "Format" >> beam.Map(json.dumps)
            | "Write" >> beam.io.WriteToText(output, ".jsonl", shard_name_template="")
        )
    print(f"Answers: {output}.jsonl")


def probabilities(model, batch, inference_args=None):
    """Return ten class probabilities per image instead of a label."""
    return model.predict_proba(np.stack(batch))


def route(key, result, sure=0.9):
    """Yield the answer if the model is sure, otherwise yield the image."""
    if result.inference.max() >= sure:
        yield answer(key, result, "quick")
    else:
        yield beam.pvalue.TaggedOutput("unsure", (key, result.example))


def answer(key, result, model="thorough"):
    """Return the prediction for an image as a dictionary."""
    return {
        "image": key,
        "digit": int(result.inference.argmax()),
        "probability": round(float(result.inference.max()), 3),
        "model": model,
    }


def write_digits():
    """Write the held-out digits to a text file and return its path."""
    path = os.path.join(tempfile.mkdtemp(prefix="images-"), "images.csv")
    np.savetxt(path, samples.held_out_digits()[0], fmt="%d", delimiter=",")
    return path


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--input",
        help="text file, one image per line: 64 comma-separated pixels (0 to 16)",
    )
    parser.add_argument(
        "--output",
        help="output file without .jsonl; default: a temporary folder",
    )
    parser.add_argument("--quick_model", help="pickled scikit-learn classifier")
    parser.add_argument(
        "--thorough_model", help="scikit-learn classifier saved with joblib"
    )
    parser.add_argument(
        "--sure",
        type=float,
        default=0.9,
        help="minimum probability to accept the quick model's answer",
    )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
