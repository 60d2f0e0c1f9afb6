"""Selects the pages to test: all, those of `--page`, or those that differ from main."""

from __future__ import annotations

import subprocess

import pytest

from docs.blocks import ROOT


def selected_pages(config: pytest.Config) -> tuple[str, ...]:
    """Return the selected pages, relative to the root of the project. An empty tuple means all."""
    if config.getoption("--changed"):
        return tuple(changed_pages()) or ("docs/index.md",)
    return tuple(config.getoption("--page"))


def changed_pages(since: str = "main") -> list[str]:
    """Return the pages and notebooks that differ from a commit or are not committed."""
    commands = [
        ["git", "diff", "--name-only", "--merge-base", since],
        ["git", "ls-files", "--others", "--exclude-standard"],
    ]
    outputs = [
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for command in commands
    ]
    names = sorted({name for output in outputs for name in output.splitlines()})
    return [
        name
        for name in names
        if name.startswith("docs/") and name.endswith((".md", ".ipynb")) and (ROOT / name).exists()
    ]
