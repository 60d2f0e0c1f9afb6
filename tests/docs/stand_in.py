"""Stands in for pip, git and make in shell blocks: checks what they are asked, and leaves it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def pip(arguments: list[str]) -> str | None:
    """`pip install "runinference[torch]"`: are these extras declared?"""
    if arguments[:1] != ["install"]:
        return f"pip {' '.join(arguments)}: only `pip install` has a stand-in"
    declared = _extras()
    for argument in arguments[1:]:
        if match := re.match(r"(?:runinference|\.)\[(.+?)\]", argument):
            unknown = {extra.strip() for extra in match[1].split(",")} - declared
            if unknown:
                return f"{argument}: pyproject.toml declares {', '.join(sorted(declared))}"
    return None


def git(arguments: list[str]) -> str | None:
    """`git clone <the project>`: makes the directory, with what the commands after it may use."""
    if arguments[:1] != ["clone"] or len(arguments) < 2:
        return f"git {' '.join(arguments)}: only `git clone` has a stand-in"
    target = Path(arguments[2] if len(arguments) > 2 else Path(arguments[1]).stem)
    address = re.search(r"^repo_url: *(\S+)", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    if address and arguments[1].removesuffix(".git") != address[1]:
        return f"{arguments[1]} is not the project's address, {address[1]}"
    shutil.copytree(ROOT / "examples", target / "examples")
    return None


def make(arguments: list[str]) -> str | None:
    """`make demo`: does the Makefile know how?"""
    goals = [word for word in arguments if "=" not in word and not word.startswith("-")]
    real = os.environ["PATH"].split(os.pathsep, 1)[1]  # without the stand-ins, which come first
    for goal in goals:
        asked = ["make", "--dry-run", "--silent", "-C", str(ROOT), goal]
        done = subprocess.run(asked, capture_output=True, text=True, env={"PATH": real})
        if done.returncode:
            return f"make {goal}: {done.stderr.strip()}"
    return None


def _extras() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^([\w-]+) = \[", section, re.MULTILINE))


if __name__ == "__main__":
    complaint = {"pip": pip, "git": git, "make": make}[sys.argv[1]](sys.argv[2:])
    if complaint:
        sys.exit(complaint)
