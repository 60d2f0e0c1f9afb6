"""The command ``runinference tune`` prints the result, or an error with its exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runinference import samples
from runinference.tuning.command_line import main

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

MODULE = """
from runinference import ModelHandler


class Lengths(ModelHandler):
    def load_model(self):
        return len

    def run_inference(self, batch, model, inference_args=None):
        return [model(example) + (inference_args or {}).get("more", 0) for example in batch]


handler = Lengths()
texts = ["a", "bc", "def"]
number = 5


def make_handler():
    return Lengths()


def make_texts():
    yield from texts


def make_endless_texts():
    while True:
        yield "a"


def fail():
    raise ValueError("no texts")
"""


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    (tmp_path / "my_module.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import missing_package")
    return tmp_path


def tune(*arguments: str) -> int:
    return main(["tune", *arguments, "--time-limit", "0.2", "--rounds", "1", "--no-plot"])


def test_the_console_script_measures_a_model_and_writes_a_plot(directory):
    """The script is the one that pip generates from pyproject.toml."""
    module, function = re.search(
        r'^\[project.scripts\]\nruninference = "(\S+):(\S+)"$', PYPROJECT.read_text(), re.MULTILINE
    ).groups()
    script = f"import sys; from {module} import {function}; sys.exit({function}())"
    (directory / "digits.py").write_text(
        "from runinference import samples\n"
        "from runinference.sklearn_inference import SklearnModelHandlerNumpy\n"
        f"handler = SklearnModelHandlerNumpy({samples.digits_classifier()!r})\n"
    )
    np.save("digits.npy", samples.held_out_digits()[0])
    done = subprocess.run(
        [sys.executable, "-c", script, "tune", "digits:handler", "digits.npy", "--time-limit=1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith("  batch size  elements/s  ms/call  peak memory")
    assert lines[1].split()[0].endswith("max_batch_size=1")
    assert any(re.fullmatch(r"Recommended: .*max_batch_size=\d+", line) for line in lines)
    assert lines[-1] == "Plot: runinference-tune.png"
    assert Path("runinference-tune.png").read_bytes().startswith(b"\x89PNG")
    assert "max_batch_size=1: " in done.stderr


@pytest.mark.parametrize("handler", ["handler", "make_handler", "Lengths"])
@pytest.mark.parametrize("elements", ["texts", "make_texts", "make_endless_texts"])
def test_attributes_are_values_or_functions(handler, elements, capsys):
    assert tune(f"my_module:{handler}", f"my_module:{elements}") == 0
    assert "Recommended: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("texts.txt", "one\n\ntwo\n"),
        ("texts.jsonl", '"one"\n\n[1, 2]\n{"a": 1}\n'),
        ("rows.csv", "a,b\n1,2\n"),
    ],
)
def test_files_of_elements_are_read(file, content):
    Path(file).write_text(content)
    assert tune("my_module:handler", file) == 0


def test_arguments_for_the_model_are_json():
    arguments = json.dumps({"more": "a text"})
    assert tune("my_module:handler", "my_module:texts", "--inference-args", arguments) == 1
    assert tune("my_module:handler", "my_module:texts", "--inference-args", '{"more": 1}') == 0


def test_a_failing_element_is_named_and_the_exit_code_is_1(capsys):
    Path("texts.jsonl").write_text('"one"\n5\n')
    assert tune("my_module:handler", "texts.jsonl") == 1
    error = capsys.readouterr().err
    assert "fails on element 1 of the sample: TypeError" in error
    assert "The element is 5.\nTo fix this, " in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("handler", "elements", "message"),
    [
        ("my_module", "my_module:texts", "'my_module' is not of the form module:attribute"),
        ("my_modul:handler", "my_module:texts", "no module 'my_modul'. To fix this, run"),
        ("broken:handler", "my_module:texts", "'broken' can't be imported: No module named"),
        ("my_module:handlr", "my_module:texts", "no attribute 'handlr'. Did you mean 'handler'?"),
        ("my_module:number", "my_module:texts", "must be a model handler, or a function"),
        ("my_module:fail", "my_module:texts", "without arguments: ValueError: no texts"),
        ("my_module:handler", "my_module:number", "must be a list, or a function"),
        ("my_module:handler", "my_module:fail", "without arguments: ValueError: no texts"),
        ("my_module:handler", "texts.parquet", "must be a file that ends in .jsonl, .csv"),
        ("my_module:handler", "missing.txt", "cannot be read: FileNotFoundError"),
        ("my_module:handler", "bad.jsonl", "cannot be read: ValueError: line 1 is not JSON"),
        ("my_module:handler", "bad.npy", "cannot be read: ValueError"),
        ("my_module:handler", "latin1.txt", "cannot be read: UnicodeDecodeError"),
        ("my_module:handler", "empty.txt", "elements is empty. To fix this"),
    ],
)
def test_an_invalid_argument_is_explained_and_the_exit_code_is_2(
    handler, elements, message, capsys
):
    for name, content in {"bad.jsonl": b"{", "bad.npy": b"?", "latin1.txt": b"\xff"}.items():
        Path(name).write_bytes(content)
    Path("empty.txt").touch()
    assert tune(handler, elements) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "arguments",
    [[], ["tune"], ["tune", "a:b", "c:d", "--inference-args", "5"], ["tune", "a:b", "c:d", "--x"]],
)
def test_a_command_that_cannot_be_parsed_has_the_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert "usage: runinference" in capsys.readouterr().err


def test_the_path_of_the_plot_is_checked_first(capsys):
    arguments = ["tune", "missing:handler", "missing.txt", "--plot", "plot.gif"]
    assert main(arguments) == 2
    assert "must end in .png or .svg" in capsys.readouterr().err


def test_without_matplotlib_the_result_is_still_printed(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = ["my_module:handler", "my_module:texts", "--time-limit", "0.2"]
    assert main(["tune", *arguments]) == 0
    printed = capsys.readouterr()
    assert "Recommended: " in printed.out
    assert "No plot was written" in printed.err
    assert "pip install matplotlib" in printed.err
