"""A model is borrowed for a call: given up when it is stuck, and no other call suffers from that."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from apache_beam.internal import pickler
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow, WindowedValue

from runinference import ModelHandler, ModelMetadata, RunInference
from runinference.errors import ChildDiedError
from runinference.transforms.infer_dofn import InferDoFn


class Hanging(ModelHandler):
    """Hangs on 13 until a file is there; tells by another file that it does."""

    def __init__(self, folder: Path, **options) -> None:
        super().__init__(**options)
        self.folder = folder

    def load_model(self):
        with open(self.folder / "loads", "a") as file:
            file.write(f"{os.getpid()}\n")
        return os.getpid()

    def update_model_path(self, model_path=None):
        if model_path == "missing":
            self.load_model = _fail

    def run_inference(self, batch, model, inference_args=None):
        if 13 in batch:
            (self.folder / "hangs").touch()
            while not (self.folder / "enough").exists():
                time.sleep(0.01)
        return [(x, model) for x in batch]

    @property
    def loads(self) -> int:
        return len((self.folder / "loads").read_text().split())


def _fail():
    raise FileNotFoundError("no such model")


class Worker:
    """A thread of a worker, with a copy of the DoFn of its own."""

    def __init__(self, step) -> None:
        self.do_fn = pickler.loads(pickler.dumps(InferDoFn(step)))
        self.do_fn.setup()

    def bundle(self, *elements, update=None):
        """The results, and the elements set aside."""
        self.do_fn.start_bundle()
        outputs = []
        for element in elements:
            origin = WindowedValue(element, 0, (GlobalWindow(),))
            outputs += self.do_fn.process(element, origin, update) or ()
        outputs += self.do_fn.finish_bundle()
        bad = [out.value.value[0] for out in outputs if isinstance(out, TaggedOutput)]
        return [out.value[0] for out in outputs if not isinstance(out, TaggedOutput)], bad


@pytest.fixture
def handler(tmp_path):
    yield Hanging(tmp_path, max_batch_size=1)
    (tmp_path / "enough").touch()  # threads that hang end


def changed(config, **changes):
    return replace(config, session=replace(config.session, **changes))


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


@pytest.mark.parametrize("use_subprocess", [True, False], ids=["in a child", "in this process"])
def test_a_call_that_hangs_does_no_harm_to_those_of_other_threads(handler, use_subprocess):
    """Those who waited for their turn in the child were set aside with the one that hung."""
    transform = RunInference(handler).with_exception_handling(
        use_subprocess=use_subprocess, timeout=120
    )
    step = transform._config()
    workers = [Worker(changed(step, timeout=2)), *(Worker(step) for _ in range(3))]
    assert workers[1].bundle(0) == ([0], [])
    with ThreadPoolExecutor(4) as threads:
        stuck = threads.submit(workers[0].bundle, 13)
        wait_for(handler.folder / "hangs")
        others = [threads.submit(worker.bundle, n) for n, worker in enumerate(workers[1:])]
        assert [other.result(120) for other in others] == [([n], []) for n in range(3)]
        assert stuck.result(60) == ([], [13])
    assert workers[1].bundle(7) == ([7], [])
    assert handler.loads == 2


class InTurn:
    """A model that works on one call at a time."""

    n_bytes = 1
    abandoned = False

    def __init__(self, version) -> None:
        self.turn, self.gone, self.thread = threading.Lock(), threading.Event(), None

    def run(self, handler, batch, inference_args):
        with self.turn:
            self.thread = threading.get_ident()
            if batch == [13]:
                self.gone.wait(60)
            if self.abandoned:
                raise ChildDiedError("gone")
            return [(x, 0) for x in batch]

    def works_for(self, thread) -> bool:
        return self.thread == thread

    def abandon(self) -> None:
        self.abandoned = True
        self.gone.set()

    def close(self) -> None:
        pass


def test_the_time_for_a_call_begins_when_it_is_its_turn(handler):
    step = RunInference(handler).with_exception_handling(timeout=1)._config()
    step = changed(step, placement=InTurn)
    first, second = Worker(changed(step, timeout=3)), Worker(step)
    assert second.bundle(0) == ([0], [])
    [model] = [entry.model for entry in second.do_fn._engine.session.models.cache._entries.values()]
    with ThreadPoolExecutor(1) as threads:
        stuck = threads.submit(first.bundle, 13)
        while not model.turn.locked():
            time.sleep(0.01)
        assert second.bundle(1) == ([1], [])
        assert stuck.result(60) == ([], [13])


def test_where_a_new_model_is_broken_it_is_the_old_one_that_is_given_up(handler):
    transform = RunInference(handler, model_metadata_pcoll=object())
    worker = Worker(transform.with_exception_handling(timeout=5)._config())
    assert worker.bundle(1) == ([1], [])
    broken = ModelMetadata("missing", "")
    assert worker.bundle(2, update=broken) == ([2], [])
    assert worker.bundle(13, update=broken) == ([], [13])
    assert handler.loads == 1
    assert worker.bundle(3, update=broken) == ([3], [])
    assert handler.loads == 2


def test_a_model_that_hangs_while_it_loads_is_given_up_too(tmp_path):
    class Slow(Hanging):
        first = True
        go_on = threading.Event()

        def load_model(self):
            hangs, Slow.first = Slow.first, False
            if hangs:
                self.go_on.wait(60)
            return super().load_model()

    worker = Worker(RunInference(Slow(tmp_path)).with_exception_handling(timeout=3)._config())
    assert worker.bundle(1) == ([], [1])
    assert worker.bundle(2) == ([2], [])
    Slow.go_on.set()
