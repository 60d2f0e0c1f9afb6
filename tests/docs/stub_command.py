"""Stub for pip, git and make in shell blocks: checks the arguments, and runs nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def check_pip(arguments: list[str]) -> str | None:
    """`pip install "runinference[torch]"`: check that pyproject.toml declares the extras."""
    if arguments[:1] != ["install"]:
        return f"pip {' '.join(arguments)}: only `pip install` has a stub"
    declared = _declared_extras()
    for argument in arguments[1:]:
        if match := re.match(r"(?:runinference|\.)\[(.+?)\]", argument):
            unknown = {extra.strip() for extra in match[1].split(",")} - declared
            if unknown:
                return f"{argument}: pyproject.toml declares {', '.join(sorted(declared))}"
    return None


def check_git(arguments: list[str]) -> str | None:
    """`git clone URL`: check the URL, and create the directory with the files that pages use."""
    if arguments[:1] != ["clone"] or len(arguments) < 2:
        return f"git {' '.join(arguments)}: only `git clone` has a stub"
    target = Path(arguments[2] if len(arguments) > 2 else Path(arguments[1]).stem)
    address = re.search(r'^repo_url: .*"(\S+)"', (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    if address and arguments[1].removesuffix(".git") != address[1]:
        return f"{arguments[1]} is not the project's address, {address[1]}"
    shutil.copytree(ROOT / "examples", target / "examples")
    return None


def check_make(arguments: list[str]) -> str | None:
    """`make demo`: check that the Makefile has the target."""
    targets = [word for word in arguments if "=" not in word and not word.startswith("-")]
    path = os.environ["PATH"].split(os.pathsep, 1)[1]  # without the stubs, which come first
    for target in targets:
        command = ["make", "--dry-run", "--silent", "-C", str(ROOT), target]
        done = subprocess.run(command, capture_output=True, text=True, env={"PATH": path})
        if done.returncode:
            return f"make {target}: {done.stderr.strip()}"
    return None


def _declared_extras() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^([\w-]+) = \[", section, re.MULTILINE))


if __name__ == "__main__":
    check = {"pip": check_pip, "git": check_git, "make": check_make}[sys.argv[1]]
    if problem := check(sys.argv[2:]):
        sys.exit(problem)
