"""The examples in docstrings print what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest

import runinference

TENSORFLOW = pytest.mark.xdist_group("tensorflow")  # one process pays for the import
MODULES = sorted(path.stem for path in Path(runinference.__file__).parent.glob("*.py"))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=TENSORFLOW) if name.startswith("tensorflow") else name
        for name in MODULES
        if name != "__init__"
    ],
)
def test_the_examples_of_a_module_print_what_they_say(name):
    module = importlib.import_module(f"runinference.{name}")
    failed, _ = doctest.testmod(module, extraglobs={"np": np}, verbose=False)
    assert failed == 0


@TENSORFLOW
def test_there_are_examples():
    finder = doctest.DocTestFinder()
    modules = [importlib.import_module(f"runinference.{name}") for name in MODULES]
    assert sum(bool(test.examples) for module in modules for test in finder.find(module)) >= 10
