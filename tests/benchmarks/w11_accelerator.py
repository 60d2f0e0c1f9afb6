"""W11: 1,536 images of 224 x 224 pixels and a model that uses no CPU, as if it ran on an accelerator.

One thread passes the images, and then 4 worker threads of one process, whose batches the accelerator runs one at a
time.
"""

import functools
import tempfile
import threading
import time
from pathlib import Path

import apache_beam as beam
import numpy as np
import torch
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import pytorch_inference as beam_pytorch

from benchmarks.gpu.loops import run_in_turn, run_overlapped
from benchmarks.harness import (
    Case,
    ExampleSink,
    Outcome,
    Sink,
    batches,
    identity,
    run_pipeline,
    run_with_threads,
)
from benchmarks.w2_images import number, value
from runinference import RunInference
from runinference.pytorch_inference import PytorchModelHandlerTensor

SHAPE = (3, 224, 224)
BATCH, SECONDS = 128, 0.020
DISTINCT = 256  # 154 MB, which no cache holds
THREADS = 4
ONE_THREAD = "with 1 worker thread"


class SimulatedAccelerator(torch.nn.Module):
    """A model that takes 20 ms per batch of 128 without the GIL, and returns twice the first pixels."""

    busy = threading.Lock()

    def forward(self, images):
        with self.busy:
            time.sleep(SECONDS * len(images) / BATCH)
        return 2 * images[:, 0, 0, :8]


def cases(scale):
    n = max(2 * BATCH, int(1_536 * scale))
    torch.set_num_threads(1)
    model, path = SimulatedAccelerator(), Path(tempfile.mkdtemp(prefix="benchmark-")) / "empty.pt"
    torch.save(model.state_dict(), path)
    options = {
        "state_dict_path": str(path),
        "model_class": SimulatedAccelerator,
        "min_batch_size": BATCH,
        "max_batch_size": BATCH,
    }
    ours = PytorchModelHandlerTensor(**options)
    beam_handler = beam_pytorch.PytorchModelHandlerTensor(**options)
    yield Case(
        workload="W11",
        variant=f"batches of {BATCH}",
        n=n,
        runs={
            "limit": functools.partial(run_loop, run_in_turn, model, n),
            "overlapped loop": functools.partial(run_loop, overlap_stacking, model, n),
            "floor": functools.partial(floor, n),
            "ours": functools.partial(run_with, n, RunInference, ours),
            "Beam": functools.partial(run_with, n, beam_base.RunInference, beam_handler),
        },
        check=functools.partial(check, n),
        goals={"ours ÷ overlapped loop": ("≥", 0.9), "ours ÷ Beam": ("≥", 1)},
    )
    yield Case(
        workload="W11",
        variant=f"{THREADS} worker threads",
        n=n,
        runs={
            "limit": functools.partial(run_loop, run_in_turn, model, n),
            "floor": functools.partial(floor, n, THREADS),
            "ours": functools.partial(run_with_n_threads, n, THREADS, RunInference, ours),
            "Beam": functools.partial(
                run_with_n_threads, n, THREADS, beam_base.RunInference, beam_handler
            ),
            f"ours {ONE_THREAD}": functools.partial(run_with_n_threads, n, 1, RunInference, ours),
            f"Beam {ONE_THREAD}": functools.partial(
                run_with_n_threads, n, 1, beam_base.RunInference, beam_handler
            ),
        },
        check=functools.partial(check, n),
        goals={"ours of the ideal": ("≥", 0.9), "ours ÷ Beam": ("≥", 1)},
    )


@functools.cache
def images(n):
    """Return images of 602 kB. Some are the same tensor, to save memory."""
    distinct = [torch.full(SHAPE, float(number)) for number in range(1, DISTINCT + 1)]
    return [distinct[at % DISTINCT] for at in range(n)]


#: Stacks the next batch in another thread while the model computes.
overlap_stacking = functools.partial(run_overlapped, n_in_flight=0)


def run_loop(loop, model, n):
    outcome = Outcome()
    for pixels, output in loop(batches(images(n), BATCH), model, torch.device("cpu")):
        outcome.add_batch(pixels[:, 0, 0, 0], output[:, 0])
    return outcome


def floor(n, n_threads=None):
    step = beam.Map(identity)
    if n_threads:
        return run_with_threads(functools.partial(images, n), n_threads, step, ExampleSink(number))
    return run_pipeline(functools.partial(images, n), step, ExampleSink(number))


def run_with(n, transform, handler):
    return run_pipeline(functools.partial(images, n), transform(handler), Sink(number, value))


def run_with_n_threads(n, n_threads, transform, handler):
    sink = Sink(number, value)
    return run_with_threads(functools.partial(images, n), n_threads, transform(handler), sink)


def check(n, contender, outcome):
    """Check that every image came out as often as it went in, with the correct numbers."""
    numbers = 1 + np.arange(n) % DISTINCT
    outcome.check(numbers, 0 if contender == "floor" else 2 * numbers)
    if contender != "floor":
        for image, inference in outcome.sample:
            np.testing.assert_array_equal(inference, 2 * image[0, 0, :8])
