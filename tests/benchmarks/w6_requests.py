"""W6: 1,000 rows and an HTTP server that takes 20 ms per request (8 rows at most) and 16 requests at a time."""

import contextlib
import functools
import http.client
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference import base as beam_base

from benchmarks.harness import (
    Case,
    ExampleSink,
    Outcome,
    Sink,
    batches,
    check_share,
    identity,
    run_pipeline,
)
from runinference import PredictionResult, RemoteModelHandler, RunInference

ROWS, MAX_CONCURRENT = 8, 16
DROP_IN = "ours with the options of Beam's handler"


class Client:
    """Post rows over one persistent connection per thread."""

    def __init__(self, port):
        self._port = port
        self._local = threading.local()

    def post(self, batch):
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection("127.0.0.1", self._port)
        self._local.connection.request("POST", "/predict", json.dumps(list(batch)))
        response = self._local.connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {answer}")
        return answer


class Requests:
    """The methods of a remote handler that both libraries call."""

    result_type = PredictionResult

    def __init__(self, port, **options):
        super().__init__(**options)
        self._port = port

    def create_client(self):
        return Client(self._port)

    def request(self, batch, model, inference_args=None):
        pairs = zip(batch, model.post(batch), strict=True)
        return [self.result_type(row, answer, "double") for row, answer in pairs]


class OurHandler(Requests, RemoteModelHandler):
    def __init__(self, port):
        super().__init__(port, max_request_size=ROWS, max_concurrent_requests=MAX_CONCURRENT)


class BatchPerRequest(Requests):
    """Send each batch as one request, the only way in Beam."""

    def __init__(self, port):
        super().__init__(port, namespace="benchmark")

    def batch_elements_kwargs(self):
        return {"min_batch_size": ROWS, "max_batch_size": ROWS}


class BeamHandler(BatchPerRequest, beam_base.RemoteModelHandler):
    result_type = beam_base.PredictionResult


class DropInHandler(BatchPerRequest, RemoteModelHandler):
    """`BeamHandler` with other imports, and no further options."""


def cases(scale):
    n = max(64, int(1_000 * scale))
    elements = {"Beam": n // 4 // ROWS * ROWS}
    with server() as port:
        yield Case(
            workload="W6",
            variant="20 ms per request",
            n=n,
            runs={
                "limit": functools.partial(bare_client, port, n),
                "floor": functools.partial(floor, n),
                "ours": functools.partial(run_with, n, RunInference, OurHandler(port)),
                "Beam": functools.partial(
                    run_with, elements["Beam"], beam_base.RunInference, BeamHandler(port)
                ),
                DROP_IN: functools.partial(run_with, n, RunInference, DropInHandler(port)),
            },
            check=check_share(check, n, elements),
            elements=elements,
            goals={
                "ours of the ideal": ("≥", 0.95),
                f"{DROP_IN} of the ideal": ("≥", 0.95),
                "ours ÷ Beam": ("≥", 10),
            },
        )


@contextlib.contextmanager
def server():
    """Start the server in a new process and yield its port."""
    program = Path(__file__).with_name("slow_server.py")
    process = subprocess.Popen(
        [sys.executable, program, str(ROWS), str(MAX_CONCURRENT)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def rows(n):
    return list(range(1, n + 1))


def bare_client(port, n):
    outcome = Outcome()
    with ThreadPoolExecutor(MAX_CONCURRENT) as pool:
        requests = batches(rows(n), ROWS)
        for batch, answers in zip(requests, pool.map(Client(port).post, requests), strict=True):
            outcome.add_batch(batch, answers)
    return outcome


def floor(n):
    return run_pipeline(functools.partial(rows, n), beam.Map(identity), ExampleSink(float))


def run_with(n, transform, handler):
    return run_pipeline(functools.partial(rows, n), transform(handler), Sink(float))


def check(n, contender, outcome):
    """Check that every row came out once, with its double."""
    if contender == "floor":
        return outcome.check(rows(n))
    outcome.check(rows(n), 2 * np.array(rows(n)))
    assert all(answer == 2 * row for row, answer in outcome.sample)
