"""Fixtures that import an example and call its `run` function."""

import importlib.util
import io
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def run_example(tmp_path_factory):
    """Return a function that runs an example in an empty folder and returns its output."""

    def run(name, *arguments):
        folder, printed = tmp_path_factory.mktemp("empty"), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
            patch.chdir(folder)
            patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
            import_example(name, patch).run([str(argument) for argument in arguments])
        assert not list(folder.iterdir()), "the example left files in the working directory"
        return printed.getvalue()

    return run


@pytest.fixture
def load_example(monkeypatch):
    """Return a function that imports an example by name."""
    return lambda name: import_example(name, monkeypatch)


def import_example(name, patch):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module
