"""Images and ResNet-50, also with mixed precision and behind worker threads, and many small rows and an MLP."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
import numpy as np
import torch
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import pytorch_inference as beam_pytorch
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck

from benchmarks.gpu.loops import run_in_turn, run_overlapped
from benchmarks.gpu.setup import Setup, load_weights, save_weights
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
from runinference import RunInference
from runinference.pytorch_inference import PytorchModelHandlerTensor

N_THREADS = 8
ONE = "ours with 1 worker thread"


@dataclass(frozen=True)
class TensorJob:
    """A job on tensors of one shape, in fixed batches. All contenders work on the same elements.

    Attributes:
        setup: The device and sizes.
        make_elements: Returns the tensors, always the same ones. Their first number identifies them. The function
            is pickled with the pipeline.
        batch_size: The number of elements per batch.
        weights: The path of the model's weights.
        make_model: Creates the model.
        low_precision: Whether the model computes in bfloat16 (autocast) and in the channels-last format.
    """

    setup: Setup
    make_elements: Callable[[], Sequence[Any]]
    batch_size: int
    weights: str
    make_model: Callable[[], Any]
    low_precision: bool = False

    def run_loop(self, loop) -> Outcome:
        outcome = Outcome()
        for numbers, values in self._loop(loop):
            outcome.add_batch(numbers, values)
        return outcome

    def _loop(self, loop):
        """Load the model, and yield the first numbers of the inputs and outputs of each batch."""
        device = self.setup.device
        model = load_weights(self.weights, self.make_model, device)
        if self.low_precision:
            model = model.to(memory_format=torch.channels_last)
        split = batches(self.make_elements(), self.batch_size)
        for inputs, output in loop(split, functools.partial(self._call, model), device):
            yield inputs.flatten(1)[:, 0], output[:, 0]

    def _call(self, model, batch):
        if not self.low_precision:
            return model(batch)
        with torch.autocast(self.setup.device.type, dtype=torch.bfloat16):
            return model(batch.contiguous(memory_format=torch.channels_last))

    def run_floor(self) -> Outcome:
        return self._run(1, beam.Map(identity), ExampleSink(number))

    def run_ours(self, n_threads=1) -> Outcome:
        options = {"autocast": "bfloat16", "channels_last": True} if self.low_precision else {}
        handler = PytorchModelHandlerTensor(
            device=self.setup.name, **options, **self._handler_options()
        )
        return self._run(n_threads, RunInference(handler), Sink(number, number))

    def run_beam(self, n_threads=1) -> Outcome:
        handler = beam_pytorch.PytorchModelHandlerTensor(
            device=self.setup.beam_name, **self._handler_options()
        )
        return self._run(n_threads, beam_base.RunInference(handler), Sink(number, number))

    def _handler_options(self):
        return {
            "state_dict_path": self.weights,
            "model_class": self.make_model,
            "model_params": {},
            "min_batch_size": self.batch_size,
            "max_batch_size": self.batch_size,
        }

    def _run(self, n_threads, *steps):
        if n_threads == 1:
            return run_pipeline(self.make_elements, *steps)
        return run_with_threads(self.make_elements, n_threads, *steps)

    @functools.cached_property
    def expected(self):
        """The number of each element, and the first number of its output."""
        pairs = zip(*self._loop(run_in_turn), strict=True)
        return tuple(torch.cat(part).double().numpy() for part in pairs)

    def check(self, contender, outcome):
        """Check that each element came out once with its output, within the precision of the model."""
        numbers, values = self.expected
        if contender == "floor":
            return outcome.check(numbers)
        tolerance = 1e-2 if self.low_precision else 1e-3
        outcome.check(numbers, values, tolerance=tolerance)
        value_of = dict(zip(numbers.tolist(), values.tolist(), strict=True))
        allowed = 5 * tolerance * np.abs(values).max()
        for element, output in outcome.sample:
            difference = abs(number(output) - value_of[number(element)])
            assert difference <= allowed, f"An output differs by {difference}."

    def case(self, workload, variant, runs, goals):
        """Return the case with the loop, the floor, and further contenders."""
        return Case(
            workload=workload,
            variant=variant,
            n=len(self.make_elements()),
            runs={
                "limit": functools.partial(self.run_loop, run_in_turn),
                "overlapped loop": functools.partial(self.run_loop, run_overlapped),
                "floor": self.run_floor,
                "ours": self.run_ours,
                **runs,
            },
            check=self.check,
            goals=goals,
        )


def number(tensor):
    """Return the first number of a tensor, which identifies it."""
    return tensor.cpu().numpy().item(0)


@functools.cache
def images(n, n_distinct, side):
    """Return images. Some are the same tensor, to save memory."""
    generator = torch.Generator().manual_seed(0)
    distinct = [torch.rand(3, side, side, generator=generator) for _ in range(n_distinct)]
    return [distinct[at % n_distinct] for at in range(n)]


@functools.cache
def rows(n, n_features):
    return list(torch.randn(n, n_features, generator=torch.Generator().manual_seed(0)).clone())


def make_resnet(layers, width):
    """Create a ResNet with bottleneck blocks: [3, 4, 6, 3] layers of width 64 are ResNet-50."""
    return ResNet(Bottleneck, layers, width_per_group=width).eval()


def make_mlp(n_features, n_hidden):
    return torch.nn.Sequential(
        torch.nn.Linear(n_features, n_hidden),
        torch.nn.ReLU(),
        torch.nn.Linear(n_hidden, n_hidden),
        torch.nn.ReLU(),
        torch.nn.Linear(n_hidden, 8),
    )


def image_cases(setup):
    layers, width = setup.choose(([3, 4, 6, 3], 64), ([1, 1, 1, 1], 8))
    make_model = functools.partial(make_resnet, layers, width)
    job = TensorJob(
        setup,
        functools.partial(images, *setup.choose((4_096, 1_024, 224), (12, 6, 32))),
        setup.choose(128, 4),
        save_weights("resnet", make_model),
        make_model,
    )
    goals = {"ours ÷ overlapped loop": ("≥", 0.9)}
    yield job.case("ResNet-50", "float32", {"Beam": job.run_beam}, goals)
    low = replace(job, low_precision=True)
    yield low.case("ResNet-50", "bfloat16 and channels_last", {}, goals)
    threaded = {
        "ours": functools.partial(job.run_ours, N_THREADS),
        "Beam": functools.partial(job.run_beam, N_THREADS),
        ONE: job.run_ours,
    }
    goals = {f"ours ÷ {ONE}": ("≥", 1)}
    yield job.case("ResNet-50", f"float32, {N_THREADS} worker threads", threaded, goals)


def row_cases(setup):
    n, size, n_features, n_hidden = setup.choose((200_000, 4_096, 64, 256), (400, 64, 8, 8))
    make_model = functools.partial(make_mlp, n_features, n_hidden)
    job = TensorJob(
        setup,
        functools.partial(rows, n, n_features),
        size,
        save_weights("mlp", make_model),
        make_model,
    )
    yield job.case("MLP", "rows of 64", {"Beam": job.run_beam}, {"ours of the ideal": ("≥", 0.6)})
