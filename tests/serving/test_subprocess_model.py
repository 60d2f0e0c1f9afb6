"""A model in a subprocess can fail, crash and hang without affecting the worker."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from runinference import ModelHandler
from runinference.errors import ChildDiedError
from runinference.handlers.compute_turn import CallOverlap, ComputeTurn, run_in_turn
from runinference.serving.placement import ModelGoneError
from runinference.serving.routing import ModelVersion
from runinference.serving.subprocess_model import SubprocessModel


class ScriptedHandler(ModelHandler):
    """Does what its element orders: succeeds, fails, hangs or ends the process."""

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
            raise ValueError("as ordered")
        if order == "fail with two arguments":
            raise TwoArgumentError("two", "words")
        return [(order, model)]


class TwoArgumentError(Exception):
    def __init__(self, one, other) -> None:
        super().__init__(f"{one} {other}")


@pytest.fixture
def model():
    subprocess_model = SubprocessModel(ModelVersion("", ScriptedHandler(), None))
    yield subprocess_model
    subprocess_model.close()


def run(model, order):
    return model.run(None, [order], None)


def test_an_error_has_the_traceback_of_the_subprocess_which_stays_alive(model):
    [(_, pid)] = run(model, "work")
    assert pid != os.getpid()
    with pytest.raises(ValueError, match="as ordered") as caught:
        run(model, "fail")
    lines = "".join(traceback.format_exception(caught.value.__cause__))
    assert "in another process" in lines
    assert "in run_inference" in lines
    with pytest.raises(TwoArgumentError, match="two words"):
        run(model, "fail with two arguments")
    assert run(model, "work") == [("work", pid)]


@pytest.mark.parametrize(("order", "how"), [("crash", "exit code 11"), ("exit", "exit code 3")])
def test_reports_how_the_subprocess_ended(model, order, how):
    for _ in range(2):
        with pytest.raises(ChildDiedError, match=how):
            run(model, order)


def test_terminating_the_subprocess_raises_in_the_thread_that_waits_for_it(model):
    errors = []

    def wait():
        try:
            run(model, "hang")
        except ChildDiedError as error:
            errors.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.2)
    model.terminate()
    thread.join(30)
    [error] = errors
    assert "signal 9" in error


def test_raises_the_error_of_a_failed_load():
    class Missing(ModelHandler):
        def load_model(self):
            raise FileNotFoundError("no such model")

    with pytest.raises(FileNotFoundError, match="no such model"):
        SubprocessModel(ModelVersion("", Missing(), None))


def test_what_a_call_that_waited_gets_is_told_apart_from_what_ended_the_process(model):
    with pytest.raises(ChildDiedError) as caught:
        run(model, "crash")
    assert not isinstance(caught.value, ModelGoneError)
    with pytest.raises(ModelGoneError) as caught:
        run(model, "work")
    assert caught.value.ended_in_call


class UsesTurn(ScriptedHandler):
    def call_overlap(self):
        return CallOverlap(uses_turn=True)


def test_a_call_waits_for_its_turn_before_it_reaches_the_subprocess(model):
    """If it hung there, the timeout of a call that has its turn did not apply, since that one was queued."""
    first = ComputeTurn()
    second = ComputeTurn(first)
    with ThreadPoolExecutor(1) as threads:
        later = threads.submit(run_in_turn, second, UsesTurn(), lambda: run(model, "second"))
        assert not wait([later], timeout=1).done
        assert run_in_turn(first, UsesTurn(), lambda: run(model, "first"))[0][0] == "first"
        assert later.result(60)[0][0] == "second"


def test_a_model_can_be_terminated_while_it_is_loaded():
    """The process of a load that timed out used to go on."""
    started = []

    def terminate(model):
        started.append(model)
        model.terminate()

    with pytest.raises(ChildDiedError, match="signal 9"):
        SubprocessModel(ModelVersion("", ScriptedHandler(), None), terminate)
    assert len(started) == 1


class Busy(ModelHandler):
    """Starts a process, and computes without end in C code that holds the lock of the interpreter."""

    def load_model(self):
        return subprocess.Popen(["sleep", "600"]).pid

    def run_inference(self, batch, model, inference_args=None):
        if batch == ["compute"]:
            sum(range(10**15))
        return [(os.getpid(), model)]


def _hold_a_busy_model(connection) -> None:
    model = SubprocessModel(ModelVersion("", Busy(), None))
    connection.send(model.run(None, ["processes"], None))
    model.run(None, ["compute"], None)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_the_subprocess_ends_with_its_parent_even_if_that_is_killed_during_a_call():
    connection, other = multiprocessing.Pipe()
    parent = multiprocessing.get_context("fork").Process(target=_hold_a_busy_model, args=(other,))
    parent.start()
    [processes] = connection.recv()
    assert all(map(is_alive, processes))
    time.sleep(0.2)  # so that most likely the call has begun
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 60
    while any(map(is_alive, processes)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
