"""The test report: when each block ran. The tests write it, and the site shows it."""

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

from docs.blocks import Block, display_path
from docs.run import RunResult
from docs.run_cache import report_key

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
    "mlflow-skinny": "mlflow",
    "tensorflow": "tensorflow",
    "spacy": "spacy",
    "pandas": "pandas",
    "httpx": "httpx",
}
"""The packages that affect what a block prints, with a pattern for the imports that use each one."""


def describe_run(block: Block, result: RunResult) -> dict[str, Any]:
    """Return the report entry of a block: its location, text key, run time, and package versions."""
    return {
        "block": block.name,
        "key": report_key(block),
        "language": block.language,
        "seconds": round(result.seconds, 2),
        "when": result.when,
        "versions": find_versions(block.text) if block.language == "python" else {},
    }


def describe_notebook_run(notebook: Path, seconds: float) -> dict[str, Any]:
    """Return the report entry of a notebook. Its key is a digest of the file."""
    text = notebook.read_text("utf-8")
    return {
        "block": display_path(notebook) + ":1",
        "key": sha256(text.encode()).hexdigest()[:16],
        "language": "notebook",
        "seconds": round(seconds, 2),
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": find_versions(text),
    }


def find_versions(code: str = "") -> dict[str, str]:
    """Return the versions of Python and of the packages that this code imports."""
    found = {"Python": platform.python_version()}
    for package, pattern in PACKAGES.items():
        if re.search(rf"import.*(?:{pattern})|from \S*(?:{pattern})", code):
            with suppress(PackageNotFoundError):
                found[package] = version(package)
    return found


class Report:
    """Pytest plugin that collects the entries of all tests, including those of pytest-xdist workers.

    Entries of earlier runs are kept until the block runs again or its text is removed. So `make docs-test
    PAGE=...` updates the entries of one page only.
    """

    def __init__(self, root: Path, is_complete: bool) -> None:
        self.file = root / FILE
        self.is_complete = is_complete
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
        report = {
            "last": last if self.is_complete else before.get("last"),
            "blocks": {
                key: block
                for key, block in sorted(kept.items())
                if key not in self.failed
                and (key in self.blocks or block["block"].rpartition(":")[0] not in pages)
            },
        }
        self.file.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
