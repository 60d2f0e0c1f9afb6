"""Shell blocks run as one script; three commands that need a network have stand-ins."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from docs.blocks import ROOT, Block

STAND_INS = {
    "pip": "checked: the extras are declared",
    "git": "checked: the address is the project's",
    "make": "checked: the Makefile has the target",
}


def command(block: Block, above: Path) -> list[str]:
    """What runs the block; `above` holds its directory, and takes the stand-ins."""
    tools = above / "tools"
    tools.mkdir()
    for name in STAND_INS:
        tool = tools / name
        stand_in = Path(__file__).with_name("stand_in.py")
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" {name} "$@"\n')
        tool.chmod(0o755)
    if (ROOT / "examples").exists():
        shutil.copytree(
            ROOT / "examples",
            above / "empty" / "examples",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    return ["bash", "-euo", "pipefail", "-c", block.text]


def environment(env: dict[str, str], above: Path) -> dict[str, str]:
    """The same machine, with the stand-ins first on the path."""
    return env | {"PATH": f"{above / 'tools'}{os.pathsep}{env['PATH']}"}


def stood_in(block: Block) -> list[str]:
    """The lines of a block that a stand-in answers."""
    words = "|".join(STAND_INS)
    return [
        line.strip() for line in block.code.splitlines() if re.match(rf"\s*(?:{words})\b", line)
    ]
