"""Batch sizes: throughput and time per call for the images of W2 in batches of 1, 4, 16, and 64."""

import functools
import time

import numpy as np
import torch

from benchmarks.harness import Case, Outcome, batches
from benchmarks.w2_images import (
    check,
    floor,
    images,
    model_options,
    run_with,
    save_model,
)
from runinference import RunInference
from runinference.pytorch_inference import PytorchModelHandlerTensor

SIZES = (1, 4, 16, 64)
CALL_MILLISECONDS = "milliseconds per call"


def cases(scale):
    torch.set_num_threads(1)
    model, path = save_model()
    for size in SIZES:
        n = max(16, int(max(128, 2 * size) * scale))
        handler = PytorchModelHandlerTensor(
            **model_options(path), min_batch_size=size, max_batch_size=size
        )
        yield Case(
            workload="sizes",
            variant=str(size),
            n=n,
            runs={
                "limit": functools.partial(bare_loop, model, n, size),
                "floor": functools.partial(floor, n),
                "ours": functools.partial(run_with, n, RunInference, handler),
            },
            check=functools.partial(check, model, n),
            goals={},
        )


def bare_loop(model, n, size):
    """Run the loop and measure the median time per call."""
    outcome, seconds = Outcome(), []
    with torch.inference_mode():
        for batch in batches(images(n), size):
            start = time.perf_counter()
            pixels = torch.stack(batch)
            outcome.add_batch(pixels[:, 0, 0, 0], model(pixels)[:, 0])
            seconds.append(time.perf_counter() - start)
    outcome.metrics = {CALL_MILLISECONDS: 1_000 * float(np.median(seconds))}
    return outcome
