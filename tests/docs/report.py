"""Where and when each block of the site ran: written by the tests, read by the site."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from contextlib import suppress
from datetime import datetime, timezone
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from docs.blocks import Block, shown
from docs.run import Ran
from docs.store import key

FILE = Path(".cache") / "docs-report.json"
PACKAGES = {
    "apache-beam": "apache_beam",
    "numpy": "numpy",
    "scikit-learn": "sklearn|samples",
    "torch": "torch",
    "torchvision": "torchvision",
    "transformers": "transformers|huggingface_inference",
    "onnxruntime": "onnx_inference",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "tensorflow": "tensorflow",
    "spacy": "spacy",
    "pandas": "pandas",
    "httpx": "httpx",
}
"""The packages whose versions decide what a block prints, and the words by which a block names them."""


def told(block: Block, ran: Ran) -> dict[str, Any]:
    """What the report says of one block: which text, where it stands, when it ran, and with what."""
    return {
        "block": block.name,
        "key": key(block),
        "language": block.language,
        "seconds": round(ran.seconds, 2),
        "when": ran.when,
        "versions": versions(block.text) if block.language == "python" else {},
    }


def told_of_notebook(notebook: Path, seconds: float) -> dict[str, Any]:
    """The same of a notebook, which is known by the whole of its file."""
    text = notebook.read_text("utf-8")
    return {
        "block": shown(notebook) + ":1",
        "key": sha256(text.encode()).hexdigest()[:16],
        "language": "notebook",
        "seconds": round(seconds, 2),
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(text),
    }


def versions(code: str = "") -> dict[str, str]:
    """The versions of Python and of the packages that this code names."""
    found = {"Python": platform.python_version()}
    for package, words in PACKAGES.items():
        if re.search(rf"import.*(?:{words})|from \S*(?:{words})", code):
            with suppress(PackageNotFoundError):
                found[package] = version(package)
    return found


class Report:
    """Gathers what the tests recorded, also from the workers of pytest-xdist.

    A block keeps what earlier runs told of it until it runs again, or its text is gone: so `make docs-test
    PAGE=...` tells of one page anew and leaves the others as they are.
    """

    def __init__(self, root: Path, whole: bool) -> None:
        self.file = root / FILE
        self.whole = whole
        self.blocks: dict[str, dict[str, Any]] = {}
        self.failed: set[str] = set()
        self.tests = 0
        self.began = time.time()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        self.tests += 1
        recorded = dict(report.user_properties)
        for block in recorded.get("blocks", [recorded["block"]] if "block" in recorded else []):
            self.blocks[block["key"]] = block
            if not report.passed:
                self.failed.add(block["key"])

    def pytest_sessionfinish(self) -> None:
        if not self.blocks or "PYTEST_XDIST_WORKER" in os.environ:
            return
        self.file.parent.mkdir(exist_ok=True)
        before = json.loads(self.file.read_text("utf-8")) if self.file.exists() else {}
        kept = {**before.get("blocks", {}), **self.blocks}
        pages = {block["block"].rpartition(":")[0] for block in self.blocks.values()}
        last = {
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(time.time() - self.began),
            "tests": self.tests,
            "failed": sorted(self.blocks[key]["block"] for key in self.failed),
        }
        told = {
            "last": last if self.whole else before.get("last"),
            "blocks": {
                key: block
                for key, block in sorted(kept.items())
                if key not in self.failed
                and (key in self.blocks or block["block"].rpartition(":")[0] not in pages)
            },
        }
        self.file.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
