"""W2: 640 images of 96 x 96 pixels and torchvision's mobilenet_v3_small, with default settings."""

import functools
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apache_beam as beam
import numpy as np
import torch
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import pytorch_inference as beam_pytorch
from torchvision.models import mobilenet_v3_small

from benchmarks.harness import (
    Case,
    ExampleSink,
    Outcome,
    Sink,
    batches,
    identity,
    run_pipeline,
    run_program,
)
from runinference import RunInference
from runinference.pytorch_inference import PytorchModelHandlerTensor

SHAPE = (3, 96, 96)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
CLASSES = 100
BATCHES_OF_16 = {"min_batch_size": 16, "max_batch_size": 16}
GOALS = {"ours of the ideal": ("≥", 0.97), "ours ÷ Beam": ("≥", 1)}


def cases(scale):
    n = max(16, int(640 * scale))
    torch.set_num_threads(1)
    model, path = save_model()
    memory = functools.partial(measure_memory, scale, model, n)
    memory_goal = {"MB of peak memory above the floor, ours": ("≤", 100)}
    fixed_loop = functools.partial(bare_loop, size=16)
    for variant, size, loop, goals, measure_once in (
        ("default settings", {}, best_loop, GOALS | memory_goal, memory),
        ("batches of 16", BATCHES_OF_16, fixed_loop, GOALS, dict),
    ):
        options = {**model_options(path), **size}
        ours = PytorchModelHandlerTensor(**options)
        beam_handler = beam_pytorch.PytorchModelHandlerTensor(**options)
        yield Case(
            workload="W2",
            variant=variant,
            n=n,
            runs={
                "limit": functools.partial(loop, model, n),
                "floor": functools.partial(floor, n),
                "ours": functools.partial(run_with, n, RunInference, ours),
                "Beam": functools.partial(run_with, n, beam_base.RunInference, beam_handler),
            },
            check=functools.partial(check, model, n),
            goals=goals,
            measure_once=measure_once,
        )


def model_options(path):
    """Return the arguments of both libraries' handlers for the model."""
    return {
        "state_dict_path": path,
        "model_class": mobilenet_v3_small,
        "model_params": {"num_classes": CLASSES},
    }


@functools.cache
def images(n):
    values = np.random.default_rng(0).normal(size=(n, *SHAPE)).astype(np.float32)
    values[:, 0, 0, 0] = np.arange(1, n + 1) / n  # makes every image unique
    return [torch.from_numpy(image.copy()) for image in values]


@functools.cache
def save_model():
    """Save a model with non-initial batch norm statistics and return it with the path of its file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mobilenet_v3_small(num_classes=CLASSES)
        with torch.no_grad():
            model(torch.randn(32, *SHAPE))
    path = Path(tempfile.mkdtemp(prefix="benchmark-")) / "images.pt"
    torch.save(model.state_dict(), path)
    return model.eval().requires_grad_(False), str(path)


@functools.cache
def best_size(model, n):
    """Return the batch size at which the bare loop is fastest, in the better of two runs."""
    n = min(n, 128)

    def seconds(size):
        start = time.perf_counter()
        bare_loop(model, n, size)
        return time.perf_counter() - start

    bare_loop(model, n, 8)
    return min(SIZES, key=lambda size: min(seconds(size), seconds(size)))


def number(image):
    """Return the number that identifies an image, a fraction of 1."""
    return image.numpy().item(0)


def value(scores):
    """Return one score of an image for the checksum."""
    return scores.numpy().item(0)


def bare_loop(model, n, size):
    outcome = Outcome()
    with torch.inference_mode():
        for batch in batches(images(n), size):
            pixels = torch.stack(batch)
            outcome.add_batch(pixels[:, 0, 0, 0], model(pixels)[:, 0])
    return outcome


def best_loop(model, n):
    return bare_loop(model, n, best_size(model, n))


def floor(n):
    return run_pipeline(functools.partial(images, n), beam.Map(identity), ExampleSink(number))


def run_with(n, transform, handler):
    return run_pipeline(functools.partial(images, n), transform(handler), Sink(number, value))


@functools.cache
def expected(model, n):
    with torch.inference_mode():
        return torch.cat([model(torch.stack(batch)) for batch in batches(images(n), 16)]).numpy()


def check(model, n, contender, outcome):
    """Check that every image came out once, with the correct scores."""
    numbers = np.arange(1, n + 1, dtype=np.float32) / np.float32(n)
    if contender == "floor":
        return outcome.check(numbers)
    scores = expected(model, n)
    outcome.check(numbers, scores[:, 0], tolerance=1e-5)
    for image, inference in outcome.sample:
        correct = scores[round(number(image) * n) - 1]
        np.testing.assert_allclose(inference, correct, rtol=1e-4, atol=1e-5)


def measure_memory(scale, model, n):
    """Return the peak memory of each contender's process in MB above that of the floor."""
    best = best_size(model, n)
    names = ("floor", "ours", "Beam")
    measure = functools.partial(measure_peak, scale=scale, best=best)
    with ThreadPoolExecutor(2) as pool:  # the memory doesn't depend on the time
        peaks = dict(zip(names, pool.map(measure, names), strict=True))
    return {
        f"MB of peak memory above the floor, {name}": (peaks[name] - peaks["floor"]) / 1e6
        for name in ("ours", "Beam")
    }


def measure_peak(contender, scale, best):
    """Run a contender in a new process and return its peak memory in bytes. Images are created before."""
    program = (
        "from benchmarks import w2_images as w2\n"
        f"w2.best_size = lambda model, n: {best}\n"
        f"case = next(w2.cases({scale})); w2.images(case.n)\n"
        "open('/proc/self/clear_refs', 'w').write('5')  # reset the peak after the imports\n"
        f"case.runs[{contender!r}]()\n"
    )
    [peak] = run_program(program)
    return peak
