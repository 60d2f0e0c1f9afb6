"""Compare two models on the same images in one pipeline (A/B test).

    python examples/ab_test.py

Model A is a logistic regression, and model B is a random forest. Both classify 797
held-out handwritten digits at ten noise levels. Each image has a key, which joins the
predictions of the two models.
"""

# ruff: noqa: E402
import argparse
import logging
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

# Hide the warning that Beam logs if its gcp extra is not installed.
logging.getLogger().setLevel(logging.ERROR)

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.shared import Shared
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from runinference import KeyedModelHandler, RunInference, samples
from runinference.sklearn_inference import ModelFileType, SklearnModelHandlerNumpy

NOISE_LEVELS = range(10)  # Standard deviations. Pixels range from 0 to 16.


def build_pipeline(pipeline, images, model_a, model_b, output, tally):
    """Classify every image with both models and write both predictions to a line."""
    handler_a = KeyedModelHandler(SklearnModelHandlerNumpy(model_uri=model_a))
    handler_b = KeyedModelHandler(
        SklearnModelHandlerNumpy(
            model_uri=model_b, model_file_type=ModelFileType.JOBLIB
        )
    )
    noisy = (
        pipeline
        | "Images" >> beam.Create(list(enumerate(images)))
        | "Add noise" >> beam.FlatMapTuple(add_noise)
    )
    a = (
        noisy
        | "Model A" >> RunInference(handler_a)
        | "Digit A" >> beam.Map(digit, tally)
    )
    b = (
        noisy
        | "Model B" >> RunInference(handler_b)
        | "Digit B" >> beam.Map(digit, tally)
    )
    _ = (
        {"a": a, "b": b}
        | "Compare" >> beam.CoGroupByKey()
        | "Format" >> beam.MapTuple(as_line)
        | "Write" >> beam.io.WriteToText(output, shard_name_template="")
    )


def add_noise(number, image):
    """Yield the image at each noise level, keyed by image number and noise level."""
    for level in NOISE_LEVELS:
        noise = np.random.default_rng(number).normal(0, level, image.shape)
        yield (number, level), np.clip(image + noise, 0, 16)


def digit(keyed_result, tally):
    """Return the key and the predicted digit."""
    key, result = keyed_result
    tally.acquire(Tally).count += 1
    return key, int(result.inference)


def as_line(key, predictions):
    number, level = key
    [a], [b] = predictions["a"], predictions["b"]
    return f"{number},{level},{a},{b}"


class Tally:
    """Count predictions for the progress bar. The runner shares this process."""

    count = 0


def run(argv=None):
    """Run the pipeline and print a summary of the predictions."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    output = args.output or os.path.join(
        tempfile.mkdtemp(prefix="ab-test-"), "answers.csv"
    )
    console = Console(highlight=False)
    with console.status("Training two models, unless they are cached"):
        model_a = args.model_a or samples.digits_classifier()
        model_b = args.model_b or samples.digits_forest()
        images, labels = (
            read_images(args.input) if args.input else samples.held_out_digits()
        )

    shared_tally = Shared()
    tally = shared_tally.acquire(Tally)
    expected = 2 * len(images) * len(NOISE_LEVELS)
    pipeline = beam.Pipeline(options=options)
    build_pipeline(pipeline, images, model_a, model_b, output, shared_tally)
    start = time.perf_counter()
    with ThreadPoolExecutor() as background, progress_bar(console) as progress:
        running = background.submit(lambda: pipeline.run().wait_until_finish())
        task = progress.add_task("Classifying", total=expected)
        while not running.done():
            progress.update(task, completed=tally.count)
            time.sleep(0.05)
        running.result()
        progress.update(task, completed=expected)
    seconds = time.perf_counter() - start

    answers = np.loadtxt(output, delimiter=",", dtype=int, ndmin=2)
    number, level, a, b = answers[np.lexsort(answers.T[::-1])].T
    console.print(summary(level, labels[number], a, b))
    console.print(
        f"{expected:,} predictions in {seconds:.1f} s: "
        f"{expected / seconds:,.0f} per second"
    )
    console.print(f"Written as (image, noise, A, B) to {output}\n", soft_wrap=True)
    clean = level == 0
    console.print("Misclassified without noise:")
    console.print(misclassified(images, labels, a[clean], b[clean], shades(console)))


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--input",
        help="CSV file, one image per line: a label and 64 pixels (0 to 16)",
    )
    parser.add_argument("--output", help="output file; default: in a temporary folder")
    parser.add_argument("--model_a", help="pickled scikit-learn classifier")
    parser.add_argument("--model_b", help="scikit-learn classifier saved with joblib")
    return parser.parse_known_args(argv)


def read_images(path):
    table = np.loadtxt(path, delimiter=",", ndmin=2)
    return table[:, 1:], table[:, 0].astype(int)


def progress_bar(console):
    columns = TextColumn("{task.description}"), BarColumn(10), MofNCompleteColumn()
    return Progress(*columns, TimeElapsedColumn(), console=console)


def summary(level, truth, a, b):
    """Return a table of the accuracy and agreement of A and B per noise level."""
    table = Table(title="Accuracy of A and B, and agreement")
    for heading in ("noise", "A", "B", "agree"):
        table.add_column(heading, justify="right")
    for noise in NOISE_LEVELS:
        at = level == noise
        shares = ((a == truth)[at].mean(), (b == truth)[at].mean(), (a == b)[at].mean())
        table.add_row(f"{noise} of 16", *(f"{share:.1%}" for share in shares))
    return table


def misclassified(images, truth, a, b, shades):
    """Draw three digits: misclassified by A only, by B only, and by both."""
    panels = []
    for wrong in (
        (a != truth) & (b == truth),
        (a == truth) & (b != truth),
        (a != truth) & (b != truth),
    ):
        for i in np.flatnonzero(wrong)[:1]:
            ink = np.rint(images[i] / 16 * (len(shades) - 1)).astype(int).reshape(8, 8)
            drawing = "\n".join(
                "".join(2 * shades[pixel] for pixel in row) for row in ink
            )
            caption = f"A: {a[i]}  B: {b[i]}"
            panels.append(Panel.fit(drawing, title=f"a {truth[i]}", subtitle=caption))
    return Columns(panels, padding=(0, 2))


def shades(console):
    return " .:+#" if console.options.ascii_only else " ░▒▓█"


if __name__ == "__main__":
    run()
