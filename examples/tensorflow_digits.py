"""Classify handwritten digits with a Keras model.

    python examples/tensorflow_digits.py \\
        --input digits.csv --output predictions.csv --model_path model.keras

Each line of the input is a label and 64 pixels from 0 to 16. Without arguments, the
example trains a small network on 1,000 of scikit-learn's digits and classifies the
other 797.
"""

import argparse
import os
import tempfile

import apache_beam as beam
import keras
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from runinference import KeyedModelHandler, RunInference, samples
from runinference.tensorflow_inference import TFModelHandlerNumpy
from sklearn.datasets import load_digits


def run(argv=None):
    """Run the pipeline. The label at the start of each line is its key."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    folder = tempfile.mkdtemp(prefix="digits-")
    output = args.output or os.path.join(folder, "predictions.csv")
    handler = TFModelHandlerNumpy(args.model_path or train(folder))
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Read" >> beam.io.ReadFromText(args.input or write_digits(folder))
            | "Parse" >> beam.Map(as_keyed_pixels)
            | "Classify" >> RunInference(KeyedModelHandler(handler))
            | "Format" >> beam.MapTuple(as_line)
            | "Write" >> beam.io.WriteToText(output, shard_name_template="")
        )
    labels, predictions = np.loadtxt(output, delimiter=",", dtype=int, ndmin=2).T
    print(f"Predictions: {output}")
    print(f"Accuracy: {np.mean(labels == predictions):.1%} of {len(labels)} digits")


def as_keyed_pixels(line):
    """Return the label of a line and its pixels, scaled to 0 to 1."""
    label, *pixels = line.split(",")
    return int(label), np.array(pixels, np.float32) / 16


def as_line(label, result):
    """Format the label and the predicted digit as a line of CSV."""
    return f"{label},{np.argmax(result.inference)}"


def train(folder):
    """Train a network with one hidden layer and return the path of its .keras file."""
    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images[:1000] / 16, labels[:1000], batch_size=32, epochs=30, verbose=0)
    path = os.path.join(folder, "digits.keras")
    model.save(path)
    return path


def write_digits(folder):
    """Write the held-out digits to a CSV file and return its path."""
    images, labels = samples.held_out_digits()
    path = os.path.join(folder, "digits.csv")
    np.savetxt(path, np.column_stack([labels, images]), fmt="%d", delimiter=",")
    return path


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--input",
        help="CSV file, one image per line: a label and 64 pixels from 0 to 16",
    )
    parser.add_argument("--output", help="output file; default: in a temporary folder")
    parser.add_argument(
        "--model_path",
        help=".keras file or SavedModel: 64 pixels from 0 to 1 in, 10 scores out",
    )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
