"""A job with a cache that is killed and started again calls a server once for each distinct prompt."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack

import pytest

import redis_server
from runinference.samples import servers

N_PROMPTS, N_DISTINCT = 2_000, 1_200
N_REQUESTS = 4  # that each process sends at the same time

# Each process of a job runs a pipeline with its share of the prompts. The processes are forked from one that has
# imported everything.
PROGRAM = """
import os, signal, sys
import apache_beam as beam
from runinference import RunInference
from runinference.openai_inference import OpenAIChatModelHandler
import httpx, diskcache, redis

def work(base_url, location, prompts):
    handler = OpenAIChatModelHandler(
        base_url, "shout", None, max_concurrent_requests=N_REQUESTS, min_batch_size=1000, max_batch_size=1000
    ).with_cache(location, claim_secs=2)
    def check(result):
        assert result.inference.text == result.example.upper()
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        examples = pipeline | beam.Create(prompts, reshuffle=False)
        _ = examples | RunInference(handler) | beam.Map(check) | beam.combiners.Count.Globally() | beam.Map(
            lambda n: os.write(1, f"{n} results\\n".encode())
        )

print("ready", flush=True)
pids = []
for line in sys.stdin:
    if line == "kill\\n":
        while pids:
            os.kill(pids[-1], signal.SIGKILL)
            os.waitpid(pids.pop(), 0)
        print("killed", flush=True)
        continue
    base_url, location, *prompts = line.strip().split("\\t")
    if (pid := os.fork()) == 0:
        sys.stdin.close()
        try:
            work(base_url, location, prompts)
        except BaseException as error:
            os.write(1, f"{error!r}\\n".encode())
        os._exit(0)
    pids.append(pid)
""".replace("N_REQUESTS", str(N_REQUESTS))


class CountingServer:
    """Answer a number of requests, and then hold all others until ``answer_all`` is called.

    Until then, requests of all threads of all clients are answered at the same time, so that none finishes early.
    """

    def __init__(self, n_answers, n_threads):
        self._barrier = threading.Barrier(n_threads, timeout=20)
        self.answered = Counter()
        self.n_held = 0
        self._n_answers = n_answers
        self._is_open = False
        self._changed = threading.Condition()

    def __call__(self, path, headers, body):
        prompt = body["messages"][0]["content"]
        if not self._is_open:
            self._barrier.wait()
        with self._changed:
            if not self._is_open and self.answered.total() >= self._n_answers:
                self.n_held += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._is_open)  # by then, its client was killed
                raise servers.ErrorResponse(503, {})
            self.answered[prompt] += 1
        message = {"role": "assistant", "content": prompt.upper()}
        return {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}

    def wait_for_held(self, n):
        with self._changed:
            self._changed.wait_for(lambda: self.n_held >= n, timeout=20)

    def answer_all(self):
        with self._changed:
            self._is_open = True
            self._changed.notify_all()


@pytest.fixture(scope="module")
def launcher():
    """A process that forks the processes of jobs."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        os.killpg(process.pid, signal.SIGKILL)


def start(launcher, shares):
    """Start a process for each share of the prompts."""
    launcher.stdin.writelines("\t".join(share) + "\n" for share in shares)
    launcher.stdin.flush()


def kill(launcher):
    """Kill all processes, and wait until they have ended."""
    launcher.stdin.write("kill\n")
    launcher.stdin.flush()
    assert launcher.stdout.readline() == "killed\n"


@pytest.mark.parametrize(
    ("store", "n_processes"),
    [
        ("folder", 3),
        pytest.param(
            "redis",
            2,
            marks=pytest.mark.skipif(redis_server.find() is None, reason=redis_server.HINT),
        ),
    ],
)
def test_a_killed_job_calls_the_server_once_for_each_distinct_prompt(
    store, n_processes, launcher, tmp_path
):
    distinct = [f"prompt {n}" for n in range(N_DISTINCT)]
    prompts = distinct + random.Random(0).sample(distinct, N_PROMPTS - N_DISTINCT)
    random.Random(1).shuffle(prompts)
    n_threads = n_processes * N_REQUESTS
    server = CountingServer(N_DISTINCT // 2, n_threads)
    with ExitStack() as stack:
        url = stack.enter_context(servers.serving(server))
        location = str(tmp_path / "cache")
        if store == "redis":
            location = stack.enter_context(redis_server.serving())
        shares = [[f"{url}/v1", location, *prompts[n::n_processes]] for n in range(n_processes)]
        start(launcher, shares)
        # Each thread sends its next request after it has stored the result of the last one.
        server.wait_for_held(n_threads)
        kill(launcher)
        server.answer_all()
        start(launcher, shares)
        reports = sorted(launcher.stdout.readline() for _ in shares)
    assert reports == sorted(f"{len(share) - 2} results\n" for share in shares)
    assert server.n_held == n_threads
    assert server.answered == Counter(distinct)
