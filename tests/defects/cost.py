"""Cases about cost and metrics."""

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
from defects.tools import Doubling, Run, count, record_event, take_events


def _torch_handler(package: Package, name: str) -> Any:
    return getattr(package.torch, name)(state_dict_path="unused", model_class=torch.nn.Identity)


def bytes_of_tensors(package: Package) -> str:
    handler = _torch_handler(package, "PytorchModelHandlerTensor")
    return f"{handler.get_num_bytes([torch.zeros(3, 224, 224)] * 4):,} bytes"


def bytes_of_keyed_tensors(package: Package) -> str:
    handler = _torch_handler(package, "PytorchModelHandlerKeyedTensor")
    return f"{handler.get_num_bytes([{'pixels': torch.zeros(3, 224, 224)}] * 4):,} bytes"


class _RecordsPickling:
    """An element that records when it is pickled."""

    def __reduce__(self) -> Any:
        record_event("pickled", 1)
        return (_RecordsPickling, ())


def pickled_for_size(package: Package) -> str:
    take_events("pickled")
    package.handler(Doubling).get_num_bytes([_RecordsPickling()])
    return "pickles the batch" if take_events("pickled") else "doesn't pickle"


class _RecordsBatchBytes(Doubling):
    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        record_event("batches", sum(array.nbytes for array in batch))
        return [0] * len(batch)


def _make_two_mebibytes(_: Any) -> Any:
    return np.empty(2 << 20, np.uint8)


def batch_bytes(package: Package) -> str:
    handler = package.handler(_RecordsBatchBytes, min_batch_size=48, max_batch_size=48)
    run = Run(package, range(48), handler, make=_make_two_mebibytes)
    return run.describe(lambda run: f"{max(run.batches) >> 20} MiB")


class _FailsLazily(Doubling):
    """Raise an error when the results are consumed."""

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        for number in batch:
            raise ValueError(number)
            yield


def lazy_failures(package: Package) -> str:
    run = Run(package, [1], package.handler(_FailsLazily), exception_handling={})
    return run.describe(lambda run: f"{run.counter('failed_batches_counter')}")


class _SlowModel(Doubling):
    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        time.sleep(2)
        return super().run_inference(batch, model, inference_args)


def timed_out(package: Package) -> str:
    run = Run(package, [1], package.handler(_SlowModel), exception_handling={"timeout": 0.5})
    return run.describe(lambda run: f"{run.counter('failed_batches_counter')}")


class _HandlerTimeout(Doubling):
    """Raise `TimeoutError` for negative numbers, although the model works."""

    size = 1

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        if batch[0] < 0:
            raise TimeoutError("the database did not answer")
        time.sleep(0.8)
        return super().run_inference(batch, model, inference_args)

    def share_model_across_processes(self) -> bool:
        return True

    def load_model(self) -> Any:
        record_event("loads", 1)
        return _Doubler()


class _Doubler:
    def __call__(self, number: float) -> float:
        return 2 * number


def handler_timeout(package: Package) -> str:
    run = Run(
        package,
        [1, 2, -1, 3],
        package.handler(_HandlerTimeout),
        exception_handling={"timeout": 1.5},
    )
    return run.describe(lambda run: count(run.loads, "load"))


class _FailsOnce:
    """Fail on the first request, like a server that restarts."""

    failed = False

    def create_client(self) -> Any:
        return None

    def request(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        if not _FailsOnce.failed:
            _FailsOnce.failed = True
            raise ConnectionError("restarting")
        return list(batch)

    def batch_elements_kwargs(self) -> Any:
        return {"min_batch_size": 1, "max_batch_size": 1}


def _remote(package: Package, kind: type, **options: Any) -> Any:
    return type(kind.__name__, (kind, package.remote_handler), {})(**options)


def transient(package: Package) -> str:
    _FailsOnce.failed = False
    handler = _remote(package, _FailsOnce, namespace="once")
    handler._sleep = _wait  # this package
    with mock.patch.object(retry.Clock, "sleep", lambda clock, seconds: _wait(seconds)):  # Beam
        run = Run(package, [1], handler)
    waited = sum(take_events("waited"))
    return run.describe(
        lambda run: f"retries after {'more' if waited > 2 else 'less'} than 2 seconds"
    )


def _wait(seconds: float) -> None:
    record_event("waited", seconds)


class _CountsConcurrentRequests:
    """Answer each request after 0.2 seconds and record how many run concurrent."""

    lock = threading.Lock()
    running = 0

    def create_client(self) -> Any:
        return None

    def request(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        with _CountsConcurrentRequests.lock:
            _CountsConcurrentRequests.running += 1
            record_event("concurrent", _CountsConcurrentRequests.running)
        time.sleep(0.2)
        with _CountsConcurrentRequests.lock:
            _CountsConcurrentRequests.running -= 1
        return list(batch)


def concurrent_requests(package: Package) -> str:
    take_events("concurrent")
    options = {"max_request_size": 1} if package.prefix == "runinference" else {}
    handler = _remote(package, _CountsConcurrentRequests, namespace="slow", **options)
    run = Run(package, range(4), handler)
    return run.describe(lambda run: f"{max(take_events('concurrent'))} at a time")


ROWS = (
    Row(
        "Batch size in bytes in the metrics, for 4 image tensors (2,408,448 bytes).",
        bytes_of_tensors,
        "48 bytes",
        "2,408,448 bytes",
    ),
    Row(
        "The same for dictionaries of tensors.",
        bytes_of_keyed_tensors,
        "16 bytes",
        re.compile(r"2,408,\d{3} bytes"),
    ),
    Row(
        "How the size is computed for a custom handler.",
        pickled_for_size,
        "pickles the batch",
        "doesn't pickle",
    ),
    Row(
        "Largest batch, for 48 elements of 2 MiB and a batch size of 48.",
        batch_bytes,
        "96 MiB",
        "64 MiB",
    ),
    Row(
        "`failed_batches_counter`, if a handler that yields results raises an error.",
        lazy_failures,
        "0",
        "1",
    ),
    Row(
        "`failed_batches_counter`, if a call exceeds the `timeout`.",
        timed_out,
        "0",
        "1",
    ),
    Row(
        "Model loads, if a handler raises `TimeoutError` once for another reason than the `timeout`.",
        handler_timeout,
        "2 loads",
        "1 load",
    ),
    Row(
        "A request to a remote model fails once.",
        transient,
        "retries after more than 2 seconds",
        "retries after less than 2 seconds",
    ),
    Row(
        "Concurrent requests for 4 elements, one element per request.",
        concurrent_requests,
        "1 at a time",
        "4 at a time",
    ),
)
