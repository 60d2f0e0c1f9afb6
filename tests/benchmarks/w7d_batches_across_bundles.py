"""W7d: bundles of 4 elements and `max_batch_duration_secs`, with which batches span bundles."""

import functools

import apache_beam as beam
import torch
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import pytorch_inference as beam_pytorch
from apache_beam.transforms.core import RestrictionProvider

from benchmarks.harness import Case, ExampleSink, Sink, identity, run_pipeline
from benchmarks.w4_shuffled_results import number, value
from benchmarks.w7_small_bundles import Perceptron, bare_loop, check, examples, save_model
from runinference import RunInference
from runinference.pytorch_inference import PytorchModelHandlerTensor

BUNDLE = 4
MAX_BATCH = 64


def cases(scale):
    n = max(16, int(200 * scale) // BUNDLE * BUNDLE)
    torch.set_num_threads(1)
    model, path = save_model()
    options = {
        "state_dict_path": path,
        "model_class": Perceptron,
        "max_batch_size": MAX_BATCH,
        "max_batch_duration_secs": 0.05,
    }
    ours = PytorchModelHandlerTensor(**options)
    beam_handler = beam_pytorch.PytorchModelHandlerTensor(**options)
    yield Case(
        workload="W7d",
        variant=f"bundles of {BUNDLE}",
        n=n,
        runs={
            "limit": functools.partial(bare_loop, model, n, MAX_BATCH),
            "floor": functools.partial(run, n, beam.Map(identity), ExampleSink(number)),
            "ours": functools.partial(run_with, n, RunInference, ours),
            "Beam": functools.partial(run_with, n, beam_base.RunInference, beam_handler),
        },
        check=functools.partial(check_results, model, n),
        goals={"ours ÷ Beam": ("≥", 2)},
    )


class Positions(RestrictionProvider):
    """The positions of the examples. A bundle ends after each few of them, as in a streaming pipeline."""

    def initial_restriction(self, n):
        return OffsetRange(0, n)

    def create_tracker(self, restriction):
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, n, restriction):
        return restriction.size()


class ReadBundles(beam.DoFn):
    """Return `BUNDLE` examples per bundle."""

    @beam.DoFn.unbounded_per_element()
    def process(self, n, tracker=beam.DoFn.RestrictionParam(Positions())):
        start = tracker.current_restriction().start
        for position in range(start, start + BUNDLE):
            if not tracker.try_claim(position):
                return
            yield examples(n)[position]
        tracker.defer_remainder()


def run(n, *steps):
    return run_pipeline(functools.partial(range, n, n + 1), beam.ParDo(ReadBundles()), *steps)


def run_with(n, transform, handler):
    return run(n, transform(handler), Sink(number, value))


def check_results(model, n, contender, outcome):
    """Check that every example came out once, with the correct scores."""
    if contender == "floor":
        return outcome.check([*map(number, examples(n))])
    check(model, n, contender, outcome)
