"""Classify images with a cheap model, and with an expensive one if it is unsure.

    python examples/cascade.py \\
        --input images.csv --sample sample.csv --output digits --agreement 0.95 \\
        --cheap_model cheap.pickle --expensive_model expensive.joblib

Without arguments, a logistic regression classifies handwritten digits, and a random
forest classifies those that the regression is unsure about. A sample determines how
confident the regression must be.
"""

import argparse
import json
import os
import tempfile
from functools import partial

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from runinference import KeyedModelHandler, samples
from runinference.cascade import Cascade, learn_cascade, max_probability, same_class
from runinference.sklearn_inference import ModelFileType, SklearnModelHandlerNumpy


def run(argv=None):
    """Learn the threshold and run the pipeline. Each image is keyed by its number."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    output = args.output or os.path.join(tempfile.mkdtemp(prefix="digits-"), "digits")
    cheap = SklearnModelHandlerNumpy(
        model_uri=args.cheap_model or samples.digits_classifier(),
        inference_fn=probabilities,
    )
    expensive_model = args.expensive_model or samples.digits_forest()
    expensive = SklearnModelHandlerNumpy(
        model_uri=expensive_model,
        model_file_type=ModelFileType.JOBLIB,
        inference_fn=probabilities,
    )
    digits, _ = samples.held_out_digits()
    threshold = learn_cascade(
        cheap,
        expensive,
        read_images(args.sample) if args.sample else digits[:400],
        confidence=max_probability,
        agrees=same_class,
        agreement=args.agreement,
    )
    print(threshold)
    images = read_images(args.input) if args.input else digits[400:]
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Images" >> beam.Create(enumerate(images))
            | "Classify"
            >> Cascade(
                KeyedModelHandler(cheap), KeyedModelHandler(expensive), threshold
            )
            | "Answer"
            >> beam.MapTuple(partial(answer, expensive_model=expensive_model))
            | "Format" >> beam.Map(json.dumps)
            | "Write" >> beam.io.WriteToText(output, ".jsonl", shard_name_template="")
        )
    print(f"Answers: {output}.jsonl")


def probabilities(model, batch, inference_args=None):
    """Return ten class probabilities per image instead of a label."""
    return model.predict_proba(np.stack(batch))


def answer(key, result, expensive_model):
    """Return the prediction for an image as a dictionary."""
    return {
        "image": key,
        "digit": int(result.inference.argmax()),
        "probability": round(float(result.inference.max()), 3),
        "model": "expensive" if result.model_id == expensive_model else "cheap",
    }


def read_images(path):
    """Read images from a text file, one per line."""
    return np.loadtxt(path, delimiter=",", ndmin=2)


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--input",
        help="text file, one image per line: 64 comma-separated pixels (0 to 16)",
    )
    parser.add_argument(
        "--sample",
        help="text file with other images, from which the threshold is learned",
    )
    parser.add_argument(
        "--output",
        help="output file without .jsonl; default: a temporary folder",
    )
    parser.add_argument("--cheap_model", help="pickled scikit-learn classifier")
    parser.add_argument(
        "--expensive_model", help="scikit-learn classifier saved with joblib"
    )
    parser.add_argument(
        "--agreement",
        type=float,
        default=0.95,
        help="requested rate at which the models agree on the cheap answers",
    )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
