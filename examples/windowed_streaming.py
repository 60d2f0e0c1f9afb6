"""Monitor the confidence of a model in a streaming pipeline, in fixed windows.

    python examples/windowed_streaming.py \\
        --input scans.csv --output certainty --model_path model.pickle --window 60

Each prediction keeps the event time of its element, so predictions are windowed by the
time of their scan. The output has one file per window. Without arguments, the example
replays a log of 797 scanned digits. The second half gets increasingly noisy, as if the
lens of the scanner got dirty.
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
    """Run the pipeline. The output has one line per window."""
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
            # In production, read from a source with timestamps, such as ReadFromPubSub.
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
    print(f"Window start, scans, mean certainty: {output}/*.csv")


def probabilities(model, batch, inference_args=None):
    """Return ten class probabilities per image instead of a label."""
    return model.predict_proba(np.stack(batch))


def as_line(count_and_mean, window=beam.DoFn.WindowParam):
    """Format the window start, the count and the mean as a line of CSV."""
    count, mean = count_and_mean
    return f"{window.start.to_rfc3339()},{count},{mean:.3f}"


def read_scans(path):
    """Return the rows of the log with their timestamps, as a streaming source would."""
    table = np.loadtxt(path, delimiter=",", ndmin=2)
    return [(Timestamp(seconds), image) for seconds, *image in table]


def write_scans():
    """Write the held-out digits as a log, one per second, and return its path."""
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
        help="CSV file, one scan per line: Unix time, then 64 pixels (0 to 16)",
    )
    parser.add_argument("--output", help="output folder; default: a temporary folder")
    parser.add_argument("--model_path", help="pickled scikit-learn classifier")
    parser.add_argument(
        "--rate", type=float, default=200, help="scans replayed per second"
    )
    parser.add_argument(
        "--window", type=float, default=60, help="window size in seconds"
    )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
