"""Cases about wrong or lost results."""

from __future__ import annotations

import random
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import linear_regression
from defects.packages import Package
from defects.row import Row
from defects.tools import (
    BatchesOfTen,
    Doubling,
    RejectsNegatives,
    Run,
    count,
    describe_error,
    record_event,
    take_events,
)


def _one_for_all(model: Any, batch: Any, inference_args: Any = None) -> list[float]:
    return [0.0]


def short_result(package: Package) -> str:
    with tempfile.TemporaryDirectory() as folder:
        handler = package.sklearn.SklearnModelHandlerNumpy(
            linear_regression(Path(folder) / "model.pkl"),
            inference_fn=_one_for_all,
            min_batch_size=8,
            max_batch_size=8,
        )
        run = Run(package, list(np.ones((8, 1))), handler)
    return run.describe(lambda run: count(len(run.good), "result"))


class _Pair(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class _Layers(torch.nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return {"logits": y, "hidden": (y, y, y)}


class _Loss(torch.nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return {"logits": y, "loss": y.mean(), "cache": None}


def _tensors(package: Package, make: type, n: int, batch: int | None = None, width: int = 2) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/weights.pt"
        torch.save(make(width, width).state_dict(), path)
        handler = package.torch.PytorchModelHandlerTensor(
            state_dict_path=path,
            model_class=make,
            model_params={"in_features": width, "out_features": width},
            min_batch_size=batch or n,
            max_batch_size=batch or n,
        )
        return Run(package, [torch.ones(width) for _ in range(n)], handler)


def _shapes(run: Run) -> str:
    def shape(value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return " by ".join(map(str, value.shape)) or "number"
        if isinstance(value, dict):
            return ", ".join(f"{name} {shape(item)}" for name, item in value.items())
        if isinstance(value, tuple):
            return f"({', '.join(map(shape, value))})"
        return str(value)

    return f"{count(len(run.good), 'result')}, each {shape(run.good[0].inference)}"


def tuple_outputs(package: Package) -> str:
    return _tensors(package, _Pair, 4).describe(_shapes)


def nested_outputs(package: Package) -> str:
    return _tensors(package, _Layers, 8).describe(_shapes)


def scalar_outputs(package: Package) -> str:
    return _tensors(package, _Loss, 4).describe(_shapes)


class _RejectsNegativesInBatchesOf50(RejectsNegatives):
    size = 50


class _RejectsNegativesInBatchesOf64(RejectsNegatives):
    size = 64


def one_failing_element(package: Package) -> str:
    handler = package.handler(_RejectsNegativesInBatchesOf50)
    run = Run(package, [*range(49), -1], handler, exception_handling={})
    return run.describe(_count_outcomes)


def one_percent_failing(package: Package) -> str:
    numbers = list(range(6400))
    for index in random.Random(0).sample(numbers, 64):
        numbers[index] = -1
    run = Run(
        package, numbers, package.handler(_RejectsNegativesInBatchesOf64), exception_handling={}
    )
    return run.describe(_count_outcomes)


def _count_outcomes(run: Run) -> str:
    failed = sum(len(example) if isinstance(example, list) else 1 for example, _ in run.bad)
    return f"{count(len(run.good), 'result')}, {count(failed, 'failed element')}"


def threshold(package: Package) -> str:
    handler = package.handler(_RejectsNegativesInBatchesOf50)
    run = Run(package, [*range(99), -1], handler, exception_handling={"threshold": 0.1})
    return "the pipeline stops" if run.error else _count_outcomes(run)


def timestamps(package: Package) -> str:
    run = Run(package, [0, 3, 6], package.handler(BatchesOfTen), timed=True)
    return run.describe(lambda run: ", ".join(f"{time:g}" for time in run.times))


def output_views(package: Package) -> str:
    run = _tensors(package, torch.nn.Linear, 256, width=768)
    return run.describe(lambda run: f"{len(run.coder.encode(run.good[0])):,} bytes")


class _Regressor:
    def predict(self, frame: Any, **arguments: Any) -> Any:
        record_event("arguments", arguments)
        return np.zeros(len(frame))


def pandas_arguments(package: Package) -> str:
    import pandas as pd

    take_events("arguments")
    handler = package.sklearn.SklearnModelHandlerPandas("unused")
    try:
        list(handler.run_inference([pd.DataFrame({"x": [1]})], _Regressor(), {"steps": 3}))
    except Exception as error:
        return describe_error(error)
    [arguments] = take_events("arguments")
    return "passed" if arguments else "ignored"


class _Popping(Doubling):
    size = 1

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        record_event("arguments", inference_args.pop("temperature", None))
        return super().run_inference(batch, model, inference_args)


def shared_arguments(package: Package) -> str:
    take_events("arguments")
    run = Run(package, [1, 2, 3], package.handler(_Popping), inference_args={"temperature": 0.5})
    return run.describe(lambda run: ", ".join(map(str, take_events("arguments"))))


ROWS = (
    Row(
        "A model returns 1 result for 8 elements.",
        short_result,
        "1 result",
        "`ResultMismatchError`",
    ),
    Row(
        "A PyTorch model returns a tuple of two tensors for 4 elements.",
        tuple_outputs,
        "2 results, each 4 by 2",
        "4 results, each (2, 2)",
    ),
    Row(
        "A model returns a dictionary with a tuple of 3 tensors for 8 elements.",
        nested_outputs,
        "3 results, each logits 2, hidden 8 by 2",
        "8 results, each logits 2, hidden (2, 2, 2)",
    ),
    Row(
        "A model returns a dictionary with a scalar loss and a `None` for 4 elements.",
        scalar_outputs,
        "`TypeError`",
        "4 results, each logits 2, loss number, cache None",
    ),
    Row(
        "1 of 50 elements of a batch fails, with exception handling.",
        one_failing_element,
        "0 results, 50 failed elements",
        "49 results, 1 failed element",
    ),
    Row(
        "64 of 6,400 elements fail, in batches of 64.",
        one_percent_failing,
        "3,136 results, 3,264 failed elements",
        "6,336 results, 64 failed elements",
    ),
    Row(
        "1 of 100 elements fails, in batches of 50, with `threshold=0.1`.",
        threshold,
        "the pipeline stops",
        "99 results, 1 failed element",
    ),
    Row(
        "Timestamps of results, for elements at 0, 3 and 6 seconds in a 10-second window.",
        timestamps,
        "10, 10, 10",
        "0, 3, 6",
    ),
    Row(
        "Encoded size of one result of a PyTorch model (6,144 bytes of data) from a batch of 256.",
        output_views,
        re.compile(r"79\d,\d{3} bytes"),
        re.compile(r"6,2\d\d bytes"),
    ),
    Row(
        "`inference_args` of `SklearnModelHandlerPandas`.",
        pandas_arguments,
        "ignored",
        "passed",
    ),
    Row(
        "Value of `temperature` in three calls that each remove it from `inference_args`.",
        shared_arguments,
        "0.5, None, None",
        "0.5, 0.5, 0.5",
    ),
)
