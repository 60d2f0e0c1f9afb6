"""What a call costs, and what is counted."""

from __future__ import annotations

import re
import threading
import time
from typing import Any
from unittest import mock

import numpy as np
import torch
from apache_beam.utils import retry

from defects.packages import Package
from defects.row import Row
from defects.tools import Doubling, Run, count, note, notes


def _torch_handler(package: Package, name: str) -> Any:
    return getattr(package.torch, name)(state_dict_path="unused", model_class=torch.nn.Identity)


def bytes_of_tensors(package: Package) -> str:
    handler = _torch_handler(package, "PytorchModelHandlerTensor")
    return f"{handler.get_num_bytes([torch.zeros(3, 224, 224)] * 4):,} bytes"


def bytes_of_keyed_tensors(package: Package) -> str:
    handler = _torch_handler(package, "PytorchModelHandlerKeyedTensor")
    return f"{handler.get_num_bytes([{'pixels': torch.zeros(3, 224, 224)}] * 4):,} bytes"


class _Watched:
    """Says so when it is pickled."""

    def __reduce__(self) -> Any:
        note("pickled", 1)
        return (_Watched, ())


def pickled_for_size(package: Package) -> str:
    notes("pickled")
    package.handler(Doubling).get_num_bytes([_Watched()])
    return "pickles the batch" if notes("pickled") else "does not"


class _Heavy(Doubling):
    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        note("batches", sum(array.nbytes for array in batch))
        return [0] * len(batch)


def _two_mebibytes(_: Any) -> Any:
    return np.empty(2 << 20, np.uint8)


def heavy_batches(package: Package) -> str:
    handler = package.handler(_Heavy, min_batch_size=48, max_batch_size=48)
    run = Run(package, range(48), handler, make=_two_mebibytes)
    return run.said(lambda run: f"{max(run.batches) >> 20} MiB")


class _Lazy(Doubling):
    """Fails when its results are consumed."""

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        for number in batch:
            raise ValueError(number)
            yield


def lazy_failures(package: Package) -> str:
    run = Run(package, [1], package.handler(_Lazy), aside={})
    return run.said(lambda run: f"{run.counter('failed_batches_counter')}")


class _Stuck(Doubling):
    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        time.sleep(2)
        return super().run_inference(batch, model, inference_args)


def timed_out(package: Package) -> str:
    run = Run(package, [1], package.handler(_Stuck), aside={"timeout": 0.5})
    return run.said(lambda run: f"{run.counter('failed_batches_counter')}")


class _TimingOut(Doubling):
    """Its database times out; the model is well."""

    size = 1

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        if batch[0] < 0:
            raise TimeoutError("the database does not answer")
        time.sleep(0.8)
        return super().run_inference(batch, model, inference_args)

    def share_model_across_processes(self) -> bool:
        return True

    def load_model(self) -> Any:
        note("loads", 1)
        return _Doubler()


class _Doubler:
    def __call__(self, number: float) -> float:
        return 2 * number


def own_timeout(package: Package) -> str:
    run = Run(package, [1, 2, -1, 3], package.handler(_TimingOut), aside={"timeout": 1.5})
    return run.said(lambda run: count(run.loads, "load"))


class _Once:
    """Fails at the first request, as a server that restarts."""

    failed = False

    def create_client(self) -> Any:
        return None

    def request(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        if not _Once.failed:
            _Once.failed = True
            raise ConnectionError("restarting")
        return list(batch)

    def batch_elements_kwargs(self) -> Any:
        return {"min_batch_size": 1, "max_batch_size": 1}


def _remote(package: Package, kind: type, **options: Any) -> Any:
    return type(kind.__name__, (kind, package.remote_handler), {})(**options)


def transient(package: Package) -> str:
    _Once.failed = False
    handler = _remote(package, _Once, namespace="once")
    handler._sleep = _wait  # ours
    with mock.patch.object(retry.Clock, "sleep", lambda clock, seconds: _wait(seconds)):  # Beam's
        run = Run(package, [1], handler)
    waited = sum(notes("waited"))
    return run.said(lambda run: f"waits {'over' if waited > 2 else 'under'} 2 seconds to ask again")


def _wait(seconds: float) -> None:
    note("waited", seconds)


class _Slow:
    """Answers after a while, and knows how many requests are with it."""

    lock = threading.Lock()
    now = 0

    def create_client(self) -> Any:
        return None

    def request(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        with _Slow.lock:
            _Slow.now += 1
            note("at once", _Slow.now)
        time.sleep(0.2)
        with _Slow.lock:
            _Slow.now -= 1
        return list(batch)


def together(package: Package) -> str:
    notes("at once")
    own = {"max_request_size": 1} if package.prefix == "runinference" else {}
    handler = _remote(package, _Slow, namespace="slow", **own)
    run = Run(package, range(4), handler)
    return run.said(lambda run: f"{max(notes('at once'))} at a time")


ROWS = (
    Row(
        "The size in the metrics of 4 images as tensors, 2,408,448 bytes.",
        bytes_of_tensors,
        "48 bytes",
        "2,408,448 bytes",
    ),
    Row(
        "The same, as dictionaries of tensors.",
        bytes_of_keyed_tensors,
        "16 bytes",
        re.compile(r"2,408,\d{3} bytes"),
    ),
    Row(
        "What the size in the metrics costs for a handler of your own.",
        pickled_for_size,
        "pickles the batch",
        "does not",
    ),
    Row(
        "48 elements of 2 MiB, with a batch size of 48: the heaviest batch.",
        heavy_batches,
        "96 MiB",
        "64 MiB",
    ),
    Row(
        "A handler yields its results one by one, and fails on the way: `failed_batches_counter`.",
        lazy_failures,
        "0",
        "1",
    ),
    Row(
        "A call takes longer than the `timeout`: `failed_batches_counter`.",
        timed_out,
        "0",
        "1",
    ),
    Row(
        "A handler's own database times out once, and the model is well: loads of the model.",
        own_timeout,
        "2 loads",
        "1 load",
    ),
    Row(
        "One request to a remote model fails once.",
        transient,
        "waits over 2 seconds to ask again",
        "waits under 2 seconds to ask again",
    ),
    Row(
        "4 elements, each a request of its own to a remote model (here with `max_request_size=1`).",
        together,
        "1 at a time",
        "4 at a time",
    ),
)
