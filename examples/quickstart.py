"""Two models read handwritten digits in one pipeline; a table says which one to trust.

    python examples/quickstart.py

A is a logistic regression, B a forest of decision trees; neither has seen these 797
digits. Each reads them ten times: clean, then under more and more noise. Every image
carries a key, and by the key the answers of A and B meet again.
"""

# ruff: noqa: E402
import argparse
import logging
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

# Importing Beam without its Google extra warns.
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

NOISE_LEVELS = range(10)  # Standard deviations; ink is 16, paper is 0.


def ask_both(pipeline, images, model_a, model_b, output, tally):
    """Every image goes to both models, and a line with both answers comes out."""
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
    a = noisy | "Ask A" >> RunInference(handler_a) | "Read A" >> beam.Map(digit, tally)
    b = noisy | "Ask B" >> RunInference(handler_b) | "Read B" >> beam.Map(digit, tally)
    _ = (
        {"a": a, "b": b}
        | "Compare" >> beam.CoGroupByKey()
        | "Format" >> beam.MapTuple(as_line)
        | "Write" >> beam.io.WriteToText(output, shard_name_template="")
    )


def add_noise(number, image):
    """One image at each noise level, with the key by which its answers are known."""
    for level in NOISE_LEVELS:
        noise = np.random.default_rng(number).normal(0, level, image.shape)
        yield (number, level), np.clip(image + noise, 0, 16)


def digit(keyed_result, tally):
    """What a model said: the key, and the digit that is in its PredictionResult."""
    key, result = keyed_result
    tally.acquire(Tally).count += 1
    return key, int(result.inference)


def as_line(key, answers):
    number, level = key
    [a], [b] = answers["a"], answers["b"]
    return f"{number},{level},{a},{b}"


class Tally:
    """Counts answers, for the progress bar: the embedded runner is in this process."""

    count = 0


def run(argv=None):
    """Asks both models, writes their answers, and prints what they come to."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    output = args.output or os.path.join(
        tempfile.mkdtemp(prefix="quickstart-"), "answers.csv"
    )
    console = Console(highlight=False)
    with console.status(
        "Training two models, unless they are in your cache directory already"
    ):
        model_a = args.model_a or samples.digits_classifier()
        model_b = args.model_b or samples.digits_forest()
        images, labels = (
            read_images(args.input) if args.input else samples.held_out_digits()
        )

    shared_tally = Shared()
    tally = shared_tally.acquire(Tally)
    expected = 2 * len(images) * len(NOISE_LEVELS)
    pipeline = beam.Pipeline(options=options)
    ask_both(pipeline, images, model_a, model_b, output, shared_tally)
    start = time.perf_counter()
    with ThreadPoolExecutor() as background, progress_bar(console) as progress:
        running = background.submit(lambda: pipeline.run().wait_until_finish())
        task = progress.add_task("A and B read digits", total=expected)
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
        f"{expected:,} answers in {seconds:.1f} s: {expected / seconds:,.0f} a second."
    )
    console.print(f"Each is a line (image, noise, A, B) of {output}\n", soft_wrap=True)
    clean = level == 0
    console.print("Misread without any noise:")
    console.print(misread(images, labels, a[clean], b[clean], shades(console)))


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--input",
        help="text file, one image a line: a digit and 64 pixels (0 to 16), by commas",
    )
    parser.add_argument(
        "--output", help="file to write; by default in a temporary folder"
    )
    parser.add_argument("--model_a", help="scikit-learn classifier, a pickle file")
    parser.add_argument("--model_b", help="scikit-learn classifier, a joblib file")
    return parser.parse_known_args(argv)


def read_images(path):
    table = np.loadtxt(path, delimiter=",", ndmin=2)
    return table[:, 1:], table[:, 0].astype(int)


def progress_bar(console):
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, TimeElapsedColumn(), console=console)


def summary(level, truth, a, b):
    """A table: how often A and B are right, and agree, at each noise level."""
    table = Table()
    for heading in ("noise", "A is right", "B is right", "A and B agree"):
        table.add_column(heading, justify="right")
    for noise in NOISE_LEVELS:
        at = level == noise
        shares = ((a == truth)[at].mean(), (b == truth)[at].mean(), (a == b)[at].mean())
        table.add_row(f"{noise} of 16", *(f"{share:.1%}" for share in shares))
    return table


def misread(images, truth, a, b, shades):
    """Three digits, drawn: one that only A misread, one that only B, one that both."""
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
            said = f"A: {a[i]}  B: {b[i]}"
            panels.append(Panel.fit(drawing, title=f"a {truth[i]}", subtitle=said))
    return Columns(panels, padding=(0, 2))


def shades(console):
    return " .:+#" if console.options.ascii_only else " ░▒▓█"


if __name__ == "__main__":
    run()
