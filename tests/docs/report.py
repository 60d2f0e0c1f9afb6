"""Where and when each block of the site ran: written by the tests, read by the site."""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

FILE = Path(".cache") / "docs-report.json"
_PACKAGES = ("apache-beam", "runinference", "numpy", "scikit-learn", "torch", "torchvision")


def versions() -> dict[str, str]:
    """The versions that decide what a block prints."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


class Report:
    """Gathers what the tests of blocks recorded, also from the workers of pytest-xdist."""

    def __init__(self, root: Path) -> None:
        self.file = root / FILE
        self.blocks: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        recorded = dict(report.user_properties)
        if report.when == "call" and "block" in recorded:
            self.blocks.append({**recorded, "passed": report.passed})

    def pytest_sessionfinish(self) -> None:
        if not self.blocks or "PYTEST_XDIST_WORKER" in os.environ:
            return
        self.file.parent.mkdir(exist_ok=True)
        told = {
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": versions(),
            "blocks": sorted(self.blocks, key=lambda block: str(block["block"])),
        }
        self.file.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
