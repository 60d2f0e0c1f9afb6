"""Measure images and token sequences on several runners, as a ratio to the embedded runner.

The model records the start and the end of each call, so the time before the first call, the time from the first to
the last call, and the time inside the calls are known.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
import torch

from runinference import RunInference
from runinference.pytorch_inference import PytorchModelHandlerTensor
from runners import artifacts, columns
from runners.child import run
from runners.features import Setting, record, recorded
from runners.isolation import isolate, missing_runners

N_IMAGES, N_SEQUENCES = 600, 6_000
IMAGE = (3, 64, 64)
N_TOKENS, VOCABULARY, WIDTH = 64, 1_000, 128


class RecordCalls(PytorchModelHandlerTensor):
    """Record the start, the end, and the number of elements of each call."""

    log = ""

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        start = time.monotonic()
        results = list(super().run_inference(batch, model, inference_args))
        record(self.log, json.dumps([start, time.monotonic(), len(batch)]))
        return results


def image_model() -> torch.nn.Module:
    layers: list[torch.nn.Module] = [torch.nn.Conv2d(3, 32, 3, stride=2), torch.nn.ReLU()]
    for _ in range(3):
        layers += [torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.ReLU()]
    return torch.nn.Sequential(
        *layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(32, 10)
    )


def token_model() -> torch.nn.Module:
    layer = torch.nn.TransformerEncoderLayer(WIDTH, 4, 256, batch_first=True)
    return torch.nn.Sequential(
        torch.nn.Embedding(VOCABULARY, WIDTH), torch.nn.TransformerEncoder(layer, 2)
    )


def make_image(seed: int) -> torch.Tensor:
    return torch.rand(IMAGE, generator=torch.Generator().manual_seed(seed))


def make_sequence(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (N_TOKENS,), generator=generator)


WORKLOADS: dict[str, tuple[int, Callable[[], torch.nn.Module], Callable[[int], torch.Tensor]]] = {
    "images": (N_IMAGES, image_model, make_image),
    "tokens": (N_SEQUENCES, token_model, make_sequence),
}


def build(workload: str, pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    n, make_model, make_element = WORKLOADS[workload]
    torch.manual_seed(0)
    torch.save(make_model().state_dict(), setting.path("model.pt"))
    handler = RecordCalls(
        state_dict_path=setting.path("model.pt"),
        model_class=make_model,
        model_params={},
        min_batch_size=32,
        max_batch_size=32,
    )
    handler.log = setting.path("calls")
    return (
        pipeline
        | beam.Create(range(n))
        | beam.Reshuffle()
        | beam.Map(make_element)
        | RunInference(handler)
        | beam.combiners.Count.Globally()
    )


@contextmanager
def flink(parallelism: int, folder: Path) -> Any:
    with columns.flink_process(folder) as options:
        workers = [f"--parallelism={parallelism}", f"--sdk_worker_parallelism={parallelism}"]
        yield [option for option in options if not option.startswith("--parallelism")] + workers


@contextmanager
def embedded(n_workers: int, folder: Path) -> Any:
    processes = [f"--direct_num_workers={n_workers}", "--direct_running_mode=multi_processing"]
    yield ["--runner=FnApiRunner", *(processes if n_workers > 1 else [])]


RUNNERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "embedded": ("Embedded", lambda folder: embedded(1, folder)),
    "processes": ("Embedded, 2 processes", lambda folder: embedded(2, folder)),
    "prism": ("Prism", columns.prism),
    "flink-1": ("Flink, 1 worker process", lambda folder: flink(1, folder)),
    "flink-2": ("Flink, 2 worker processes", lambda folder: flink(2, folder)),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m runners.scale", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=RUNNERS, default=list(RUNNERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path(".cache/runner-scale.json"))
    args = parser.parse_args()
    missing = missing_runners()
    if missing is None:
        fetch = {"prism": artifacts.prism, "flink": artifacts.flink_job_server}
        return isolate("runners.scale", fetch, print)
    numbers: dict[str, dict[str, Any]] = {}
    for name in args.only:
        title, start = RUNNERS[name]
        reason = missing.get(name.partition("-")[0])
        if reason:
            print(f"{title} is absent: {reason}")
            continue
        folder = Path(tempfile.mkdtemp(prefix=f"scale-{name}-"))
        with start(folder) as options:
            for workload in WORKLOADS:
                rounds = [measure(workload, folder, options) for _ in range(args.rounds + 1)][1:]
                median = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
                numbers.setdefault(workload, {})[name] = {"title": title, **median}
                print(f"{title}, {workload}: {median}", flush=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(numbers, indent=1) + "\n")
    return 0


def measure(workload: str, parent: Path, options: list[str]) -> dict[str, float]:
    """Run a workload once, and return its times in seconds and its rate in elements per second."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    began = time.monotonic()
    setting = Setting(folder, "")
    outcome = run(lambda pipeline, setting: build(workload, pipeline, setting), setting, options)
    ended = time.monotonic()
    n = WORKLOADS[workload][0]
    if outcome.output != [n]:
        raise RuntimeError(f"{workload}: {outcome.output} of {n} elements arrived. {outcome.error}")
    calls = [json.loads(line) for line in recorded(str(folder / "calls"))]
    first, last = min(start for start, _, _ in calls), max(end for _, end, _ in calls)
    return {
        "before_secs": first - began,
        "infer_secs": last - first,
        "after_secs": ended - last,
        "call_secs": sum(end - start for start, end, _ in calls),
        "calls": len(calls),
        "per_sec": n / (last - first),
    }


if __name__ == "__main__":
    sys.exit(main())
