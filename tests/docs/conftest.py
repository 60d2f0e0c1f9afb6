"""The interpreter that the blocks of a session share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.run import Fresh, Interpreter, environment, forking


@pytest.fixture(scope="session")
def env() -> dict[str, str]:
    """The environment of every block; its home, with the sample models, is the session's."""
    return environment(Path(os.environ["RUNINFERENCE_DOCS_HOME"]))


@pytest.fixture(scope="session")
def interpreter(env: dict[str, str], pytestconfig: pytest.Config) -> Iterator[Interpreter]:
    if pytestconfig.getoption("--fresh"):
        yield Fresh(env)
        return
    with forking(env) as forked:
        yield forked
