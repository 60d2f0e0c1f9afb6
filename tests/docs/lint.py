"""Is the code that pages show formatted, and free of what ruff finds?"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from docs.blocks import Block, Fault

_WIDTH = "88"
_RULES = "E,F,I,B,UP,SIM,C4,W"
_SETTINGS = ["--isolated", "--line-length", _WIDTH, "--target-version", "py310"]
_CURE = "`make docs-format` mends it."


def lint(blocks: list[Block]) -> list[Fault]:
    """What ruff says about the Python blocks, at the line of the page."""
    python = [block for block in blocks if block.language == "python"]
    if not python:
        return []
    with _as_files(python) as directory:
        check = ["check", *_SETTINGS, "--select", _RULES, "--output-format", "json"]
        said = json.loads(_ruff(check, directory).stdout or "[]")
        by_file = dict(zip(_names(python), python, strict=True))
        faults = []
        for each in said:
            block = by_file[Path(each["filename"]).name]
            line = block.line + each["location"]["row"]
            faults.append(Fault(block.path, line, f"{each['code']}: {each['message']}", _CURE))
        faults += [
            block.fault("the code is not formatted", _CURE)
            for block, formatted in zip(python, _formatted(python, directory), strict=True)
            if formatted != block.code.rstrip("\n")
        ]
    return faults


def formatted(blocks: list[Block]) -> list[str]:
    """The code of these Python blocks, mended and formatted by ruff."""
    with _as_files(blocks) as directory:
        check = ["check", *_SETTINGS, "--select", _RULES, "--fix", "--quiet"]
        _ruff(check, directory)
        return _formatted(blocks, directory)


def _formatted(blocks: list[Block], directory: Path) -> list[str]:
    _ruff(["format", "--quiet", *_SETTINGS], directory)
    return [(directory / name).read_text("utf-8").rstrip("\n") for name in _names(blocks)]


def _names(blocks: list[Block]) -> list[str]:
    return [f"block_{number}.py" for number in range(len(blocks))]


@contextmanager
def _as_files(blocks: list[Block]) -> Iterator[Path]:
    """A directory with one file for each block."""
    with tempfile.TemporaryDirectory(prefix="docs-lint-") as name:
        for file, block in zip(_names(blocks), blocks, strict=True):
            (Path(name) / file).write_text(block.code.rstrip("\n") + "\n", "utf-8")
        yield Path(name)


def _ruff(arguments: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "."]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
