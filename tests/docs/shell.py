"""Runs shell blocks as one script. Stubs replace the commands that need a network."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from docs.blocks import ROOT, Block

STUBS = {
    "pip": "checked: the extras are declared",
    "git": "checked: the address is the project's",
    "make": "checked: the Makefile has the target",
}


def prepare_command(block: Block, parent: Path) -> list[str]:
    """Return the command that runs the block, after creating the stubs and examples under `parent`."""
    tools = parent / "tools"
    tools.mkdir()
    for name in STUBS:
        tool = tools / name
        stub = Path(__file__).with_name("stub_command.py")
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stub}" {name} "$@"\n')
        tool.chmod(0o755)
    if (ROOT / "examples").exists():
        shutil.copytree(
            ROOT / "examples",
            parent / "empty" / "examples",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    return ["bash", "-euo", "pipefail", "-c", block.text]


def environment(env: dict[str, str], parent: Path) -> dict[str, str]:
    """Return the environment with the stubs first on the path."""
    return env | {"PATH": f"{parent / 'tools'}{os.pathsep}{env['PATH']}"}


def find_stubbed_lines(block: Block) -> list[str]:
    """Return the lines of a block that run a stub."""
    words = "|".join(STUBS)
    return [
        line.strip() for line in block.code.splitlines() if re.match(rf"\s*(?:{words})\b", line)
    ]
