"""The files of examples/container match the tested versions and the pages. `make test-container` runs them."""

from __future__ import annotations

from container import COMMANDS, CONTAINER
from docs.blocks import ROOT


def is_in_lock(requirement: str) -> bool:
    lines = (ROOT / "requirements" / "full.txt").read_text().splitlines()
    return any(line.partition(" ;")[0] == requirement for line in lines)


def test_the_requirements_are_the_tested_versions():
    lines = (CONTAINER / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#") and not is_in_lock(line)] == []


def test_the_pages_show_the_commands_and_the_dockerfile():
    page = (ROOT / "docs" / "dataflow.md").read_text()
    assert (CONTAINER / "Dockerfile").read_text() in page
    assert all(command in page for command in COMMANDS)
