"""A model in a subprocess can fail, crash and hang without affecting the worker."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback

import pytest

from runinference import ModelHandler
from runinference.errors import ChildDiedError
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
