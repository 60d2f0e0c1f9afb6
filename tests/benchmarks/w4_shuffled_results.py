"""W4: 4,000 PyTorch results of 1,000 floats, sent through a Reshuffle: what does a result weigh?"""

import functools
import tempfile
from pathlib import Path

import apache_beam as beam
import numpy as np
import torch
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import pytorch_inference as beam_pytorch

from benchmarks.harness import Case, Keep, KeepResult, Outcome, batches, run_pipeline, same_rows
from runinference import PredictionResult, RunInference
from runinference.pytorch_inference import PytorchModelHandlerTensor

FEATURES, FLOATS = 16, 1_000
BYTES = {"bytes a result, ours": ("≤", 4_300)}
GOALS = {
    64: {"ours of the ideal": ("≥", 0.8), "ours ÷ Beam": ("≥", 8), **BYTES},
    256: {"ours of the ideal": ("≥", 0.8), "ours ÷ Beam": ("≥", 30), **BYTES},
}


def cases(scale):
    n = max(512, int(4_000 * scale))
    torch.set_num_threads(1)
    model, path = saved()
    for size, goals in GOALS.items():
        options = {
            "state_dict_path": path,
            "model_class": torch.nn.Linear,
            "model_params": {"in_features": FEATURES, "out_features": FLOATS},
            "min_batch_size": size,
            "max_batch_size": size,
        }
        ours = PytorchModelHandlerTensor(**options)
        peer = beam_pytorch.PytorchModelHandlerTensor(**options)
        yield Case(
            workload="W4",
            variant=f"batches of {size}",
            n=n,
            runs={
                "limit": functools.partial(bare_loop, model, n, size),
                "floor": functools.partial(floor, n),
                "ours": functools.partial(run_with, n, RunInference, ours),
                "Beam": functools.partial(run_with, n, beam_base.RunInference, peer),
            },
            check=functools.partial(check, model, n),
            goals=goals,
            facts=bytes_a_result,
        )


@functools.cache
def examples(n):
    """The elements: separate tensors."""
    values = np.random.default_rng(0).normal(size=(n, FEATURES)).astype(np.float32)
    return [torch.from_numpy(row.copy()) for row in values]


@functools.cache
def outputs(n):
    """For the floor: as many rows of NumPy as there will be results, of the same size."""
    return list(np.random.default_rng(0).normal(size=(n, FLOATS)).astype(np.float32))


def saved():
    """A model, and the path of its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Linear(FEATURES, FLOATS).eval()
    path = Path(tempfile.mkdtemp(prefix="benchmark-")) / "w4.pt"
    torch.save(model.state_dict(), path)
    return model, str(path)


def bare_loop(model, n, size):
    results = []
    with torch.inference_mode():
        for batch in batches(examples(n), size):
            results.extend(model(torch.stack(batch)))
    return Outcome(examples(n), results)


def floor(n):
    return run_pipeline(functools.partial(outputs, n), beam.Reshuffle(), beam.ParDo(Keep()))


def run_with(n, transform, handler):
    steps = transform(handler), beam.Reshuffle(), beam.ParDo(KeepResult())
    return run_pipeline(functools.partial(examples, n), *steps)


def check(model, n, contestant, outcome):
    """Every example came out once, and each with the output that belongs to it."""
    same_rows(outcome.examples, outputs(n) if contestant == "floor" else examples(n))
    if contestant != "floor":
        with torch.inference_mode():
            right = model(torch.stack(list(map(torch.as_tensor, outcome.examples)))).numpy()
        np.testing.assert_allclose(np.stack(outcome.inferences), right, rtol=1e-5, atol=1e-5)


def bytes_a_result(contestant, outcome):
    """How many bytes a result takes between two workers, as each library's output type codes it."""
    result_type = {"ours": PredictionResult, "Beam": beam_base.PredictionResult}.get(contestant)
    if result_type is None:
        return {}
    coder = beam.coders.registry.get_coder(result_type)
    result = result_type(outcome.examples[0], outcome.inferences[0], "w4.pt")
    return {"bytes a result": len(coder.encode(result))}
