"""A server command is started once per machine, restarted when it dies, and never outlives its workers."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import os
import pickle
import select
import signal
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from common import run
from runinference import Backoff, KeyedModelHandler, RunInference
from runinference.errors import EndpointRefusedError, OptionError
from runinference.openai_inference import LocalServer, OpenAIChatModelHandler

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
PROGRAM = str(Path(__file__).with_name("local_server_program.py"))
TIMEOUT_SECS = 30


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """Don't share servers with other tests."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def server(mode="", *arguments, **options):
    command = [sys.executable, "-I", PROGRAM, "{port}", mode, *map(str, arguments)]
    return LocalServer(command, **options)


def chat(base_url, **options):
    if options.get("num_retries") != 0:
        options["backoff"] = Backoff(initial_secs=0)
    return OpenAIChatModelHandler(base_url, "m", throttle_delay_secs=0, **options)


def ask(handler, text="hi"):
    """Return what the server answers: its process ID and those of its parent and child."""
    [result] = handler.predict([text])
    return json.loads(result.inference.text)


@contextmanager
def ends(*pids):
    """Check that processes end, once the block has run."""
    descriptors = [os.pidfd_open(pid) for pid in pids]
    try:
        assert not select.select(descriptors, [], [], 0)[0]
        yield
        for descriptor in descriptors:
            assert select.select([descriptor], [], [], TIMEOUT_SECS)[0], "a process still runs"
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def test_a_server_is_shared_by_equal_handlers_and_ends_with_the_last_one(caplog):
    with caplog.at_level(logging.INFO):
        first = chat(server(env={"VARIABLE": "at {port}"}))
        found = ask(first)
    second = pickle.loads(pickle.dumps(first))
    assert ask(second)["pid"] == found["pid"]
    assert found["variable"].startswith("at ")
    assert "Starting the local server" in caplog.text
    assert "is ready at http://127.0.0.1:" in caplog.text
    del first
    gc.collect()
    with ends(found["pid"], found["parent"]):
        assert ask(second)["pid"] == found["pid"]
        del second
        gc.collect()


def test_after_an_error_that_is_kept_the_server_is_started_again(tmp_path):
    command = tmp_path / "command"
    handler = chat(LocalServer([str(command), "{port}"]), num_retries=0)
    with pytest.raises(EndpointRefusedError, match="was not found") as kept:
        ask(handler)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{PROGRAM}" "$1" ""\n')
    command.chmod(0o755)
    assert ask(handler)["pid"] > 0
    assert kept.value is not None


class ForkOnce(logging.Handler):
    """Forks a process while a server is started, as another thread could."""

    child = 0

    def emit(self, record):
        if not self.child and "Starting" in record.getMessage():
            self.child = os.fork()
            if not self.child:
                os.closerange(0, 3)
                signal.pause()


def test_a_process_forked_during_the_start_does_not_keep_the_lock(caplog):
    logger, forking = logging.getLogger("runinference"), ForkOnce()
    caplog.set_level(logging.INFO, "runinference")
    logger.addHandler(forking)
    try:
        first = chat(server())
        pid = ask(first)["pid"]
        with worker(server()) as (_, connection):
            assert connection.poll(TIMEOUT_SECS), "the other process waits for the lock"
            assert connection.recv() == pid
    finally:
        logger.removeHandler(forking)
        assert forking.child
        os.kill(forking.child, signal.SIGKILL)
        os.waitpid(forking.child, 0)


def test_works_in_a_pipeline_with_keys():
    handler = chat(server())
    results = dict(run([(n, "hi") for n in range(5)], RunInference(KeyedModelHandler(handler))))
    assert len(results) == 5
    assert len({result.inference.text for result in results.values()}) == 1


def answer_until_killed(connection, base_url):
    connection.send(ask(chat(base_url))["pid"])
    handler = chat(base_url)
    ask(handler)
    connection.recv()
    connection.send(ask(handler)["pid"])
    connection.recv()


@contextmanager
def worker(base_url):
    """Run a process that uses a server, and yield it with a connection to it."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=answer_until_killed, args=(there, base_url), daemon=True)
    process.start()
    try:
        yield process, here
    finally:
        process.kill()
        process.join()


def test_processes_share_a_server_which_survives_one_that_is_killed_but_not_all():
    with worker(server()) as (first, to_first), worker(server()) as (second, to_second):
        pids = {to_first.recv(), to_second.recv()}
        assert len(pids) == 1
        with ends(*pids):
            os.kill(first.pid, signal.SIGKILL)
            first.join()
            to_second.send("again")
            assert {to_second.recv()} == pids
            os.kill(second.pid, signal.SIGKILL)


def test_a_forked_process_does_not_keep_the_server_of_its_parent_running():
    handler = chat(server())
    found = ask(handler)
    with worker(server("other")) as (_, to_worker):
        to_worker.recv()
        with ends(found["pid"]):
            del handler
            gc.collect()


def test_processes_that_the_server_started_are_stopped_even_if_they_ignore_sigterm():
    handler = chat(server("child"))
    found = ask(handler)
    with ends(found["child"]):
        del handler
        gc.collect()


def test_a_server_that_dies_is_restarted_and_its_requests_are_retried(tmp_path):
    handler = chat(server("crash once", tmp_path / "crashed"))
    before = ask(handler)
    assert ask(handler, "crash")["pid"] != before["pid"]
    with ends(before["parent"]):
        after = ask(handler)
        assert after["parent"] == before["parent"]
        os.kill(after["pid"], signal.SIGKILL)
        assert ask(handler)["pid"] not in (before["pid"], after["pid"])
        del handler
        gc.collect()


def test_restarts_are_limited_and_the_error_has_the_last_output():
    handler = chat(server("crash", max_restarts=2))
    ask(handler)
    text = r"exited with status 3. It was restarted 2 times within an hour(.|\n)*crashing now"
    with pytest.raises(EndpointRefusedError, match=text):
        handler.predict(["crash"])
    with pytest.raises(EndpointRefusedError, match="restarted 2 times"):
        handler.predict(["hi"])
    del handler
    gc.collect()
    assert ask(chat(server("crash", max_restarts=2)))


def test_a_server_ends_with_the_process_that_runs_it_and_another_one_is_started():
    handler = chat(server())
    found = ask(handler)
    with ends(found["pid"]):
        os.kill(found["parent"], signal.SIGKILL)
    assert ask(handler)["pid"] != found["pid"]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"address": [1], "authkey": "00"}', '{"address": "/none", "authkey": "00"}'],
)
def test_a_damaged_or_outdated_file_does_not_prevent_the_start(content, tmp_path):
    directory = tmp_path / f"runinference-servers-{os.getuid()}"
    directory.mkdir(0o700)
    (directory / server().key).write_text(content)
    assert ask(chat(server()))


@pytest.mark.parametrize(
    ("command", "options", "text"),
    [
        (["no-such-command", "{port}"], {}, "'no-such-command' was not found"),
        (["/tmp", "{port}"], {}, "'/tmp' was not found"),
        (
            "exit",
            {},
            r"exited with status 7 before it was healthy(.|\n)*loading 50 %\nno such model",
        ),
        # On a busy machine, it may not even listen yet.
        ("unhealthy", {"start_secs": 0.5}, r"within 0.5 seconds.*/health: (status 503|.*refused)"),
        ("elsewhere", {"start_secs": 0.3}, r"health: .*refused(.|\n)*listens at the port"),
    ],
)
def test_a_server_that_does_not_start_is_an_error_with_its_output(command, options, text):
    failing = server(command, **options) if isinstance(command, str) else LocalServer(command)
    with pytest.raises(EndpointRefusedError, match=text):
        chat(failing).predict(["hi"])


def test_another_port_is_used_if_the_port_is_taken(tmp_path):
    log = tmp_path / "starts"
    with pytest.raises(EndpointRefusedError, match="Address already in use"):
        chat(server("port taken", log)).predict(["hi"])
    assert log.read_text() == "xxx"


@pytest.mark.parametrize(
    ("command", "options", "text"),
    [
        ("vllm serve {port}", {}, "command must be a list of strings"),
        ([], {}, "command must be a list of strings"),
        (["serve", 8000], {}, "command must be a list of strings"),
        (["serve", "--port", "8000"], {}, "command has no '{port}'"),
        (["serve", "{port}", "a\0"], {}, "null character"),
        (["serve", "{port}", "--api-key=sk-0123456789abcdef"], {}, "looks like a secret"),
        (["serve", "{port}"], {"env": {"API_KEY": "x"}}, "looks like a secret"),
        (["serve", "{port}"], {"env": {"A": 1}}, "must be a string"),
        (["serve", "{port}"], {"health": "health"}, "health must be a path such as '/health'"),
        (["serve", "{port}"], {"health": ""}, "health must be a path"),
        (["serve", "{port}"], {"path": "v1"}, "path must be a path"),
        (["serve", "{port}"], {"start_secs": 0}, "start_secs must be greater than 0"),
        (["serve", "{port}"], {"max_restarts": -1}, "max_restarts must be at least 0"),
    ],
)
def test_rejects_invalid_options(command, options, text):
    with pytest.raises(OptionError, match=text):
        LocalServer(command, **options)


def test_the_default_key_is_not_sent_to_a_local_server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert ask(chat(server()))
