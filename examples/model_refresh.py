"""A stream whose model is replaced while it flows: new files of a folder take over.

    python examples/model_refresh.py \\
        --input images.csv --output answers --model_path models/monday.pickle \\
        --watch 'models/*.pickle' --interval 60

Without arguments, handwritten digits are read with a model that was trained on 30 of
them. At the 300th digit, a model that was trained on 1,000 appears beside its file.
"""

import argparse
import json
import os
import pickle
import shutil
import tempfile

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.periodicsequence import PeriodicImpulse, RebaseMode
from runinference import KeyedModelHandler, RunInference, samples
from runinference.sklearn_inference import SklearnModelHandlerNumpy


def run(argv=None):
    """Runs the pipeline; each answer says which model gave it."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", "--streaming", *pipeline_args])
    output = args.output or os.path.join(tempfile.mkdtemp(prefix="answers-"), "answers")
    images = np.loadtxt(args.input or write_digits(), delimiter=",", ndmin=2)
    seconds = len(images) / args.rate
    model_path = args.model_path or train_early_model()
    folder = os.path.dirname(model_path)
    with beam.Pipeline(options=options) as pipeline:
        # Yours is an unbounded source, such as ReadFromPubSub or ReadFromKafka.
        scans = pipeline | "Replay" >> PeriodicImpulse(
            0,
            seconds,
            1 / args.rate,
            data=list(enumerate(images)),
            rebase=RebaseMode.REBASE_ALL,
        )
        if not args.model_path:
            scans |= "Train meanwhile" >> beam.Map(replace_model, folder)
        _ = (
            scans
            | "Predict"
            >> RunInference(
                KeyedModelHandler(SklearnModelHandlerNumpy(model_uri=model_path)),
                watch_model_pattern=args.watch or os.path.join(folder, "*.pickle"),
                interval=args.interval,
            )
            | "Format" >> beam.MapTuple(as_json)
            | "Write"
            >> beam.io.WriteToText(
                output, ".jsonl", num_shards=1, triggering_frequency=args.every
            )
        )
    print(f"Answers, a file for every {args.every} seconds: {output}-*.jsonl")


def as_json(key, result):
    """A line: the number of the image, what it shows, and the file of the model."""
    return json.dumps(
        {
            "image": key,
            "digit": int(result.inference),
            "model": os.path.basename(result.model_id),
        }
    )


def train_early_model():
    """Trains a model on few digits; gives its path, in a folder of its own."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    images, labels = load_digits(return_X_y=True)
    path = os.path.join(tempfile.mkdtemp(prefix="models-"), "early.pickle")
    with open(path, "wb") as file:
        pickle.dump(
            LogisticRegression(max_iter=2000).fit(images[:30], labels[:30]), file
        )
    return path


def replace_model(element, folder):
    """Stands in for training: with the 300th image, a better model is there."""
    if element[0] == 300:
        unfinished = shutil.copy(samples.digits_classifier(), f"{folder}/unfinished")
        os.rename(unfinished, f"{folder}/late.pickle")
    return element


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
        help="how the files to write begin; by default in a temporary folder",
    )
    parser.add_argument(
        "--every", type=int, default=2, help="seconds that a file covers"
    )
    parser.add_argument(
        "--model_path", help="scikit-learn classifier, a pickle file, to begin with"
    )
    parser.add_argument(
        "--watch",
        help="pattern of the models that replace it; by default pickle files beside it",
    )
    parser.add_argument(
        "--interval", type=float, default=1, help="seconds from one look to the next"
    )
    parser.add_argument(
        "--rate", type=float, default=80, help="images replayed a second"
    )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
