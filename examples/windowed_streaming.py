"""Watches a model at work in a stream: how sure it was, minute by minute.

    python examples/windowed_streaming.py \\
        --input scans.csv --output certainty --model_path model.pickle --window 60

A scanner reads digits. Each prediction keeps the time of its scan, so predictions fall
into the minutes of their scans, and each minute has its file. Without arguments, a log
of 797 scans is replayed; after half of them, the lens gets dirtier and dirtier.
"""

import argparse
import os
import tempfile

import apache_beam as beam
import numpy as np
from apache_beam.io import fileio
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import combiners
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.window import FixedWindows
from apache_beam.utils.timestamp import Timestamp
from runinference import RunInference, samples
from runinference.sklearn_inference import SklearnModelHandlerNumpy

COUNT_AND_MEAN = combiners.SingleInputTupleCombineFn(
    combiners.CountCombineFn(), combiners.MeanCombineFn()
)


def run(argv=None):
    """Runs the pipeline: scans, predictions, windows, and one line for each window."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", "--streaming", *pipeline_args])
    output = args.output or tempfile.mkdtemp(prefix="certainty-")
    scans = read_scans(args.input or write_scans())
    handler = SklearnModelHandlerNumpy(
        model_uri=args.model_path or samples.digits_classifier(),
        inference_fn=probabilities,
    )
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            # Yours is a source that knows times, such as ReadFromPubSub.
            | "Replay" >> PeriodicImpulse(data=scans, fire_interval=1 / args.rate)
            | "Predict" >> RunInference(handler)
            | "Certainty" >> beam.Map(lambda result: float(result.inference.max()))
            | "Windows" >> beam.WindowInto(FixedWindows(args.window))
            | "Combine" >> beam.CombineGlobally(COUNT_AND_MEAN).without_defaults()
            | "Format" >> beam.Map(as_line)
            | "Write"
            >> fileio.WriteToFiles(
                output,
                shards=1,
                file_naming=fileio.default_file_naming("certainty", ".csv"),
                sink=lambda destination: fileio.TextSink(),
            )
        )
    print(f"Start of window, scans, mean certainty: {output}/*.csv")


def probabilities(model, batch, inference_args=None):
    """What the handler gives for each image: ten probabilities, in place of a digit."""
    return model.predict_proba(np.stack(batch))


def as_line(count_and_mean, window=beam.DoFn.WindowParam):
    """A line of CSV. The window is that of the scans: predictions keep their time."""
    count, mean = count_and_mean
    return f"{window.start.to_rfc3339()},{count},{mean:.3f}"


def read_scans(path):
    """The rows of the log, each with its time: what the source of a stream gives."""
    table = np.loadtxt(path, delimiter=",", ndmin=2)
    return [(Timestamp(seconds), image) for seconds, *image in table]


def write_scans():
    """Writes the held-out digits as a log, one a second; gives its path."""
    images, _ = samples.held_out_digits()
    seconds = np.arange(len(images))
    noise = np.random.default_rng(0).normal(size=images.shape)
    noise *= np.maximum(seconds - 400, 0)[:, None] / 50
    eight_o_clock = Timestamp.from_rfc3339("2026-11-02T08:00:00Z").seconds()
    log = np.column_stack([eight_o_clock + seconds, np.clip(images + noise, 0, 16)])
    path = os.path.join(tempfile.mkdtemp(prefix="scans-"), "scans.csv")
    np.savetxt(path, log, fmt="%.1f", delimiter=",")
    return path


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--input",
        help="text file, one scan a line: seconds since 1970, and 64 pixels (0 to 16), "
        "by commas",
    )
    parser.add_argument("--output", help="folder to write; by default a temporary one")
    parser.add_argument("--model_path", help="scikit-learn classifier, a pickle file")
    parser.add_argument(
        "--rate", type=float, default=200, help="scans replayed a second"
    )
    parser.add_argument("--window", type=float, default=60, help="seconds of a window")
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
