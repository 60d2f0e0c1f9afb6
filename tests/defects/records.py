"""Wrong results, and lost records."""

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
from defects.tools import Doubling, InTens, Picky, Run, count, note, notes, said


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
    return run.said(lambda run: count(len(run.good), "result"))


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
            return ", ".join(f"{name} {shape(part)}" for name, part in value.items())
        if isinstance(value, tuple):
            return f"({', '.join(map(shape, value))})"
        return str(value)

    return f"{count(len(run.good), 'result')}, each {shape(run.good[0].inference)}"


def pair(package: Package) -> str:
    return _tensors(package, _Pair, 4).said(_shapes)


def layers(package: Package) -> str:
    return _tensors(package, _Layers, 8).said(_shapes)


def loss(package: Package) -> str:
    return _tensors(package, _Loss, 4).said(_shapes)


class _PickyInFifties(Picky):
    size = 50


class _PickyIn64(Picky):
    size = 64


def one_bad(package: Package) -> str:
    handler = package.handler(_PickyInFifties)
    run = Run(package, [*range(49), -1], handler, aside={})
    return run.said(_kept)


def one_in_a_hundred(package: Package) -> str:
    numbers = list(range(6400))
    for index in random.Random(0).sample(numbers, 64):
        numbers[index] = -1
    run = Run(package, numbers, package.handler(_PickyIn64), aside={})
    return run.said(_kept)


def _kept(run: Run) -> str:
    aside = sum(len(letter[0]) if isinstance(letter[0], list) else 1 for letter in run.bad)
    return f"{count(len(run.good), 'result')}, {aside:,} set aside"


def threshold(package: Package) -> str:
    handler = package.handler(_PickyInFifties)
    run = Run(package, [*range(99), -1], handler, aside={"threshold": 0.1})
    return "the pipeline stops" if run.error else _kept(run)


def timestamps(package: Package) -> str:
    run = Run(package, [0, 3, 6], package.handler(InTens), timed=True)
    return run.said(lambda run: ", ".join(f"{time:g}" for time in run.times))


def view(package: Package) -> str:
    run = _tensors(package, torch.nn.Linear, 256, width=768)
    return run.said(lambda run: f"{len(run.coder.encode(run.good[0])):,} bytes")


class _Regressor:
    def predict(self, frame: Any, **arguments: Any) -> Any:
        note("arguments", arguments)
        return np.zeros(len(frame))


def pandas_arguments(package: Package) -> str:
    import pandas as pd

    notes("arguments")
    handler = package.sklearn.SklearnModelHandlerPandas("unused")
    try:
        list(handler.run_inference([pd.DataFrame({"x": [1]})], _Regressor(), {"steps": 3}))
    except Exception as error:
        return said(error)
    [arguments] = notes("arguments")
    return "passed" if arguments else "ignored"


class _Popping(Doubling):
    size = 1

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        note("arguments", inference_args.pop("temperature", None))
        return super().run_inference(batch, model, inference_args)


def shared_arguments(package: Package) -> str:
    notes("arguments")
    run = Run(package, [1, 2, 3], package.handler(_Popping), inference_args={"temperature": 0.5})
    return run.said(lambda run: ", ".join(map(str, notes("arguments"))))


ROWS = (
    Row(
        "A model gives 1 result for 8 elements.",
        short_result,
        "1 result",
        "`ResultMismatchError`",
    ),
    Row(
        "A PyTorch model returns a pair of tensors, for 4 elements.",
        pair,
        "2 results, each 4 by 2",
        "4 results, each (2, 2)",
    ),
    Row(
        "It returns a dictionary that holds a tensor for each of 3 layers, for 8 elements.",
        layers,
        "3 results, each logits 2, hidden 8 by 2",
        "8 results, each logits 2, hidden (2, 2, 2)",
    ),
    Row(
        "Its dictionary holds a loss, which is one number, and a `None`.",
        loss,
        "`TypeError`",
        "4 results, each logits 2, loss number, cache None",
    ),
    Row(
        "One of 50 elements of a batch is bad; exception handling is on.",
        one_bad,
        "0 results, 50 set aside",
        "49 results, 1 set aside",
    ),
    Row(
        "64 of 6,400 elements are bad, in batches of 64.",
        one_in_a_hundred,
        "3,136 results, 3,264 set aside",
        "6,336 results, 64 set aside",
    ),
    Row(
        "1 of 100 elements is bad, in batches of 50, and `threshold=0.1`.",
        threshold,
        "the pipeline stops",
        "99 results, 1 set aside",
    ),
    Row(
        "The timestamps of results, for elements at 0, 3 and 6 seconds in a window of 10.",
        timestamps,
        "10, 10, 10",
        "0, 3, 6",
    ),
    Row(
        "The encoded result of a PyTorch model for one row in a batch of 256: 6,144 bytes of numbers.",
        view,
        re.compile(r"79\d,\d{3} bytes"),
        re.compile(r"6,2\d\d bytes"),
    ),
    Row(
        "`inference_args` of the pandas handler for scikit-learn.",
        pandas_arguments,
        "ignored",
        "passed",
    ),
    Row(
        "A call takes `temperature` out of its `inference_args`: what three calls find there.",
        shared_arguments,
        "0.5, None, None",
        "0.5, 0.5, 0.5",
    ),
)
