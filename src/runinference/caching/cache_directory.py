"""The directory of the user's cached files."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_directory() -> Path:
    """Return the directory for this library's cached files on the current platform."""
    if cache_home := os.environ.get("XDG_CACHE_HOME"):
        root = Path(cache_home)
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path.home() / ".cache"
    return root / "runinference"
