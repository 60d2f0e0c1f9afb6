"""A call that exceeds the timeout is abandoned, without affecting calls of other threads."""

from __future__ import annotations

import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from common import no_updates
from runinference import ModelHandler, ModelMetadata, RunInference
from runinference.errors import ChildDiedError
from runinference.serving.placement import ModelGoneError
from serving import workers


class Hanging(ModelHandler):
    """Hangs on 13 until the file ``resume`` exists. Touches the file ``hangs`` first."""

    def __init__(self, folder: Path, **options) -> None:
        super().__init__(**options)
        self.folder = folder

    def load_model(self):
        with open(self.folder / "loads", "a") as file:
            file.write(f"{os.getpid()}\n")
        return os.getpid()

    def update_model_path(self, model_path=None):
        if model_path == "missing":
            self.load_model = _raise_not_found

    def run_inference(self, batch, model, inference_args=None):
        if 13 in batch:
            (self.folder / "hangs").touch()
            while not (self.folder / "resume").exists():
                time.sleep(0.01)
        return [(x, model) for x in batch]

    @property
    def loads(self) -> int:
        return len((self.folder / "loads").read_text().split())


def _raise_not_found():
    raise FileNotFoundError("no such model")


class TwoArgumentError(Exception):
    def __init__(self, one, other) -> None:
        super().__init__(f"{one} {other}")


class Worker(workers.Worker):
    def bundle(self, *elements, update=None):
        results, dead = super().bundle(*elements, update=update)
        return [x for x, _ in results], dead


@pytest.fixture
def handler(tmp_path):
    yield Hanging(tmp_path, max_batch_size=1)
    (tmp_path / "resume").touch()  # ends the threads that hang


def with_session(config, **changes):
    return replace(config, session=replace(config.session, **changes))


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


@pytest.mark.parametrize("use_subprocess", [True, False], ids=["subprocess", "in process"])
def test_a_call_that_times_out_does_not_fail_the_calls_of_other_threads(handler, use_subprocess):
    """Calls that waited for the subprocess used to become dead letters too."""
    transform = RunInference(handler).with_exception_handling(
        use_subprocess=use_subprocess, timeout=120
    )
    step = transform._config()
    workers = [Worker(with_session(step, timeout=2)), *(Worker(step) for _ in range(3))]
    assert workers[1].bundle(0) == ([0], [])
    with ThreadPoolExecutor(4) as threads:
        stuck = threads.submit(workers[0].bundle, 13)
        wait_for(handler.folder / "hangs")
        others = [threads.submit(worker.bundle, n) for n, worker in enumerate(workers[1:])]
        assert [other.result(120) for other in others] == [([n], []) for n in range(3)]
        assert stuck.result(60) == ([], [13])
    assert workers[1].bundle(7) == ([7], [])
    assert handler.loads == 2


class SerialModel:
    """A model that runs one call at a time."""

    n_bytes = 1
    ends_on_terminate = True
    terminated = False

    def __init__(self, version, on_start) -> None:
        self.lock, self.ended, self.thread_id = threading.Lock(), threading.Event(), None

    def run(self, handler, batch, inference_args):
        with self.lock:
            self.thread_id = threading.get_ident()
            if batch == [13]:
                self.ended.wait(60)
            if self.terminated:
                raise ModelGoneError("ended")
            return [(x, 0) for x in batch]

    def is_running(self, thread_id) -> bool:
        return self.thread_id == thread_id

    def terminate(self) -> None:
        self.terminated = True
        self.ended.set()

    def close(self) -> None:
        pass


def test_the_timeout_does_not_include_the_wait_for_other_calls(handler):
    step = RunInference(handler).with_exception_handling(timeout=1)._config()
    step = with_session(step, placement=SerialModel)
    first, second = Worker(with_session(step, timeout=3)), Worker(step)
    assert second.bundle(0) == ([0], [])
    [model] = [
        entry.model for entry in second.do_fn._engine.session.registry.cache._entries.values()
    ]
    with ThreadPoolExecutor(1) as threads:
        stuck = threads.submit(first.bundle, 13)
        while not model.lock.locked():
            time.sleep(0.01)
        assert second.bundle(1) == ([1], [])
        assert stuck.result(60) == ([], [13])


def test_reloads_the_old_model_if_its_call_times_out_after_a_failed_refresh(handler):
    transform = RunInference(handler, model_metadata_pcoll=no_updates())
    worker = Worker(transform.with_exception_handling(timeout=5)._config())
    assert worker.bundle(1) == ([1], [])
    broken = ModelMetadata("missing", "")
    assert worker.bundle(2, update=broken) == ([2], [])
    assert worker.bundle(13, update=broken) == ([], [13])
    assert handler.loads == 1
    assert worker.bundle(3, update=broken) == ([3], [])
    assert handler.loads == 2


def test_a_load_that_hangs_times_out(tmp_path):
    class SlowToLoad(Hanging):
        first = True
        resume = threading.Event()

        def load_model(self):
            hangs, SlowToLoad.first = SlowToLoad.first, False
            if hangs:
                self.resume.wait(60)
            return super().load_model()

    worker = Worker(RunInference(SlowToLoad(tmp_path)).with_exception_handling(timeout=3)._config())
    assert worker.bundle(1) == ([], [1])
    assert worker.bundle(2) == ([2], [])
    SlowToLoad.resume.set()


class EndedByPoison(SerialModel):
    """A model whose process a call of 13 ends."""

    models: list = []

    def __init__(self, version, on_start) -> None:
        super().__init__(version, on_start)
        self.models.append(self)

    def run(self, handler, batch, inference_args):
        with self.lock:
            if self.terminated:
                error = ModelGoneError("ended before")
                error.ended_in_call = True
                raise error
            if batch == [13]:
                self.ended.wait(60)
                self.terminated = True
                raise ChildDiedError("ended during")
            return [(x, 0) for x in batch]


def test_a_call_that_waited_for_one_that_ended_the_process_is_repeated(handler):
    """Single elements that waited used to become dead letters."""
    EndedByPoison.models.clear()
    step = with_session(
        RunInference(handler).with_exception_handling()._config(), placement=EndedByPoison
    )
    poisoned, other = Worker(step), Worker(step)
    [model] = EndedByPoison.models
    with ThreadPoolExecutor(2) as threads:
        poison = threads.submit(poisoned.bundle, 13)
        while not model.lock.locked():
            time.sleep(0.01)
        waiting = threads.submit(other.bundle, 1)
        time.sleep(0.1)  # so that most likely it waits
        model.ended.set()
        assert (poison.result(60), waiting.result(60)) == (([], [13]), ([1], []))


class AlwaysGone(SerialModel):
    loads = 0

    def __init__(self, version, on_start) -> None:
        super().__init__(version, on_start)
        AlwaysGone.loads += 1

    def run(self, handler, batch, inference_args):
        raise ModelGoneError("ended")


def test_a_process_that_always_ends_before_a_call_is_not_started_without_limit(handler):
    transform = RunInference(handler).with_exception_handling()
    worker = Worker(with_session(transform._config(), placement=AlwaysGone))
    assert worker.bundle(1) == ([], [1])
    assert AlwaysGone.loads == 3


class Copies(Hanging):
    """Counts the copies of its model in memory."""

    alive: weakref.WeakSet = weakref.WeakSet()
    max_alive = 0

    def load_model(self):
        super().load_model()
        copy = threading.Event()
        self.alive.add(copy)
        Copies.max_alive = max(Copies.max_alive, len(self.alive))
        return copy

    def run_inference(self, batch, model, inference_args=None):
        if 13 in batch:
            model.wait(60)
        return [(x, 0) for x in batch]

    @classmethod
    def resume(cls):
        for copy in list(cls.alive):
            copy.set()


class Kept(Copies):
    def should_garbage_collect_on_timeout(self):
        return False


@pytest.mark.parametrize(("kind", "copies"), [(Copies, 3), (Kept, 1)])
def test_calls_that_hang_keep_a_limited_number_of_copies(tmp_path, kind, copies):
    Copies.alive.clear()
    Copies.max_alive = 0
    step = RunInference(kind(tmp_path, max_batch_size=1)).with_exception_handling(timeout=0.1)
    worker = Worker(step._config())
    for _ in range(5):
        assert worker.bundle(13) == ([], [13])
        assert worker.bundle(1) == ([1], [])
    assert Copies.max_alive == copies
    Copies.resume()


class SlowRefresh(Hanging):
    def update_model_path(self, model_path=None):
        self.load_model = self._hang

    def _hang(self):
        wait_for(self.folder / "resume")


def test_the_old_model_serves_while_a_new_one_takes_too_long_to_load(tmp_path):
    """The elements used to become dead letters, again for each batch."""
    transform = RunInference(SlowRefresh(tmp_path), model_metadata_pcoll=no_updates())
    worker = Worker(transform.with_exception_handling(timeout=0.5)._config())
    update = ModelMetadata("new", "")
    assert worker.bundle(1) == ([1], [])
    start = time.monotonic()
    for n in range(4):
        assert worker.bundle(n, update=update) == ([n], [])
    assert time.monotonic() - start < 30
    (tmp_path / "resume").touch()


@pytest.mark.parametrize("error", [FileNotFoundError, TwoArgumentError])
@pytest.mark.parametrize("options", [{}, {"large_model": True}], ids=["own", "shared"])
@pytest.mark.parametrize("handling", [None, {}, {"timeout": 60}], ids=["none", "dlq", "timeout"])
def test_a_model_that_cannot_be_loaded_stops_the_pipeline_with_the_error(error, options, handling):
    class Missing(ModelHandler):
        def load_model(self):
            raise error("no", "model")

    transform = RunInference(Missing(**options))
    if handling is not None:
        transform = transform.with_exception_handling(**handling)
    with pytest.raises(error, match="model"):
        Worker(transform._config()).bundle(1)
