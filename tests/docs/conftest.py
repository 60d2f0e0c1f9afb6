"""The interpreter that the blocks of a session share, and the memory of what it ran.

A whole run starts a new interpreter for every program. At the desk (`--cached`) programs run in forks of one that
has imported Beam already, and what ran before as it is now does not run again.
"""

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
def forked(env: dict[str, str]) -> Iterator[Interpreter]:
    with ExitStack() as stack:
        yield WhenNeeded(env, stack)


@pytest.fixture(scope="session")
def interpreter(
    env: dict[str, str], forked: Interpreter, pytestconfig: pytest.Config
) -> Interpreter:
    return forked if at_desk(pytestconfig) else Fresh(env)


@pytest.fixture(scope="session")
def runs(pytestconfig: pytest.Config) -> store.Store:
    """What was run already: in this session or, with `--cached`, earlier on this desk."""
    if not at_desk(pytestconfig):
        directory = Path(os.environ["RUNINFERENCE_DOCS_HOME"]) / "runs"
        return store.Store(directory, store.surroundings("fresh"))
    store.tidy_desk()
    return store.Store(store.DESK, store.surroundings("forked"))


def at_desk(config: pytest.Config) -> bool:
    """Whether forks and earlier runs will do: somebody is writing, and waits."""
    return config.getoption("--cached") and not os.environ.get("CI")
