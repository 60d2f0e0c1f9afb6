"""W12: the images of W2 with 1 and 4 worker threads in one process."""

import functools

import apache_beam as beam
import torch
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import pytorch_inference as beam_pytorch

from benchmarks.harness import Case, ExampleSink, Sink, identity, run_with_threads
from benchmarks.w2_images import (
    BATCHES_OF_16,
    bare_loop,
    check,
    images,
    model_options,
    number,
    save_model,
    value,
)
from runinference import RunInference
from runinference.pytorch_inference import PytorchModelHandlerTensor

THREADS = 4
ONE = "with 1 worker thread"


def cases(scale):
    n = max(64, int(640 * scale))
    torch.set_num_threads(1)
    model, path = save_model()
    options = {**model_options(path), **BATCHES_OF_16}
    ours = PytorchModelHandlerTensor(**options)
    beam_handler = beam_pytorch.PytorchModelHandlerTensor(**options)
    images(n)  # before the workers start
    yield Case(
        workload="W12",
        variant=f"{THREADS} threads, batches of 16",
        n=n,
        runs={
            "limit": functools.partial(bare_loop, model, n, 16),
            "floor": functools.partial(floor, n),
            "ours": functools.partial(run_with, n, THREADS, RunInference, ours),
            "Beam": functools.partial(run_with, n, THREADS, beam_base.RunInference, beam_handler),
            f"ours {ONE}": functools.partial(run_with, n, 1, RunInference, ours),
            f"Beam {ONE}": functools.partial(run_with, n, 1, beam_base.RunInference, beam_handler),
        },
        check=functools.partial(check, model, n),
        goals={f"ours ÷ ours {ONE}": ("≥", 1.3), "ours ÷ Beam": ("≥", 1)},
    )


def floor(n):
    make_images = functools.partial(images, n)
    return run_with_threads(make_images, THREADS, beam.Map(identity), ExampleSink(number))


def run_with(n, n_threads, transform, handler):
    make_images = functools.partial(images, n)
    return run_with_threads(make_images, n_threads, transform(handler), Sink(number, value))
