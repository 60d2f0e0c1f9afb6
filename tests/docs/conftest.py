"""The interpreter that the blocks of a session share, and the memory of what it ran."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from docs import store
from docs.run import Fresh, Interpreter, Ran, environment, forking


@pytest.fixture(scope="session")
def env() -> dict[str, str]:
    """The environment of every block; its home, with the sample models, is the session's."""
    return environment(Path(os.environ["RUNINFERENCE_DOCS_HOME"]))


@dataclass
class WhenNeeded:
    """A fork server that starts with the first program, if there is one that has not run yet."""

    env: dict[str, str]
    stack: ExitStack
    forked: Interpreter | None = None

    def run(self, file: Path, limit: float, draw: str | None = None) -> Ran:
        self.forked = self.forked or self.stack.enter_context(forking(self.env))
        return self.forked.run(file, limit, draw)


@pytest.fixture(scope="session")
def interpreter(env: dict[str, str], pytestconfig: pytest.Config) -> Iterator[Interpreter]:
    with ExitStack() as stack:
        yield Fresh(env) if pytestconfig.getoption("--fresh") else WhenNeeded(env, stack)


@pytest.fixture(scope="session")
def runs(pytestconfig: pytest.Config) -> store.Store:
    """What was run already: in this session or, with `--cached`, earlier on this desk."""
    fresh = pytestconfig.getoption("--fresh")
    at_desk = pytestconfig.getoption("--cached") and not fresh and not os.environ.get("CI")
    if at_desk:
        store.tidy_desk()
    directory = store.DESK if at_desk else Path(os.environ["RUNINFERENCE_DOCS_HOME"]) / "runs"
    return store.Store(directory, store.surroundings("fresh" if fresh else "forked"))
