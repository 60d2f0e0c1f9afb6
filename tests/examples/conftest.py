"""How the tests run an example: its function ``run``, in this process."""

import importlib.util
import io
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def run_program(tmp_path_factory):
    """Runs an example from an empty folder; gives what it printed."""

    def run(name, *arguments):
        folder, printed = tmp_path_factory.mktemp("empty"), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
            patch.chdir(folder)
            patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
            imported(name, patch).run([str(argument) for argument in arguments])
        assert not list(folder.iterdir()), "it left something in the folder it was started from"
        return printed.getvalue()

    return run


@pytest.fixture
def load_example(monkeypatch):
    """Imports an example as a module, by its name, for this test."""
    return lambda name: imported(name, monkeypatch)


def imported(name, patch):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module
