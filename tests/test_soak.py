"""Processes, threads, files and memory stay flat over many refreshes, keys, timeouts and failures.

`make fuzz` makes thousands of each (`HYPOTHESIS_PROFILE=thorough`).
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from pathlib import Path

import pytest

from common import no_updates
from runinference import (
    KeyedModelHandler,
    KeyModelMapping,
    KeyModelPathMapping,
    ModelHandler,
    ModelMetadata,
    RunInference,
)
from serving.workers import Worker

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
N_ROUNDS = 2_000 if THOROUGH else 40


class Model(ModelHandler):
    path = "first"

    def load_model(self):
        return [self.path]

    def update_model_path(self, model_path=None):
        self.path = model_path or self.path

    def run_inference(self, batch, model, inference_args=None):
        if -1 in batch:
            raise ValueError("bad")
        if -2 in batch:
            time.sleep(0.02)
        return [(x, model[0]) for x in batch]


def refreshed(handler):
    step = RunInference(handler, model_metadata_pcoll=no_updates()).with_exception_handling()
    worker = Worker(step._config())
    return lambda n: worker.bundle(n, update=ModelMetadata(f"model-{n}", f"name-{n}"))


def refreshed_per_key(n_keys=3):
    mappings = [KeyModelMapping([key], Model()) for key in range(n_keys)]
    step = RunInference(KeyedModelHandler(mappings), model_metadata_pcoll=no_updates())
    worker = Worker(step._config())

    def run(n):
        update = [KeyModelPathMapping([key], f"{n}-{key}", f"{n}") for key in range(n_keys)]
        worker.bundle(*((key, n) for key in range(n_keys)), update=update)

    return run


def many_keys(n_keys=30):
    mappings = [KeyModelMapping([key], Model()) for key in range(n_keys)]
    handler = KeyedModelHandler(mappings, max_models_per_worker_hint=2)
    worker = Worker(RunInference(handler)._config())
    return lambda n: worker.bundle((n % n_keys, n))


def failing(**options):
    worker = Worker(RunInference(Model(**options)).with_exception_handling()._config())
    return lambda n: worker.bundle(n, -1, n)


def timing_out():
    handler = Model(max_batch_size=1)
    worker = Worker(RunInference(handler).with_exception_handling(timeout=0.002)._config())
    return lambda n: worker.bundle(-2, n)


def new_steps():
    """Steps that begin and end in one process, as in a notebook."""

    def run(n):
        step = RunInference(Model(large_model=True), model_identifier=f"soak-{n}")
        worker = Worker(step._config())
        worker.bundle(n)
        worker.do_fn.teardown()

    return run


KINDS = {
    "refreshes": lambda: refreshed(Model()),
    "refreshes of a shared model": lambda: refreshed(Model(large_model=True)),
    "refreshes of models per key": refreshed_per_key,
    "models per key": many_keys,
    "failures": failing,
    "failures of a shared model": lambda: failing(large_model=True),
    "timeouts": timing_out,
    "steps": new_steps,
}


def measure() -> dict[str, int]:
    gc.collect()
    shared = Path(tempfile.gettempdir(), f"runinference-{os.getuid()}")
    return {
        "threads": threading.active_count(),
        "open files": len(os.listdir("/proc/self/fd")),
        "temporary files": len(os.listdir(tempfile.gettempdir())),
        "shared models": len(os.listdir(shared)) if shared.exists() else 0,
        # Beam keeps a few small objects for each step, for as long as a process lives.
        "objects": len(gc.get_objects()) // (2 * N_ROUNDS),
    }


def is_flat(before: dict[str, int], after: dict[str, int]) -> bool:
    return all(after[name] - n <= 3 for name, n in before.items())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_resources_stay_flat(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run = KINDS[kind]()
    for n in range(N_ROUNDS):
        run(n)
    before = measure()
    for n in range(N_ROUNDS, 2 * N_ROUNDS):
        run(n)
    deadline = time.monotonic() + 30
    while not is_flat(before, after := measure()):  # threads of calls that were abandoned end soon
        assert time.monotonic() < deadline, (before, after)
        time.sleep(0.05)
