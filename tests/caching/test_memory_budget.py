"""The memory budget of the model manager, and the estimated size of models."""

from __future__ import annotations

import os
import sys
from unittest import mock

import numpy as np
import pytest
import torch

from runinference import ModelHandler
from runinference.caching.memory_budget import (
    available_memory_bytes,
    limits_from_args,
    model_bytes,
)
from runinference.serving.placement import InProcessModel


def test_the_default_budget_is_three_quarters_of_the_memory():
    assert limits_from_args({}).on_worker().max_bytes == available_memory_bytes() * 3 // 4
    assert limits_from_args({"max_models": 2}).on_worker().max_bytes is None


GIB = 1 << 30
NO_LIMIT = 9_223_372_036_854_771_712  # the value of version 1 for no limit


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{GIB}\n"}, GIB),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/pod/container\n",
                "sys/fs/cgroup/pod/memory.max": str(GIB),
                "sys/fs/cgroup/pod/container/memory.max": "max",
            },
            GIB,
        ),
        (
            {
                "proc/self/cgroup": "2:cpu:/x\n1:memory:/docker/a:b\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": str(NO_LIMIT),
                "sys/fs/cgroup/memory/docker/a:b/memory.limit_in_bytes": str(GIB),
            },
            GIB,
        ),
        (
            {
                "proc/self/cgroup": "1:memory,cpu:/seen/from/outside\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": str(GIB),
            },
            GIB,
        ),
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": str(GIB),
            },
            None,
        ),
        ({}, None),
    ],
    ids=["v2", "v2 max", "v2 pod", "v1", "v1 host path", "v1 file of v2", "no groups"],
)
def test_available_memory_is_the_limit_of_the_container(tmp_path, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available_memory_bytes(tmp_path) == (limit or machine)


def test_the_default_budget_is_three_quarters_of_the_gpu_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu = mock.Mock(total_memory=16 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    assert limits_from_args({}).on_worker().max_bytes == 12 << 30


def test_accepts_arguments_of_beams_model_manager():
    assert (
        limits_from_args(
            {"slack_percentage": 0.1, "poll_interval": 1.0, "max_models": 1}
        ).max_models
        == 1
    )


def test_the_size_of_a_network_is_that_of_its_parameters_and_buffers():
    assert model_bytes(torch.nn.Linear(10, 5)) == 4 * (10 * 5 + 5)
    assert model_bytes(torch.nn.BatchNorm1d(4)) == 4 * 4 * 4 + 8
    assert model_bytes({"net": torch.nn.Linear(1000, 100)}) >= 4 * 1000 * 100


def test_counts_each_array_once():
    array = np.zeros(1_000_000)
    assert 8_000_000 <= model_bytes({"weights": array, "again": array, "list": [array]}) < 8_010_000
    assert model_bytes("x" * 1000) >= 1000
    assert model_bytes(None) < 100


def test_finds_the_arrays_of_an_estimator():
    from sklearn.neighbors import KNeighborsClassifier

    rows = np.random.default_rng(0).random((2000, 50))
    labels = rows[:, 0] > 0.5
    assert model_bytes(KNeighborsClassifier(algorithm="brute").fit(rows, labels)) >= rows.nbytes


class RemoteProxy:
    """A client that asks a server for each attribute, and has no connection."""

    def __getattr__(self, name):
        raise ConnectionError(name)


@pytest.mark.parametrize(
    "model", [mock.Mock(), mock.MagicMock(), RemoteProxy(), RemoteProxy, sys, print], ids=range(6)
)
def test_estimates_the_size_of_any_object(model):
    assert model_bytes(model) >= 0


def test_the_size_of_a_model_is_not_what_other_threads_allocate():
    """The model is loaded while the process grows by 64 MiB."""
    others = []

    class Small(ModelHandler):
        def load_model(self):
            others.append(bytearray(b"x" * (64 << 20)))
            return bytearray(1 << 20)

    assert 1 << 20 <= InProcessModel(Small()).n_bytes < 2 << 20


def test_a_model_outside_of_python_is_as_large_as_its_file(tmp_path):
    from runinference.onnx_inference import OnnxModelHandlerNumpy

    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(5 << 20))
    assert OnnxModelHandlerNumpy(str(path)).get_model_bytes(object()) == 5 << 20
    assert OnnxModelHandlerNumpy("nowhere://model.onnx").get_model_bytes(object()) < 1000
