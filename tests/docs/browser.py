"""Finds or installs Chromium for the tests of the site.

    python -m docs.browser

Tries, in this order: an installed browser, the one that Playwright downloads, and the package of the
distribution, if this user may install packages. Otherwise, prints the command to run.
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
HINT = (
    "The tests of the site need Chromium. To fix this, run `sudo apt-get install chromium` (or the "
    "equivalent on your system) or `.venv/bin/python -m playwright install --with-deps chromium`."
)


def find_installed() -> str | None:
    """Return the path of an installed Chromium or Chrome. The variable `CHROMIUM` overrides the search."""
    if selected_pages := os.environ.get("CHROMIUM"):
        return selected_pages
    paths = (shutil.which(name) for name in NAMES)
    return next((path for path in paths if path), None) or find_downloaded()


def find_downloaded() -> str | None:
    """Return the path of the Chromium that Playwright has downloaded."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def _run(*command: str) -> bool:
    print(f"running: {' '.join(command)}", file=sys.stderr, flush=True)
    try:
        return subprocess.run(command, stdout=sys.stderr, check=False, timeout=600).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find_or_install() -> str:
    """Return the path of Chromium, after installing it if necessary."""
    if path := find_installed():
        return path
    _run(sys.executable, "-m", "playwright", "install", "chromium")
    if path := find_installed():
        return path
    if os.geteuid() == 0 and shutil.which("apt-get"):
        _run("apt-get", "update", "-q")
        _run("apt-get", "install", "-qy", "--no-install-recommends", "chromium")
    if path := find_installed():
        return path
    raise SystemExit(HINT)


if __name__ == "__main__":
    print(find_or_install())
