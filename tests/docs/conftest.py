"""Fixtures of the documentation tests: the environment, the interpreter, and the saved runs.

By default, programs run in forks of one process that has already imported what most pages import. With `--fresh`,
each program runs in a new interpreter. With `--cached`, programs that ran before unchanged don't run again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from docs import run_cache
from docs.run import (
    PRELOADED,
    FreshInterpreter,
    Interpreter,
    RunResult,
    environment,
    start_fork_server,
)


@pytest.fixture(scope="session")
def env(pytestconfig: pytest.Config) -> dict[str, str]:
    """The environment of every block. All blocks of a session share a home directory."""
    home = Path(os.environ["RUNINFERENCE_DOCS_HOME"])
    return environment(home, prism=pytestconfig.getoption("--prism"))


@dataclass
class LazyForkServer:
    """A fork server that starts when the first program runs."""

    env: dict[str, str]
    stack: ExitStack
    server: Interpreter | None = None

    def run(self, file: Path, limit: float, draw: str | None = None) -> RunResult:
        self.server = self.server or self.stack.enter_context(
            start_fork_server(self.env, PRELOADED)
        )
        return self.server.run(file, limit, draw)


@pytest.fixture(scope="session")
def fork_server(env: dict[str, str]) -> Iterator[Interpreter]:
    with ExitStack() as stack:
        yield LazyForkServer(env, stack)


@pytest.fixture(scope="session")
def interpreter(
    env: dict[str, str], fork_server: Interpreter, pytestconfig: pytest.Config
) -> Interpreter:
    return FreshInterpreter(env) if pytestconfig.getoption("--fresh") else fork_server


@pytest.fixture(scope="session")
def runs(pytestconfig: pytest.Config) -> run_cache.RunCache:
    """The results of earlier runs: of this session or, with `--cached`, of earlier sessions too."""
    interpreter = "fresh" if pytestconfig.getoption("--fresh") else "forked"
    runner = "prism" if pytestconfig.getoption("--prism") else "embedded"
    key = run_cache.environment_key(f"{interpreter} {runner}")
    if not pytestconfig.getoption("--cached") or os.environ.get("CI"):
        return run_cache.RunCache(Path(os.environ["RUNINFERENCE_DOCS_HOME"]) / "runs", key)
    run_cache.prune_saved_runs()
    return run_cache.RunCache(run_cache.SAVED_RUNS, key)
