"""The doctests in docstrings pass."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest

import runinference

TENSORFLOW = pytest.mark.xdist_group("tensorflow")  # only one process imports it
SOURCES = Path(runinference.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(SOURCES.parent).with_suffix("").parts)
    for path in SOURCES.rglob("*.py")
    if path.stem != "__init__"
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=TENSORFLOW) if "tensorflow" in name else name for name in MODULES],
)
def test_the_doctests_of_a_module_pass(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs={"np": np}, verbose=False)
    assert failed == 0


@TENSORFLOW
def test_at_least_ten_docstrings_have_doctests():
    finder = doctest.DocTestFinder()
    modules = [importlib.import_module(name) for name in MODULES]
    assert sum(bool(test.examples) for module in modules for test in finder.find(module)) >= 10
