"""Processes of one machine share a model."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import apache_beam as beam
import pytest

from common import RUNNER, CollectElements, Doubler, FunctionHandler, no_updates, run
from runinference import (
    KeyedModelHandler,
    KeyModelMapping,
    ModelHandler,
    ModelMetadata,
    RunInference,
)
from runinference.batching.policy import resolve_policy
from runinference.errors import ModelHostDiedError
from runinference.serving.placement import InProcessModel
from runinference.serving.routing import ModelVersion, make_router
from runinference.serving.shared_process import SharedProcessModel
from serving.workers import RecordingHandler, Worker, alive_models

PROGRAM = '''
import json, os, sys, time
from pathlib import Path

import apache_beam as beam
from runinference import ModelHandler, RunInference

folder, identifier, options, elements, waits, touches = json.loads(sys.argv[1])
folder = Path(folder)


class Multiplier(ModelHandler):
    """Multiplies by the number in a file, and records loads. Defined in the main program."""

    def load_model(self):
        with open(folder / "loads", "a") as file:
            file.write(f"{os.getpid()}\\n")
        return int((folder / "model" / "factor").read_text())

    def run_inference(self, batch, model, inference_args=None):
        if 13 in batch:
            raise UnluckyError("13", "an element")
        return [Answer(x, model * x) for x in batch]


class Answer:
    def __init__(self, example, inference):
        self.example, self.inference = example, inference


class UnluckyError(Exception):
    def __init__(self, what, of_what):
        super().__init__(f"{what} is {of_what} to avoid")


class Gate(beam.DoFn):
    """Touches a file for an element that passes, and blocks it until other files exist."""

    def __init__(self, where):
        self.where = where

    def process(self, element):
        name = f"{self.where} {getattr(element, 'example', element)}"
        if name in touches:
            (folder / touches[name]).touch()
        deadline = time.monotonic() + 60
        while not all((folder / file).exists() for file in waits.get(name, ())):
            assert time.monotonic() < deadline, f"{name} waited for {waits[name]}"
            time.sleep(0.02)
        yield element


class Print(beam.DoFn):
    def process(self, element):
        print("got", json.dumps(element), flush=True)


with beam.Pipeline(runner="FnApiRunner") as pipeline:
    inference = RunInference(Multiplier(max_batch_size=1, **options), model_identifier=identifier)
    results, letters = (
        pipeline
        | beam.Create(elements, reshuffle=False)
        | "before" >> beam.ParDo(Gate("before"))
        | inference.with_exception_handling()
    )
    results | beam.ParDo(Gate("after")) | beam.Map(lambda r: r.inference) | "yes" >> beam.ParDo(Print())
    failed = letters.failed_inferences | beam.MapTuple(lambda x, why: [x, why[1], why[2][0][:40]])
    failed | "no" >> beam.ParDo(Print())
print("pid", os.getpid())
'''


class Machine:
    """Starts programs that share a model, and reads their results."""

    def __init__(self, folder: Path, **options) -> None:
        self.folder, self.options = folder, options
        self.identifier = f"test-{uuid.uuid4()}"
        (folder / "model").mkdir()
        (folder / "model" / "factor").write_text("3")
        (folder / "tmp").mkdir()

    def start(self, elements, waits=None, touches=None) -> subprocess.Popen[str]:
        given = [
            str(self.folder),
            self.identifier,
            self.options,
            elements,
            waits or {},
            touches or {},
        ]
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(given)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(self.folder / "tmp"), "OMP_NUM_THREADS": "1"},
        )

    def wait_for(self, file: str) -> None:
        deadline = time.monotonic() + 60
        while not (self.folder / file).exists():
            assert time.monotonic() < deadline, file
            time.sleep(0.02)

    def loads(self) -> list[int]:
        return [int(line) for line in (self.folder / "loads").read_text().split()]


def wait_for_results(process: subprocess.Popen[str]) -> list:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return [json.loads(line[4:]) for line in output.splitlines() if line.startswith("got ")]


@pytest.mark.parametrize(
    ("options", "loads"), [({"large_model": True}, 1), ({"model_copies": 2}, 2)], ids=["one", "two"]
)
def test_processes_load_a_large_model_once_per_replica(tmp_path, options, loads):
    machine = Machine(tmp_path, **options)
    done = ["done-1", "done-2", "done-3"]
    processes = [
        machine.start(
            [n, 10 * n], waits={f"after {10 * n}": done}, touches={f"after {10 * n}": f"done-{n}"}
        )
        for n in (1, 2, 3)
    ]
    results = [sorted(wait_for_results(process)) for process in processes]
    assert results == [[3 * n, 30 * n] for n in (1, 2, 3)]
    assert len(machine.loads()) == loads
    assert os.listdir(tmp_path / "model") == ["factor"]


def test_another_process_loads_the_model_if_the_one_that_held_it_ends(tmp_path):
    machine = Machine(tmp_path, large_model=True)
    first = machine.start(
        [1], waits={"after 1": ["second-acquired"]}, touches={"after 1": "first-holds"}
    )
    machine.wait_for("first-holds")
    second = machine.start(
        [2, 4, 6],
        waits={"before 4": ["first-ended"]},
        touches={"after 2": "second-acquired"},
    )
    assert wait_for_results(first) == [3]
    (tmp_path / "first-ended").touch()
    assert wait_for_results(second) == [6, 12, 18]
    assert machine.loads() == [first.pid, second.pid]


def test_an_error_has_the_traceback_of_the_process_that_holds_the_model(tmp_path):
    machine = Machine(tmp_path, large_model=True)
    first = machine.start(
        [1], waits={"after 1": ["all-acquired"]}, touches={"after 1": "first-holds"}
    )
    machine.wait_for("first-holds")
    second = machine.start([13, 2], touches={"after 2": "all-acquired"})
    wait_for_results(first)
    [element, message, trace], result = wait_for_results(second)
    assert (element, result) == (13, 6)
    assert message == "UnluckyError('13 is an element to avoid')"
    assert trace.startswith("runinference.serving.ipc.RemoteTraceback: in anot"[:40])
    assert machine.loads() == [first.pid]


def test_a_refresh_frees_a_large_model_after_calls_from_several_threads():
    handler = RecordingHandler("first", large_model=True)
    step = RunInference(handler, model_metadata_pcoll=no_updates())._config()
    with ThreadPoolExecutor(3) as threads:
        workers = [Worker(step) for _ in range(3)]
        for n in range(4):
            update = ModelMetadata(f"update-{n}", "")
            together = threading.Barrier(3)

            def call(worker, update=update, together=together):
                together.wait(30)
                return worker.results(1, update=update)

            assert list(threads.map(call, workers)) == [[(1, update.model_id)]] * 3
        assert alive_models() == ["update-3"]
    assert [RecordingHandler.loads.count(f"update-{n}") for n in range(4)] == [1] * 4


def test_each_model_of_a_keyed_handler_has_its_own_placement():
    here = FunctionHandler(lambda batch: [os.getpid()] * len(batch))
    shared = FunctionHandler(lambda batch: [os.getpid()] * len(batch), large_model=True)
    handler = KeyedModelHandler([KeyModelMapping(["h"], here), KeyModelMapping(["s"], shared)])
    place = RunInference(handler)._config().session.placement
    found = {key: place(make_router(handler).route((key, 1))) for key in "hs"}
    assert {key: type(model) for key, model in found.items()} == {
        "h": InProcessModel,
        "s": SharedProcessModel,
    }
    for key, model in found.items():
        assert model.run(handler.handler_for(key), [(key, 1)], None) == [(key, os.getpid())]
        model.close()


def test_reloads_a_large_model_after_a_call_times_out():
    class Sticky(Doubler):
        hung = threading.Event()

        def run_inference(self, batch, model, inference_args=None):
            if 13 in batch:
                self.hung.wait(60)
            return super().run_inference(batch, model, inference_args)

    handler = Sticky("sticky-large", max_batch_size=1, large_model=True)
    transform = RunInference(handler).with_exception_handling(timeout=5)
    good, bad = [], []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        results, letters = pipeline | beam.Create([1, 13, 2], reshuffle=False) | transform
        _ = results | "good" >> beam.ParDo(CollectElements(good))
        _ = letters.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
    Sticky.hung.set()
    assert sorted(result.example for result in CollectElements.take(good)) == [1, 2]
    assert [element for element, _ in CollectElements.take(bad)] == [13]


def test_a_failed_load_raises_the_same_error_in_every_placement():
    class Missing(Doubler):
        def load_model(self):
            raise FileNotFoundError("no such model")

    for options in ({}, {"large_model": True}):
        with pytest.raises(FileNotFoundError, match="no such model"):
            run([1], RunInference(Missing("missing", **options)))


def test_calls_replicas_in_turn():
    class Which(ModelHandler):
        n = 0

        def load_model(self):
            Which.n += 1
            return Which.n

        def run_inference(self, batch, model, inference_args=None):
            return [model for _ in batch]

    handler = Which(model_copies=3)
    models = SharedProcessModel(
        ModelVersion("", handler, resolve_policy(handler)), tag=f"test-{uuid.uuid4()}"
    )
    assert [models.run(handler, [0], None) for _ in range(6)] == [[1], [2], [3], [1], [2], [3]]
    models.close()


def test_no_batch_is_sent_over_tcp():
    before = tcp_connections()
    handler = FunctionHandler(lambda batch: batch, large_model=True)
    version = ModelVersion("", handler, resolve_policy(handler))
    model = SharedProcessModel(version, tag=f"test-{uuid.uuid4()}")
    connected = tcp_connections()
    with ThreadPoolExecutor(4) as threads:
        together = threading.Barrier(4)

        def call(n):
            together.wait(30)
            return model.run(handler, [n], None)

        assert list(threads.map(call, range(4))) == [[n] for n in range(4)]
    assert tcp_connections() == connected == before
    model.close()


def tcp_connections() -> set[tuple[int, int | None]]:
    """Return the ports of the TCP sockets of this process and of their peers."""
    found: set[tuple[int, int | None]] = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue  # a duplicate of anything else would keep it open
            with socket.socket(fileno=os.dup(int(name))) as duplicate:
                if duplicate.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                port, peer = duplicate.getsockname()[1], None
                with suppress(OSError):
                    peer = duplicate.getpeername()[1]
                found.add((port, peer))
        except OSError:  # already closed
            continue
    return found


def test_frees_the_model_when_its_last_user_releases_it():
    handler = RecordingHandler("shared", large_model=True)
    version, tag = ModelVersion("", handler, resolve_policy(handler)), f"test-{uuid.uuid4()}"
    first, second = SharedProcessModel(version, tag), SharedProcessModel(version, tag)
    assert first.run(handler, [1], None) == second.run(handler, [1], None) == [(1, "shared")]
    first.close()
    assert alive_models() == ["shared"]
    second.close()
    assert alive_models() == []
    assert RecordingHandler.loads == ["shared"]


def test_reloads_a_deleted_model():
    handler = RecordingHandler("shared", large_model=True)
    version, tag = ModelVersion("", handler, resolve_policy(handler)), f"test-{uuid.uuid4()}"
    first, second = SharedProcessModel(version, tag), SharedProcessModel(version, tag)
    assert alive_models() == ["shared"]
    assert first.run(handler, [1], None) == second.run(handler, [1], None) == [(1, "shared")]
    first.terminate()
    assert alive_models() == []
    assert second.run(handler, [2], None) == [(2, "shared")]
    assert RecordingHandler.loads == ["shared"] * 2
    second.close()


def test_closes_its_connections_when_it_is_released():
    handler = FunctionHandler(lambda batch: batch, large_model=True)
    version = ModelVersion("", handler, resolve_policy(handler))
    SharedProcessModel(
        version, tag=f"test-{uuid.uuid4()}"
    ).close()  # the process listens from now on
    before = server_threads()
    model = SharedProcessModel(version, tag=f"test-{uuid.uuid4()}")
    model.run(handler, [1], None)
    new = server_threads() - before
    assert new
    model.close()
    for thread in new:
        thread.join(30)
        assert not thread.is_alive()


def server_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "runinference-server"}


def test_reports_an_error_that_is_not_an_exception():
    def interrupt(batch):
        raise KeyboardInterrupt

    handler = FunctionHandler(interrupt, large_model=True)
    version = ModelVersion("", handler, resolve_policy(handler))
    model = SharedProcessModel(version, tag=f"test-{uuid.uuid4()}")
    with pytest.raises(KeyboardInterrupt):
        model.run(handler, [1], None)
    model.close()


def _end_in_native_code():
    ctypes.string_at(0)


DEATHS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(3),
    "crash": _end_in_native_code,
}


class Fragile(ModelHandler):
    """Ends its process on a poison element, as native code of a framework may."""

    def __init__(self, death: str, **options) -> None:
        super().__init__(large_model=True, min_batch_size=4, **options)
        self.death = death

    def load_model(self):
        if self.death == "load":
            DEATHS["killed"]()
        return os.getpid()

    def run_inference(self, batch, model, inference_args=None):
        if "poison" in batch:
            faulthandler.disable()
            DEATHS[self.death]()
        return [(x, model) for x in batch]


class WorkerProcess:
    """A worker process, which shares the models of its machine."""

    def __init__(self, step) -> None:
        self.connection, other = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(
            target=self._run, args=(step, other), daemon=True
        )
        self.process.start()
        other.close()

    @staticmethod
    def _run(step, connection) -> None:
        worker = Worker(step)
        while elements := connection.recv():
            try:
                connection.send(worker.bundle(*elements))
            except Exception as error:
                connection.send(error)

    def bundle(self, *elements):
        self.connection.send(elements)
        return self.connection.recv()


@pytest.fixture
def worker_processes():
    started = []

    def start(step, n):
        started.extend(WorkerProcess(step) for _ in range(n))
        return started

    yield start
    for worker in started:
        worker.process.kill()
        worker.process.join()


@pytest.mark.parametrize("death", DEATHS)
def test_a_poison_element_ends_one_process_and_not_those_that_call_it(death, worker_processes):
    """The call used to be repeated in the process that asked for it, which ended too, and so on."""
    step = RunInference(Fragile(death)).with_exception_handling()._config()
    workers = worker_processes(step, 3)
    host = workers[0].process
    assert [worker.bundle(1) for worker in workers] == [([(1, host.pid)], [])] * 3
    assert workers[1].bundle("poison", 2) == ([], ["poison", 2])
    host.join(30)
    assert host.exitcode is not None
    survivors = workers[1:]
    [(_, pid)] = survivors[1].bundle(3)[0]
    assert pid in [worker.process.pid for worker in survivors]
    assert survivors[0].bundle(4) == ([(4, pid)], [])
    assert all(worker.process.is_alive() for worker in survivors)


def test_without_dead_letters_a_call_that_ends_the_process_of_the_model_raises(worker_processes):
    workers = worker_processes(RunInference(Fragile("killed"))._config(), 2)
    assert workers[0].bundle(1) == workers[1].bundle(1)
    assert isinstance(workers[1].bundle("poison"), ModelHostDiedError)
    assert workers[1].bundle(2) == ([(2, workers[1].process.pid)], [])


def test_a_process_that_is_killed_is_no_longer_a_user_of_the_model(
    worker_processes, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # without the files of other tests
    step = RunInference(Fragile("killed")).with_exception_handling()._config()
    first, second = worker_processes(step, 2)
    assert first.bundle(1) == second.bundle(1)
    directory = Path(tempfile.gettempdir(), f"runinference-{os.getuid()}")
    files = set(directory.iterdir())
    second.process.kill()
    second.process.join()
    assert first.bundle(2)[0] == [(2, first.process.pid)]
    first.process.kill()
    first.process.join()
    handler = FunctionHandler(list, large_model=True)
    version = ModelVersion("", handler, resolve_policy(handler))
    SharedProcessModel(version, tag=f"test-{uuid.uuid4()}").close()
    assert not files & set(directory.iterdir())


def test_a_load_of_one_model_does_not_wait_for_that_of_another():
    class Nested(FunctionHandler):
        def load_model(self):
            inner = FunctionHandler(list, large_model=True)
            version = ModelVersion("", inner, resolve_policy(inner))
            model = SharedProcessModel(version, tag=f"test-{uuid.uuid4()}")
            try:
                return model.run(inner, [7], None)
            finally:
                model.close()

        def run_inference(self, batch, model, inference_args=None):
            return model * len(batch)

    handler = Nested(list, large_model=True)
    version = ModelVersion("", handler, resolve_policy(handler))
    model = SharedProcessModel(version, tag=f"test-{uuid.uuid4()}")
    assert model.run(handler, [1, 2], None) == [7, 7]
    model.close()
