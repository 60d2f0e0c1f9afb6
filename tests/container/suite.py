"""The steps of examples/container/Dockerfile build an environment in which the pipeline runs.

`make test-container` runs them in a new folder and a new virtual environment instead of an image.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from container import COMMANDS, CONTAINER, read_dockerfile
from docs.blocks import ROOT

#: The part of the commands of pip that the steps use, with uv, which has the packages in its cache.
PIP = """#!/bin/sh
case "$1" in
install) shift; exec "{python}" -m uv pip install --quiet --python "{venv}/bin/python" "$@" ;;
wheel) shift 4; for path; do "{python}" -m uv build --quiet --wheel --out-dir dist "$path"; done ;;
esac
"""


class Image:
    """A folder and a virtual environment in the place of an image and its Python."""

    def __init__(self, folder: Path, context: Path) -> None:
        self.root, self.context, self.workdir = folder / "root", context, folder / "root"
        self.venv = folder / "venv"
        self.env = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH",)
        }
        self.env["PATH"] = f"{self.venv}/bin:{self.env['PATH']}"
        self.env["UV_NO_CACHE"] = "false"

    def run(self, command: str, folder: Path | None = None) -> None:
        done = subprocess.run(
            command.replace("--no-cache-dir ", ""),
            shell=True,
            cwd=folder or self.workdir,
            env=self.env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr[-3000:]}"

    def execute_from(self, image: str) -> None:
        """Create an environment with what Beam's image contains: Python, pip, and Beam."""
        python, beam = re.fullmatch(r"apache/beam_python(.+)_sdk:(.+)", image).groups()
        assert python == "{}.{}".format(*sys.version_info[:2])
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.venv], check=True)
        pip = self.venv / "bin" / "pip"
        pip.write_text(PIP.format(python=sys.executable, venv=self.venv))
        pip.chmod(0o755)
        self.run(f"pip install apache-beam=={beam} --constraint {ROOT}/requirements/full.txt", ROOT)

    def execute_workdir(self, path: str) -> None:
        self.workdir = self.root / path.lstrip("/")
        self.workdir.mkdir(parents=True)

    def execute_copy(self, arguments: str) -> None:
        source, target = arguments.split()
        base = self.root if target.startswith("/") else self.workdir
        source, target = self.context / source, base / target.lstrip("/")
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)

    def execute_run(self, command: str) -> None:
        self.run(command)

    def execute_env(self, assignment: str) -> None:
        name, _, value = assignment.partition("=")
        self.env[name] = value


@pytest.mark.skipif(
    dict(read_dockerfile())["FROM"].split("_")[1] != "python{}.{}".format(*sys.version_info[:2]),
    reason="the image has another version of Python",
)
def test_the_pipeline_runs_in_an_environment_that_the_dockerfile_builds(tmp_path):
    context = tmp_path / "context"
    for name in ("src", "examples/container"):
        shutil.copytree(ROOT / name, context / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, context / name)
    image = Image(tmp_path, context)
    instructions = read_dockerfile()
    image.execute_from(instructions[0][1])
    build = Image(tmp_path, context)  # the machine that builds has the packages of the project
    build.env["PATH"] = f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}"
    build.run(COMMANDS[0], context)
    build.run(COMMANDS[1].replace("python", sys.executable, 1), context)
    for name, arguments in instructions[1:]:
        getattr(image, f"execute_{name.lower()}")(arguments)

    model, output = image.root / "models" / "digits.pickle", tmp_path / "counts"
    image.run(
        f"python {CONTAINER / 'pipeline.py'} --model={model} --output={output} --runner=FnApiRunner "
        "--direct_running_mode=multi_processing --direct_num_workers=2",
        tmp_path,
    )
    counts = dict(line.split(": ") for line in output.read_text().splitlines())
    assert sorted(counts) == [str(digit) for digit in range(10)]
    assert sum(map(int, counts.values())) == 797
