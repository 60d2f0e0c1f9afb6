"""Kill workers and task managers of a Flink cluster during inference, and compare the output with a plain loop.

Each scenario runs a pipeline on a cluster of its own. A worker process is killed with SIGKILL, then a task
manager, and the model file is replaced in between. Each element must arrive exactly once, with the prediction of
one of the two models.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam

from runinference import ModelHandler, PredictionResult, RunInference
from runners import artifacts, columns, servers
from runners.child import run
from runners.features import Setting, numbers, record, recorded, stream
from runners.isolation import isolate, missing_runners

N_BATCH = 600
N_STREAM = 600
#: The time that the model takes for an element.
ELEMENT_SECS = 0.02
CALLS_BEFORE_KILL = 30
TIME_LIMIT_SECS = 240
#: Flink makes no checkpoints after a source has ended, so the sources stay open longer than the stream lasts.
#: Without the last option, a checkpoint can lose the remaining elements of a splittable DoFn (`PeriodicImpulse`).
CHECKPOINTS = (
    "--streaming",
    "--checkpointing_interval=2000",
    "--shutdown_sources_after_idle_ms=60000",
    "--finish_bundle_before_checkpointing",
)
#: A file that Beam leaves behind when the process that starts a pipeline ends.
OF_BEAM = "submission_environment_dependencies.txt"


class SlowMultiply(ModelHandler):
    """Multiply numbers by a factor from a file, slowly, and record each load and each call."""

    def __init__(self, folder: str, **options: Any) -> None:
        super().__init__(max_batch_size=4, **options)
        self.path = f"{folder}/2.txt"
        self.log = f"{folder}/calls"

    def load_model(self) -> float:
        record(f"{self.log}.loads", str(os.getpid()))
        return float(Path(self.path).read_text())

    def update_model_path(self, model_path: str | None = None) -> None:
        self.path = model_path or self.path

    def run_inference(self, batch: Any, model: float, inference_args: Any = None) -> Any:
        record(self.log, str(os.getpid()))
        time.sleep(ELEMENT_SECS * len(batch))
        return [PredictionResult(x, x * model) for x in batch]


def note_worker(element: int, path: str) -> int:
    """Record the process of the worker."""
    record(path, str(os.getpid()))
    return element


@dataclass(frozen=True)
class Scenario:
    """A pipeline whose workers are killed.

    Attributes:
        title: The name in the table.
        n_elements: The number of elements.
        source: Builds the source.
        infer: Builds the inference step.
        handler_options: The options of the handler.
        flags: Pipeline options.
        checkpoints: Whether a checkpoint is completed before each kill.
        new_model: The name of the file of the new model.
    """

    title: str
    n_elements: int
    source: Callable[[beam.Pipeline, Setting, int], beam.PCollection]
    infer: Callable[[SlowMultiply, Setting], beam.PTransform]
    handler_options: dict[str, Any]
    flags: tuple[str, ...] = ()
    checkpoints: bool = False
    new_model: str = "2.txt"

    def build(self, pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
        handler = SlowMultiply(str(setting.folder), **self.handler_options)
        return (
            self.source(pipeline, setting, self.n_elements)
            | "Worker" >> beam.Map(note_worker, setting.path("workers"))
            | self.infer(handler, setting)
            | beam.Map(lambda result: [result.example, result.inference])
        )


def batch_source(pipeline: beam.Pipeline, setting: Setting, n: int) -> beam.PCollection:
    return numbers(pipeline, n)


def plain(handler: SlowMultiply, setting: Setting) -> beam.PTransform:
    return RunInference(handler)


def watched(handler: SlowMultiply, setting: Setting) -> beam.PTransform:
    return RunInference(handler, watch_model_pattern=setting.path("?.txt"), interval=0.5)


def in_subprocess(handler: SlowMultiply, setting: Setting) -> beam.PTransform:
    return RunInference(handler).with_exception_handling(use_subprocess=True, timeout=60)


class GoodOnly(beam.PTransform):
    """Apply an inference step with dead letters, and return the results."""

    def __init__(self, step: beam.PTransform) -> None:
        super().__init__()
        self._step = step

    def expand(self, elements: beam.PCollection) -> beam.PCollection:
        results, dlq = elements | self._step
        dead = dlq.failed_inferences | beam.MapTuple(lambda x, error: PredictionResult(x, error[1]))
        return (results, dead) | beam.Flatten()


SCENARIOS = {
    "batch": Scenario("Batch", N_BATCH, batch_source, plain, {}),
    "stream": Scenario(
        "Stream",
        N_STREAM,
        stream,
        watched,
        {},
        CHECKPOINTS,
        checkpoints=True,
        new_model="3.txt",
    ),
    "large": Scenario("Large model, batch", N_BATCH, batch_source, plain, {"large_model": True}),
    "subprocess": Scenario(
        "Model in a subprocess, batch",
        N_BATCH,
        batch_source,
        lambda handler, setting: GoodOnly(in_subprocess(handler, setting)),
        {},
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m runners.kills", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--runs", type=int, default=1, help="how often each scenario runs")
    parser.add_argument("--json", type=Path, default=Path(".cache/runner-kills.json"))
    parser.add_argument("--pipeline", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pipeline:
        return run_pipeline(*args.pipeline)
    missing = missing_runners()
    if missing is None:
        return isolate("runners.kills", {"flink": columns.fetch_flink_cluster}, print)
    if missing:
        print(f"Flink is absent: {missing['flink']}")
        return 1
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in args.only}
    for _ in range(args.runs):
        for name in args.only:
            figures = run_scenario(name)
            runs[name].append(figures)
            print(f"{SCENARIOS[name].title}: {figures}", flush=True)
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(runs, indent=1) + "\n")
    bad = [figures for each in runs.values() for figures in each if not figures["clean"]]
    print(f"{sum(map(len, runs.values())) - len(bad)} clean runs, {len(bad)} others")
    return 1 if bad else 0


def run_pipeline(name: str, request: str) -> int:
    """Run the pipeline of a scenario, in a process of its own, and write its output."""
    given = json.loads(Path(request).read_text())
    setting = Setting(Path(given["folder"]), "", lead_secs=20)
    outcome = run(SCENARIOS[name].build, setting, given["options"])
    error = outcome.error and outcome.error[-300:]
    Path(given["outcome"]).write_text(json.dumps([outcome.output, error]))
    return 0


def run_scenario(name: str) -> dict[str, Any]:
    """Run a scenario on a new cluster, and return its figures."""
    scenario = SCENARIOS[name]
    jars, class_path = artifacts.flink(print), artifacts.flink_job_server(print)
    folder = Path(tempfile.mkdtemp(prefix=f"kills-{name}-"))
    # Workers inherit the folder for temporary files, so that those they leave can be counted.
    worker_files = folder / "worker-files"
    worker_files.mkdir()
    os.environ["TMPDIR"] = str(worker_files)
    (folder / "2.txt").write_text("2")
    began = time.monotonic()
    with (
        servers.FlinkCluster(jars, folder) as cluster,
        servers.flink_job_server(class_path, folder, cluster.address) as address,
    ):
        options = [
            *columns.FLINK,
            f"--job_endpoint={address}",
            *columns.process_options(folder),
            *scenario.flags,
        ]
        request, outcome = folder / "request.json", folder / "outcome.json"
        request.write_text(
            json.dumps({"folder": str(folder), "options": options, "outcome": str(outcome)})
        )
        command = [sys.executable, "-m", "runners.kills", "--pipeline", name, str(request)]
        with servers.process(command, folder / "pipeline.log") as pipeline:
            recoveries = kill_while_running(scenario, cluster, folder, pipeline)
            restored = cluster.count_checkpoints("restored")
            pipeline.wait(TIME_LIMIT_SECS)
    secs = time.monotonic() - began
    output, error = json.loads(outcome.read_text()) if outcome.exists() else (None, "no outcome")
    compared = compare(output or [], scenario.n_elements)
    right = not (compared["lost"] or compared["duplicates"] or compared["wrong"])
    right = right and error is None and len(recoveries) == 2
    right = right and restored == (2 if scenario.checkpoints else 0)
    figures = {
        "title": scenario.title,
        "clean": right,
        **compared,
        "error": error,
        "kills": len(recoveries),
        "checkpoints_restored": restored,
        "recovery_secs": [round(each, 1) for each in recoveries],
        "loads": len(recorded(str(folder / "calls.loads"))),
        "processes_left": processes_left(folder),
        "files_left": [
            str(path.relative_to(worker_files))
            for path in sorted(worker_files.rglob("*"))
            if not path.is_dir() and path.name != OF_BEAM
        ],
        "secs": round(secs, 1),
    }
    if figures["clean"]:
        shutil.rmtree(folder)
    else:
        print(f"The logs are in {folder}", flush=True)
    return figures


def compare(output: list[Any], n_elements: int) -> dict[str, Any]:
    """Compare the output with a plain loop over both models."""
    counts = Counter(x for x, _ in output)
    return {
        "elements": n_elements,
        "lost": sum(x not in counts for x in range(n_elements)),
        "duplicates": sum(n - 1 for n in counts.values()),
        "wrong": sum(inference not in (2 * x, 3 * x) for x, inference in output),
        "with_new_model": sum(inference == 3 * x for x, inference in output if x),
    }


def kill_while_running(
    scenario: Scenario,
    cluster: servers.FlinkCluster,
    folder: Path,
    pipeline: subprocess.Popen[bytes],
) -> list[float]:
    """Kill a worker, then a task manager. Return how long it took until the model was called again."""
    calls, workers = str(folder / "calls"), str(folder / "workers")
    recoveries = []
    for kill_task_manager in (False, True):
        n_calls = len(recorded(calls)) + CALLS_BEFORE_KILL
        if not wait_for(pipeline, lambda n=n_calls: len(recorded(calls)) >= n):
            break
        if scenario.checkpoints:
            completed = cluster.count_checkpoints("completed")
            if not wait_for(
                pipeline, lambda n=completed: cluster.count_checkpoints("completed") > n
            ):
                break
        worker = int(recorded(workers)[-1])
        victim = parent(worker) if kill_task_manager else worker
        n_workers = len(recorded(workers))
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        if kill_task_manager:
            cluster.start_task_manager()  # as Kubernetes or YARN would
        else:
            part = folder / "new"
            part.write_text("3")
            # A stream watches for a new file; a batch loads the replaced file when its worker restarts.
            part.rename(folder / scenario.new_model)
        # Other workers of the job may go on for a moment, so only a new process counts.
        old = set(recorded(workers)[:n_workers])
        if not wait_for(pipeline, lambda old=old: not set(recorded(workers)) <= old):
            break
        recoveries.append(time.monotonic() - killed)
    return recoveries


def wait_for(pipeline: subprocess.Popen[bytes], condition: Callable[[], bool]) -> bool:
    """Wait until a condition holds. Return False if the pipeline ends before."""
    deadline = time.monotonic() + TIME_LIMIT_SECS
    while not condition():
        if pipeline.poll() is not None or time.monotonic() > deadline:
            return condition()
        time.sleep(0.05)
    return True


def parent(pid: int) -> int:
    """Return the parent of a process."""
    with suppress(FileNotFoundError):
        status = Path(f"/proc/{pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid"))
    return pid


def processes_left(folder: Path, patience_secs: float = 15) -> int:
    """Return how many processes of a scenario still run, after they had time to end."""
    deadline = time.monotonic() + patience_secs
    while left := sum(1 for _ in processes_of(folder)):
        if time.monotonic() > deadline:
            return left
        time.sleep(0.2)
    return 0


def processes_of(folder: Path) -> Iterator[int]:
    """Yield the processes that have the folder in their environment, other than this one."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        pid = int(path.parent.name)
        with suppress(OSError):
            if pid != os.getpid() and f"TMPDIR={folder}".encode() in path.read_bytes():
                yield pid


if __name__ == "__main__":
    sys.exit(main())
