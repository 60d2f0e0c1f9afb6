"""Two models in a row: the second is asked only about what the first is unsure of.

    python examples/cascade.py \\
        --input images.csv --output digits --quick_model quick.pickle \\
        --thorough_model thorough.joblib --sure 0.9

Without arguments, a logistic regression reads handwritten digits, and a forest of trees
reads those again that left it in doubt.
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
    """Runs the pipeline; the number of its line is the key of each image."""
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
        read_again = (
            unsure
            | "Thorough model" >> RunInference(KeyedModelHandler(thorough))
            | "Thorough answer" >> beam.MapTuple(answer)
        )
        _ = (
            (sure, read_again)
            | "All answers" >> beam.Flatten()
            | "Format" >> beam.Map(json.dumps)
            | "Write" >> beam.io.WriteToText(output, ".jsonl", shard_name_template="")
        )
    print(f"Answers: {output}.jsonl")


def probabilities(model, batch, inference_args=None):
    """What the handlers give for each image: ten probabilities, in place of a digit."""
    return model.predict_proba(np.stack(batch))


def route(key, result, sure=0.9):
    """The answer where the model is sure of it; else the image, for the other model."""
    if result.inference.max() >= sure:
        yield answer(key, result, "quick")
    else:
        yield beam.pvalue.TaggedOutput("unsure", (key, result.example))


def answer(key, result, model="thorough"):
    """An element of the output."""
    return {
        "image": key,
        "digit": int(result.inference.argmax()),
        "probability": round(float(result.inference.max()), 3),
        "model": model,
    }


def write_digits():
    """Writes the held-out digits to a text file; gives its path."""
    path = os.path.join(tempfile.mkdtemp(prefix="images-"), "images.csv")
    np.savetxt(path, samples.held_out_digits()[0], fmt="%d", delimiter=",")
    return path


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--input", help="text file, one image a line: 64 pixels (0 to 16), by commas"
    )
    parser.add_argument(
        "--output",
        help="file to write, without its ending .jsonl; by default in a new folder",
    )
    parser.add_argument("--quick_model", help="scikit-learn classifier, a pickle file")
    parser.add_argument(
        "--thorough_model", help="scikit-learn classifier, a joblib file"
    )
    parser.add_argument(
        "--sure",
        type=float,
        default=0.9,
        help="the probability from which the quick model's answer counts",
    )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
