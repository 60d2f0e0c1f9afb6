"""W4: PyTorch results of 1,000 floats with a Reshuffle. The encoded size of results dominates."""

import functools
import tempfile
from pathlib import Path

import apache_beam as beam
import numpy as np
import torch
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import pytorch_inference as beam_pytorch

from benchmarks.harness import (
    Case,
    ExampleSink,
    Outcome,
    Sink,
    batches,
    check_share,
    run_pipeline,
)
from benchmarks.w1_rows import first_value
from runinference import PredictionResult, RunInference
from runinference.pytorch_inference import PytorchModelHandlerTensor

FEATURES, FLOATS = 16, 1_000
BYTES = {"bytes per result, ours": ("≤", 4_300)}
#: Beam encodes a whole batch with each result, which takes seconds per hundred results in batches of 256.
BEAM_ELEMENTS = {64: 512, 256: 256}
GOALS = {
    64: {"ours of the ideal": ("≥", 0.8), "ours ÷ Beam": ("≥", 8), **BYTES},
    256: {"ours of the ideal": ("≥", 0.8), "ours ÷ Beam": ("≥", 30), **BYTES},
}


def cases(scale):
    torch.set_num_threads(1)
    model, path = save_model()
    for size, goals in GOALS.items():
        n = max(512, int(2_048 * scale))
        elements = {"Beam": min(n, BEAM_ELEMENTS[size])}
        options = {
            "state_dict_path": path,
            "model_class": torch.nn.Linear,
            "model_params": {"in_features": FEATURES, "out_features": FLOATS},
            "min_batch_size": size,
            "max_batch_size": size,
        }
        ours = PytorchModelHandlerTensor(**options)
        beam_handler = beam_pytorch.PytorchModelHandlerTensor(**options)
        yield Case(
            workload="W4",
            variant=f"batches of {size}",
            n=n,
            runs={
                "limit": functools.partial(bare_loop, model, n, size),
                "floor": functools.partial(floor, n),
                "ours": functools.partial(run_with, n, RunInference, ours),
                "Beam": functools.partial(
                    run_with, elements["Beam"], beam_base.RunInference, beam_handler
                ),
            },
            check=check_share(functools.partial(check, model), n, elements),
            elements=elements,
            goals=goals,
            metrics=measure_encoded_size,
        )


@functools.cache
def examples(n):
    """Return separate tensors."""
    values = np.random.default_rng(0).normal(size=(n, FEATURES)).astype(np.float32)
    return [torch.from_numpy(row.copy()) for row in values]


@functools.cache
def outputs(n):
    """Return NumPy rows of the same number and size as the results, for the floor."""
    return list(np.random.default_rng(0).normal(size=(n, FLOATS)).astype(np.float32))


def save_model():
    """Save a model and return it with the path of its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Linear(FEATURES, FLOATS).eval()
    path = Path(tempfile.mkdtemp(prefix="benchmark-")) / "w4.pt"
    torch.save(model.state_dict(), path)
    return model, str(path)


def value(output):
    """Return one number of an output for the checksum."""
    return np.asarray(output).item(0)


def number(example):
    """Return the first value of an example, which identifies it."""
    return np.asarray(example).item(0)


def bare_loop(model, n, size):
    outcome = Outcome()
    with torch.inference_mode():
        for batch in batches(examples(n), size):
            features = torch.stack(batch)
            outcome.add_batch(features[:, 0], model(features)[:, 0])
    return outcome


def floor(n):
    sink = ExampleSink(first_value)
    return run_pipeline(functools.partial(outputs, n), beam.Reshuffle(), sink)


def run_with(n, transform, handler):
    steps = transform(handler), beam.Reshuffle(), Sink(number, value)
    return run_pipeline(functools.partial(examples, n), *steps)


@functools.cache
def expected(model, n):
    with torch.inference_mode():
        return model(torch.stack(examples(n)))[:, 0]


def check(model, n, contender, outcome):
    """Check that every example came out once, with the correct output."""
    if contender == "floor":
        return outcome.check([*map(first_value, outputs(n))])
    outcome.check([*map(number, examples(n))], expected(model, n), tolerance=1e-5)
    with torch.inference_mode():
        for example, inference in outcome.sample:
            correct = model(torch.as_tensor(example)[None])[0]
            np.testing.assert_allclose(inference, correct, rtol=1e-5, atol=1e-5)


def measure_encoded_size(contender, outcome):
    """Return the encoded size of a result, with the coder of each library's output type."""
    result_type = {"ours": PredictionResult, "Beam": beam_base.PredictionResult}.get(contender)
    if result_type is None:
        return {}
    coder = beam.coders.registry.get_coder(result_type)
    result = result_type(*outcome.sample[0], "w4.pt")
    return {"bytes per result": len(coder.encode(result))}
