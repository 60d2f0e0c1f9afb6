"""Checks with ruff that the Python code on pages is formatted and clean."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from docs.blocks import Block, Problem

_WIDTH = "88"
_RULES = "E,F,I,B,UP,SIM,C4,W"
_SETTINGS = ["--isolated", "--line-length", _WIDTH, "--target-version", "py310"]
_HINT = "To fix this, run `make docs-format`."


def lint(blocks: list[Block]) -> list[Problem]:
    """Return what ruff reports for the Python blocks, with the lines of the page."""
    python = [block for block in blocks if block.language == "python"]
    if not python:
        return []
    with _as_files(python) as directory:
        check = ["check", *_SETTINGS, "--select", _RULES, "--output-format", "json"]
        violations = json.loads(_ruff(check, directory).stdout or "[]")
        by_file = dict(zip(_file_names(python), python, strict=True))
        problems = []
        for each in violations:
            block = by_file[Path(each["filename"]).name]
            line = block.line + each["location"]["row"]
            problems.append(Problem(block.path, line, f"{each['code']}: {each['message']}", _HINT))
        problems += [
            block.problem("the code is not formatted", _HINT)
            for block, formatted in zip(python, _format_files(python, directory), strict=True)
            if formatted != block.code.rstrip("\n")
        ]
    return problems


def format_code(blocks: list[Block]) -> list[str]:
    """Return the code of these Python blocks, fixed and formatted by ruff."""
    with _as_files(blocks) as directory:
        check = ["check", *_SETTINGS, "--select", _RULES, "--fix", "--quiet"]
        _ruff(check, directory)
        return _format_files(blocks, directory)


def _format_files(blocks: list[Block], directory: Path) -> list[str]:
    _ruff(["format", "--quiet", *_SETTINGS], directory)
    return [(directory / name).read_text("utf-8").rstrip("\n") for name in _file_names(blocks)]


def _file_names(blocks: list[Block]) -> list[str]:
    return [f"block_{number}.py" for number in range(len(blocks))]


@contextmanager
def _as_files(blocks: list[Block]) -> Iterator[Path]:
    """Create a temporary directory with one file for each block."""
    with tempfile.TemporaryDirectory(prefix="docs-lint-") as name:
        for file, block in zip(_file_names(blocks), blocks, strict=True):
            (Path(name) / file).write_text(block.code.rstrip("\n") + "\n", "utf-8")
        yield Path(name)


def _ruff(arguments: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "."]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
