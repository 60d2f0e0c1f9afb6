"""How the tests run an example: as a program of its own, or in this process."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

# On a busy machine, threads that wait for each other cost more than they bring.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture(scope="session")
def run_program(tmp_path_factory):
    """Runs an example in a fresh process and an empty folder, without a terminal; gives its stdout."""

    def run(name, *arguments):
        folder = tmp_path_factory.mktemp("empty")
        temporary = str(tmp_path_factory.mktemp("temporary"))
        done = subprocess.run(
            [sys.executable, EXAMPLES / f"{name}.py", *map(str, arguments)],
            cwd=folder,
            env={**os.environ, **ONE_THREAD, "TMPDIR": temporary, "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not list(folder.iterdir()), "it left something in the folder it was started from"
        return done.stdout

    return run


@pytest.fixture
def load_example(monkeypatch):
    """Imports an example as a module, by its name, for this test."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load
