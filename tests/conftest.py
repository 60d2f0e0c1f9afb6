"""What every test may ask for: which pages to test, how, and where the report of it goes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from docs import report

with contextlib.suppress(ImportError):
    import triton  # noqa: F401 - its LLVM aborts the process where TensorFlow's was loaded before it

HOME = "RUNINFERENCE_DOCS_HOME"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("documentation")
    group.addoption(
        "--cached", action="store_true", help="at the desk: forks, and only what has changed"
    )
    group.addoption("--changed", action="store_true", help="test only pages that differ from main")
    group.addoption("--page", action="append", default=[], help="test only this page")


def pytest_configure(config: pytest.Config) -> None:
    """One home for all blocks and all workers, so that a sample model is trained once."""
    if HOME not in os.environ:
        os.environ[HOME] = tempfile.mkdtemp(prefix="docs-home-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(HOME), ignore_errors=True))
    parts = ("page", "changed", "keyword", "markexpr", "lf")
    whole = config.args_source.name != "ARGS" and not any(map(config.getoption, parts))
    config.pluginmanager.register(report.Report(Path(config.rootpath), whole), "docs-report")
