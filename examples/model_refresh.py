"""Update the model of a streaming pipeline when a new model file appears.

    python examples/model_refresh.py \\
        --input images.csv --output answers --model_path models/monday.pickle \\
        --watch 'models/*.pickle' --interval 60

Without arguments, the pipeline classifies handwritten digits with a model that was
trained on 30 images. At the 300th digit, a model that was trained on 1,000 images is
written to the same folder.
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
    """Run the pipeline. Each output line names the model that made the prediction."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", "--streaming", *pipeline_args])
    output = args.output or os.path.join(tempfile.mkdtemp(prefix="answers-"), "answers")
    images = np.loadtxt(args.input or write_digits(), delimiter=",", ndmin=2)
    seconds = len(images) / args.rate
    model_path = args.model_path or train_early_model()
    folder = os.path.dirname(model_path)
    with beam.Pipeline(options=options) as pipeline:
        # In production, read from an unbounded source, such as ReadFromPubSub.
        scans = pipeline | "Replay" >> PeriodicImpulse(
            0,
            seconds,
            1 / args.rate,
            data=list(enumerate(images)),
            rebase=RebaseMode.REBASE_ALL,
        )
        if not args.model_path:
            scans |= "Train new model" >> beam.Map(replace_model, folder)
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
    print(f"Answers, one file every {args.every} seconds: {output}-*.jsonl")


def as_json(key, result):
    """Format the image number, the digit and the model file as a line of JSON."""
    return json.dumps(
        {
            "image": key,
            "digit": int(result.inference),
            "model": os.path.basename(result.model_id),
        }
    )


def train_early_model():
    """Train a model on 30 digits and return its path in a new folder."""
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
    """Simulate training: write a better model to the folder at the 300th image."""
    if element[0] == 300:
        partial = shutil.copy(samples.digits_classifier(), f"{folder}/partial")
        os.rename(partial, f"{folder}/late.pickle")
    return element


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
        help="output file prefix; default: in a temporary folder",
    )
    parser.add_argument("--every", type=int, default=2, help="seconds per output file")
    parser.add_argument(
        "--model_path", help="pickled scikit-learn classifier to start with"
    )
    parser.add_argument(
        "--watch",
        help="file pattern of new models; default: *.pickle next to model_path",
    )
    parser.add_argument(
        "--interval",
        type=float,
        default=1,
        help="seconds between checks for new models",
    )
    parser.add_argument(
        "--rate", type=float, default=80, help="images replayed per second"
    )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
