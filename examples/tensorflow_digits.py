"""Reads handwritten digits with a Keras model, and writes what each was read as.

    python examples/tensorflow_digits.py \\
        --input digits.csv --output read.csv --model_path model.keras

A line of the input is a number and 64 pixels from 0 to 16. Without arguments it trains
a small network on 1,000 of scikit-learn's digits, and reads the other 797.
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
    """Runs the pipeline; the number at the beginning of each line is its key."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    folder = tempfile.mkdtemp(prefix="digits-")
    output = args.output or os.path.join(folder, "read.csv")
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
    truth, read = np.loadtxt(output, delimiter=",", dtype=int, ndmin=2).T
    print(f"Predictions: {output}")
    print(f"{np.mean(truth == read):.1%} of {len(truth)} were read as their number")


def as_keyed_pixels(line):
    """The number at the beginning of a line, and the pixels after it, from 0 to 1."""
    number, *pixels = line.split(",")
    return int(number), np.array(pixels, np.float32) / 16


def as_line(number, result):
    """A line of the output: the number of the line, and what the model reads."""
    return f"{number},{np.argmax(result.inference)}"


def train(folder):
    """Trains a network of one hidden layer; gives the path of its .keras file."""
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
    """Writes the held-out digits as lines; gives the path of the file."""
    images, labels = samples.held_out_digits()
    path = os.path.join(folder, "digits.csv")
    np.savetxt(path, np.column_stack([labels, images]), fmt="%d", delimiter=",")
    return path


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--input", help="file of lines: a number, then 64 pixels from 0 to 16"
    )
    parser.add_argument(
        "--output", help="file to write; by default in a temporary folder"
    )
    parser.add_argument(
        "--model_path",
        help=".keras file or SavedModel: 64 pixels from 0 to 1 in, ten scores out",
    )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
