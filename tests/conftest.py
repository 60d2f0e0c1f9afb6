"""Options that select the pages to test, and the plugin that writes the report."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from docs import report

with contextlib.suppress(ImportError):
    import triton  # noqa: F401 - its LLVM aborts the process if TensorFlow's was loaded first
with contextlib.suppress(ImportError):
    import skops.io  # noqa: F401 - searches all loaded modules, so it takes much longer after others

HOME = "RUNINFERENCE_DOCS_HOME"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("documentation")
    group.addoption("--cached", action="store_true", help="run only changed code")
    group.addoption(
        "--fresh", action="store_true", help="start a new interpreter for each Python program"
    )
    group.addoption(
        "--prism", type=Path, help="run pipelines on Prism, whose binary is at this path"
    )
    group.addoption(
        "--changed", action="store_true", help="test only the pages that differ from main"
    )
    group.addoption("--page", action="append", default=[], help="test only this page")


def pytest_configure(config: pytest.Config) -> None:
    """Create one home directory for all workers, and register the report."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # MLflow sends it when it is imported or called
    if HOME not in os.environ:
        os.environ[HOME] = tempfile.mkdtemp(prefix="docs-home-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(HOME), ignore_errors=True))
    filters = ("page", "changed", "keyword", "markexpr", "lf")
    get_option = partial(config.getoption, default=None)  # the plugin with "lf" can be disabled
    is_complete = config.args_source.name != "ARGS" and not any(map(get_option, filters))
    config.pluginmanager.register(report.Report(Path(config.rootpath), is_complete), "docs-report")


def hide_errors() -> None:
    """Discard stderr at interpreter exit, when nanobind lists all objects excluded from garbage collection."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Exclude the objects of all imported packages from garbage collection while the tests run.

    There are about a million. A full collection takes seconds, and one that deletes them all even longer.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        atexit.register(hide_errors)
