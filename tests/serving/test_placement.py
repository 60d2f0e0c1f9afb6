"""One model for all who may share it: threads, steps, processes; within a budget; freed when nobody needs it."""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import traceback
import uuid
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from unittest import mock

import apache_beam as beam
import numpy as np
import pytest
import torch
from apache_beam.internal import pickler
from apache_beam.metrics import MetricsFilter
from apache_beam.transforms.window import GlobalWindow, WindowedValue

from common import RUNNER, CollectElements, Doubler, FunctionHandler, run
from runinference import (
    KeyedModelHandler,
    KeyModelMapping,
    ModelHandler,
    ModelMetadata,
    RunInference,
)
from runinference.batching.policy import resolve_policy
from runinference.caching.memory_budget import available_memory_bytes, limits_from_args
from runinference.errors import ChildDiedError, OptionError, UnknownOptionError
from runinference.serving.ipc import dumps, dumps_outcome, loads
from runinference.serving.placement import InProcessModel, SharedProcessModel, model_bytes
from runinference.serving.routing import ModelVersion, make_router
from runinference.serving.subprocess_model import SubprocessModel
from runinference.transforms.infer_dofn import InferDoFn


class Weights:
    """A model with a size, which can be watched."""

    alive: weakref.WeakSet[Weights] = weakref.WeakSet()

    def __init__(self, name: str, n_bytes: int) -> None:
        self.name = name
        self.array = np.ones(n_bytes, np.uint8)
        self.alive.add(self)


class Watched(ModelHandler):
    """Loads ``Weights`` by name, and notes what was loaded and how many lived then."""

    loads: list[str] = []
    most_alive = 0
    budget: dict[str, float] = {}  # one that no other test has
    lock = threading.Lock()

    def __init__(self, name: str, n_bytes: int = 1, **options) -> None:
        super().__init__(**options)
        self.name, self.n_bytes = name, n_bytes

    def load_model(self):
        model = Weights(self.name, self.n_bytes)
        with self.lock:
            Watched.loads.append(self.name)
            Watched.most_alive = max(Watched.most_alive, len(Weights.alive))
        return model

    def update_model_path(self, model_path=None):
        self.name = model_path or self.name

    def run_inference(self, batch, model, inference_args=None):
        assert model.name == self.name, "a handler called another model than its own"
        return [(x, model.name) for x in batch]


_NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def _fresh():
    gc.collect()
    Weights.alive.clear()
    Watched.loads.clear()
    Watched.most_alive = 0
    Watched.budget = {"wait_timeout_seconds": 60 + next(_NUMBERS)}


class Worker:
    """A thread of a worker: drives the DoFn of a step as a runner does, on a copy of its own."""

    def __init__(self, step) -> None:
        self.do_fn = pickler.loads(pickler.dumps(InferDoFn(step)))
        self.do_fn.setup()

    def bundle(self, element, update=None):
        self.do_fn.start_bundle()
        origin = WindowedValue(element, 0, (GlobalWindow(),))
        outputs = list(self.do_fn.process(element, origin, update) or [])
        outputs += self.do_fn.finish_bundle()
        return [output.value for output in outputs]


def living() -> list[str]:
    gc.collect()
    return sorted(weights.name for weights in Weights.alive)


# Threads and steps of one process


def test_four_threads_share_one_model():
    step = RunInference(Watched("one"))._config()
    with ThreadPoolExecutor(4) as threads:
        workers = list(threads.map(lambda _: Worker(step), range(4)))
        results = list(threads.map(lambda worker: worker.bundle(1), workers))
    assert results == [[(1, "one")]] * 4
    assert Watched.loads == ["one"]


@pytest.mark.parametrize("together", [True, False])
def test_steps_share_a_model_if_they_give_the_same_identifier(together):
    names = ("same", "same") if together else ("one", "other")
    with beam.Pipeline(runner=RUNNER) as pipeline:
        numbers = pipeline | beam.Create([1, 2])
        for place, name in zip(("left", "right"), names, strict=True):
            identifier = f"{name}-{uuid.uuid4() if not together else 'shared'}"
            _ = numbers | place >> RunInference(Watched("m"), model_identifier=identifier)
    assert Watched.loads == (["m"] if together else ["m", "m"])


@pytest.mark.parametrize(
    "model",
    [{"a": 1}, [1, 2], (1, 2), 7, "text", None, frozenset()],
    ids=lambda m: type(m).__name__,
)
def test_any_object_can_be_a_model_that_is_shared(model):
    class Returns(FunctionHandler):
        def load_model(self):
            return model

        def run_inference(self, batch, model, inference_args=None):
            return [model for _ in batch]

    assert run([0], RunInference(Returns(len))) == [model]


# Processes of one machine

PROGRAM = '''
import json, os, sys, time
from pathlib import Path

import apache_beam as beam
from runinference import ModelHandler, RunInference

folder, identifier, options, elements, waits, tells = json.loads(sys.argv[1])
folder = Path(folder)


class Multiplier(ModelHandler):
    """Multiplies by what a file says; notes who loads it. A class of the main program."""

    def load_model(self):
        with open(folder / "loads", "a") as file:
            file.write(f"{os.getpid()}\\n")
        return int((folder / "model" / "factor").read_text())

    def run_inference(self, batch, model, inference_args=None):
        if 13 in batch:
            raise Unlucky("13", "an element")
        return [Answer(x, model * x) for x in batch]


class Answer:
    def __init__(self, example, inference):
        self.example, self.inference = example, inference


class Unlucky(Exception):
    def __init__(self, what, of_what):
        super().__init__(f"{what} is {of_what} to avoid")


class Gate(beam.DoFn):
    """Tells what passes by touching a file, and holds it until others did."""

    def __init__(self, where):
        self.where = where

    def process(self, element):
        name = f"{self.where} {getattr(element, 'example', element)}"
        if name in tells:
            (folder / tells[name]).touch()
        deadline = time.monotonic() + 60
        while not all((folder / file).exists() for file in waits.get(name, ())):
            assert time.monotonic() < deadline, f"{name} waited for {waits[name]} in vain"
            time.sleep(0.02)
        yield element


class Say(beam.DoFn):
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
    results | beam.ParDo(Gate("after")) | beam.Map(lambda r: r.inference) | "yes" >> beam.ParDo(Say())
    failed = letters.failed_inferences | beam.MapTuple(lambda x, why: [x, why[1], why[2][0][:40]])
    failed | "no" >> beam.ParDo(Say())
print("pid", os.getpid())
'''


class Machine:
    """Starts programs that share a model, and reads what they did."""

    def __init__(self, folder: Path, **options) -> None:
        self.folder, self.options = folder, options
        self.identifier = f"test-{uuid.uuid4()}"
        (folder / "model").mkdir()
        (folder / "model" / "factor").write_text("3")
        (folder / "tmp").mkdir()

    def start(self, elements, waits=None, tells=None) -> subprocess.Popen[str]:
        given = [
            str(self.folder),
            self.identifier,
            self.options,
            elements,
            waits or {},
            tells or {},
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


def results_of(process: subprocess.Popen[str]) -> list:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return [json.loads(line[4:]) for line in output.splitlines() if line.startswith("got ")]


@pytest.mark.parametrize(
    ("options", "loads"), [({"large_model": True}, 1), ({"model_copies": 2}, 2)], ids=["one", "two"]
)
def test_processes_of_a_machine_load_a_large_model_once_for_each_copy(tmp_path, options, loads):
    machine = Machine(tmp_path, **options)
    done = ["done-1", "done-2", "done-3"]
    processes = [
        machine.start(
            [n, 10 * n], waits={f"after {10 * n}": done}, tells={f"after {10 * n}": f"done-{n}"}
        )
        for n in (1, 2, 3)
    ]
    results = [sorted(results_of(process)) for process in processes]
    assert results == [[3 * n, 30 * n] for n in (1, 2, 3)]
    assert len(machine.loads()) == loads
    assert os.listdir(tmp_path / "model") == ["factor"]


def test_when_the_process_that_held_a_large_model_ends_another_one_holds_it(tmp_path):
    machine = Machine(tmp_path, large_model=True)
    first = machine.start(
        [1], waits={"after 1": ["second-asked"]}, tells={"after 1": "first-holds"}
    )
    machine.wait_for("first-holds")
    second = machine.start(
        [2, 4, 6],
        waits={"before 4": ["first-ended"]},
        tells={"after 2": "second-asked"},
    )
    assert results_of(first) == [3]
    (tmp_path / "first-ended").touch()
    assert results_of(second) == [6, 12, 18]
    assert machine.loads() == [first.pid, second.pid]


def test_an_error_comes_from_the_process_that_holds_the_model_with_its_traceback(tmp_path):
    machine = Machine(tmp_path, large_model=True)
    first = machine.start([1], waits={"after 1": ["all-asked"]}, tells={"after 1": "first-holds"})
    machine.wait_for("first-holds")
    second = machine.start([13, 2], tells={"after 2": "all-asked"})
    results_of(first)
    [element, message, trace], result = results_of(second)
    assert (element, result) == (13, 6)
    assert message == "RuntimeError('Unlucky: 13 is an element to avoid')"
    assert trace.startswith("runinference.serving.ipc._Elsewhere: in anot"[:40])
    assert machine.loads() == [first.pid]


def test_a_large_model_is_freed_after_a_refresh_whatever_thread_called_it_last():
    handler = Watched("first", large_model=True)
    step = RunInference(handler, model_metadata_pcoll=object())._config()
    with ThreadPoolExecutor(3) as threads:
        workers = [Worker(step) for _ in range(3)]
        for n in range(4):
            update = ModelMetadata(f"update-{n}", "")
            together = threading.Barrier(3)

            def call(worker, update=update, together=together):
                together.wait(30)
                return worker.bundle(1, update)

            assert list(threads.map(call, workers)) == [[(1, update.model_id)]] * 3
        assert living() == ["update-3"]
    assert [Watched.loads.count(f"update-{n}") for n in range(4)] == [1] * 4


def test_of_several_models_each_lives_where_its_own_handler_says():
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


def test_a_large_model_that_hung_is_given_up_and_a_fresh_one_loaded():
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


def test_a_model_that_cannot_be_loaded_is_the_same_error_wherever_it_lives():
    class Missing(Doubler):
        def load_model(self):
            raise FileNotFoundError("no such model")

    for options in ({}, {"large_model": True}):
        with pytest.raises(FileNotFoundError, match="no such model"):
            run([1], RunInference(Missing("missing", **options)))


def test_all_copies_of_a_model_take_their_turns():
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


def test_nothing_that_goes_between_processes_is_held_back():
    """Without TCP_NODELAY at both ends a batch of 16 to 64 kB took 40 ms; with it, half a millisecond."""
    before = set(connections())
    handler = FunctionHandler(lambda batch: batch, large_model=True)
    model = SharedProcessModel(
        ModelVersion("", handler, resolve_policy(handler)), tag=f"test-{uuid.uuid4()}"
    )
    model.run(handler, [1], None)
    new = {ends: at_once for ends, at_once in connections().items() if ends not in before}
    model.close()
    [port] = {own for own, other in new if other is None}  # where the model's process listens
    assert [at_once for (own, other), at_once in new.items() if own == port and other] == [True]
    assert [at_once for (_, other), at_once in new.items() if other == port] == [True]


def connections() -> dict[tuple[int, int | None], bool]:
    """The sockets of this process, by both ports, and whether each sends at once."""
    found: dict[tuple[int, int | None], bool] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue  # a twin of anything else would keep it open
            with socket.socket(fileno=os.dup(int(name))) as twin:
                at_once = bool(twin.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                own, other = twin.getsockname()[1], None
                with suppress(OSError):
                    other = twin.getpeername()[1]
                found[own, other] = at_once
        except OSError:  # closed already, or a socket of another kind
            continue
    return found


# A child


class Trouble(ModelHandler):
    """Does what it is told."""

    def load_model(self):
        return os.getpid()

    def run_inference(self, batch, model, inference_args=None):
        [order] = batch
        if order == "crash":
            os._exit(11)
        if order == "exit":
            sys.exit(3)
        if order == "hang":
            time.sleep(600)
        if order == "fail":
            raise ValueError("as I was told")
        if order == "fail strangely":
            raise StrangeError("two", "words")
        return [(order, model)]


class StrangeError(Exception):
    def __init__(self, one, other) -> None:
        super().__init__(f"{one} {other}")


@pytest.fixture
def child():
    model = SubprocessModel(ModelVersion("", Trouble(), None))
    yield model
    model.close()


def ask(child, order):
    return child.run(None, [order], None)


def test_an_error_in_a_child_comes_back_with_its_traceback_and_the_child_lives_on(child):
    [(_, pid)] = ask(child, "work")
    assert pid != os.getpid()
    with pytest.raises(ValueError, match="as I was told") as caught:
        ask(child, "fail")
    lines = "".join(traceback.format_exception(caught.value.__cause__))
    assert "in another process" in lines
    assert "in run_inference" in lines
    with pytest.raises(RuntimeError, match="StrangeError: two words"):
        ask(child, "fail strangely")
    assert ask(child, "work") == [("work", pid)]


@pytest.mark.parametrize(("order", "how"), [("crash", "exit code 11"), ("exit", "exit code 3")])
def test_a_child_that_ends_says_how(child, order, how):
    for _ in range(2):
        with pytest.raises(ChildDiedError, match=how):
            ask(child, order)


def test_who_waits_for_a_child_that_is_killed_gets_an_error(child):
    errors = []

    def wait():
        try:
            ask(child, "hang")
        except ChildDiedError as error:
            errors.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.2)
    child.abandon()
    thread.join(30)
    [error] = errors
    assert "signal 9" in error


def test_a_child_that_cannot_load_its_model_says_why():
    class Missing(ModelHandler):
        def load_model(self):
            raise FileNotFoundError("no such model")

    with pytest.raises(FileNotFoundError, match="no such model"):
        SubprocessModel(ModelVersion("", Missing(), None))


def test_arrays_cross_to_another_process_as_they_are():
    array = np.random.default_rng(0).random(1000)
    assert array.tobytes() in dumps([array])


def test_an_answer_that_cannot_be_pickled_is_an_error():
    with pytest.raises(Exception, match="pickle"):
        loads(dumps_outcome(lambda: (number for number in range(3))))


# The model manager


def managed(name, n_bytes=1, **room):
    return RunInference(
        Watched(name, n_bytes),
        model_identifier=name,
        use_model_manager=True,
        model_manager_args={**Watched.budget, **room},
    )._config()


def test_steps_share_one_budget_and_the_least_recently_used_model_goes():
    a, b, c = (Worker(managed(name, max_models=2)) for name in "abc")
    for worker, alive in ((a, "a"), (b, "ab"), (a, "ab"), (c, "ac"), (a, "ac"), (b, "ab")):
        worker.bundle(1)
        assert living() == list(alive)
    assert Watched.loads == ["a", "b", "c", "b"]
    assert Watched.most_alive <= 2


def test_the_budget_may_be_in_bytes():
    room = {"max_model_bytes": 100 << 20}
    a, b, c = (Worker(managed(name, 40 << 20, **room)) for name in "abc")
    for worker, alive in ((a, "a"), (b, "ab"), (c, "bc"), (b, "bc")):
        worker.bundle(1)
        assert living() == list(alive)


def test_evictions_are_counted():
    pipeline = beam.Pipeline(runner=RUNNER)
    numbers = pipeline | beam.Create(range(4), reshuffle=False)
    for name in ("one", "other"):
        _ = numbers | name >> RunInference(
            Watched(name, max_batch_size=1),
            use_model_manager=True,
            model_manager_args={**Watched.budget, "max_models": 1},
        )
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query(MetricsFilter().with_name("model_evictions"))["counters"]
    assert sum(counter.committed for counter in counters) == len(Watched.loads) - 1 > 0
    assert Watched.most_alive == 1


def test_steps_of_another_budget_do_not_count_in_this_one():
    a, b = Worker(managed("a", max_models=1)), Worker(managed("b", max_models=3))
    a.bundle(1)
    b.bundle(1)
    assert living() == ["a", "b"]


def test_models_per_key_share_the_budget_too():
    mappings = [KeyModelMapping([name], Watched(name, max_batch_size=1)) for name in "xyz"]
    transform = RunInference(
        KeyedModelHandler(mappings),
        use_model_manager=True,
        model_manager_args={**Watched.budget, "max_models": 2},
    )
    keys = "xyzxyzzyx"
    assert sorted(run([(key, 1) for key in keys], transform)) == sorted((k, (1, k)) for k in keys)
    assert Watched.most_alive <= 2


@pytest.mark.parametrize("seed", range(4))
def test_threads_race_for_a_budget(seed):
    steps = [managed(name, max_models=2) for name in "abc"]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def work(number):
        dice = random.Random(1000 * seed + number)
        workers = [Worker(step) for step in steps]
        for _ in range(40):
            n = dice.randrange(3)
            assert workers[n].bundle(number) == [(number, "abc"[n])]

    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert Watched.most_alive <= 2
    assert len(living()) <= 2


def test_without_a_budget_it_is_three_quarters_of_the_memory():
    assert limits_from_args({}).n_bytes == available_memory_bytes() * 3 // 4
    assert limits_from_args({"max_models": 2}).n_bytes is None


GIB = 1 << 30
NO_LIMIT = 9_223_372_036_854_771_712  # how version 1 says so


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{GIB}\n"}, GIB),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/pod/container\n",
                "sys/fs/cgroup/pod/memory.max": str(GIB),
                "sys/fs/cgroup/pod/container/memory.max": "max",
            },
            GIB,
        ),
        (
            {
                "proc/self/cgroup": "2:cpu:/x\n1:memory:/docker/a:b\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": str(NO_LIMIT),
                "sys/fs/cgroup/memory/docker/a:b/memory.limit_in_bytes": str(GIB),
            },
            GIB,
        ),
        (
            {
                "proc/self/cgroup": "1:memory,cpu:/seen/from/outside\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": str(GIB),
            },
            GIB,
        ),
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": str(GIB),
            },
            None,
        ),
        ({}, None),
    ],
    ids=["v2", "v2 max", "v2 of the pod", "v1", "v1 from outside", "not ours", "no groups"],
)
def test_in_a_container_the_budget_is_of_its_limit(tmp_path, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available_memory_bytes(tmp_path) == (limit or machine)


def test_where_there_is_a_gpu_the_budget_is_of_its_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu = mock.Mock(total_memory=16 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    assert limits_from_args({}).n_bytes == 12 << 30


def test_an_argument_of_the_manager_that_is_not_known_names_the_nearest():
    with pytest.raises(UnknownOptionError, match="Did you mean 'max_models'"):
        managed("x", max_model=2)
    with pytest.raises(OptionError, match="needs use_model_manager=True"):
        RunInference(Watched("x"), model_manager_args={"max_models": 2})
    with pytest.raises(OptionError, match="must be at least 1"):
        managed("x", max_models=0)


def test_what_tunes_beams_manager_is_understood():
    assert (
        limits_from_args({"slack_percentage": 0.1, "poll_interval": 1.0, "max_models": 1}).models
        == 1
    )


# Bytes


def test_the_bytes_of_a_network_are_its_parameters_and_buffers():
    assert model_bytes(torch.nn.Linear(10, 5)) == 4 * (10 * 5 + 5)
    assert model_bytes(torch.nn.BatchNorm1d(4)) == 4 * 4 * 4 + 8
    assert model_bytes({"net": torch.nn.Linear(1000, 100)}) >= 4 * 1000 * 100


def test_the_bytes_of_arrays_and_of_what_holds_them_are_counted_once():
    array = np.zeros(1_000_000)
    assert 8_000_000 <= model_bytes({"weights": array, "again": array, "list": [array]}) < 8_010_000
    assert model_bytes("x" * 1000) >= 1000
    assert model_bytes(None) < 100


def test_the_bytes_of_an_estimator_are_found():
    from sklearn.neighbors import KNeighborsClassifier

    rows = np.random.default_rng(0).random((2000, 50))
    labels = rows[:, 0] > 0.5
    assert model_bytes(KNeighborsClassifier(algorithm="brute").fit(rows, labels)) >= rows.nbytes


class Far:
    """A client that asks its server for whatever attribute, and has no connection."""

    def __getattr__(self, name):
        raise ConnectionError(name)


@pytest.mark.parametrize(
    "model", [mock.Mock(), mock.MagicMock(), Far(), Far, sys, print], ids=range(6)
)
def test_strange_models_have_some_size(model):
    assert model_bytes(model) >= 0
