"""Find a Chromium for the tests of the site, or get one.

    python -m docs.browser

In this order: one that is installed; the one that Playwright downloads; the distribution's package,
when we may install it; else an error that names the command to run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
CURE = (
    "The tests of the site need Chromium. Install it (`sudo apt-get install chromium`, or your "
    "system's way), or let Playwright: `.venv/bin/python -m playwright install --with-deps chromium`."
)


def installed() -> str | None:
    """An installed Chromium or Chrome; `CHROMIUM` names one that is somewhere else."""
    if chosen := os.environ.get("CHROMIUM"):
        return chosen
    paths = (shutil.which(name) for name in NAMES)
    return next((path for path in paths if path), None) or downloaded()


def downloaded() -> str | None:
    """The Chromium that Playwright has downloaded."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def _try(*command: str) -> bool:
    print(f"trying: {' '.join(command)}", file=sys.stderr, flush=True)
    try:
        return subprocess.run(command, stdout=sys.stderr, check=False, timeout=600).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find_or_install() -> str:
    """The path of a Chromium, which may have had to be installed first."""
    if path := installed():
        return path
    _try(sys.executable, "-m", "playwright", "install", "chromium")
    if path := installed():
        return path
    if os.geteuid() == 0 and shutil.which("apt-get"):
        _try("apt-get", "update", "-q")
        _try("apt-get", "install", "-qy", "--no-install-recommends", "chromium")
    if path := installed():
        return path
    raise SystemExit(CURE)


if __name__ == "__main__":
    print(find_or_install())
