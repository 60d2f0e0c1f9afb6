"""Which pages a run of the tests is about: all, those of `--page`, or those that differ from main."""

from __future__ import annotations

import subprocess

import pytest

from docs.blocks import ROOT


def chosen(config: pytest.Config) -> tuple[str, ...]:
    """The files of the pages, from the root of the project; none means all."""
    if config.getoption("--changed"):
        return tuple(changed()) or ("docs/index.md",)
    return tuple(config.getoption("--page"))


def changed(since: str = "main") -> list[str]:
    """The pages and notebooks that differ from a commit, or are not committed."""
    asked = [
        ["git", "diff", "--name-only", "--merge-base", since],
        ["git", "ls-files", "--others", "--exclude-standard"],
    ]
    said = [
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for command in asked
    ]
    names = sorted({name for text in said for name in text.splitlines()})
    return [
        name
        for name in names
        if name.startswith("docs/") and name.endswith((".md", ".ipynb")) and (ROOT / name).exists()
    ]
