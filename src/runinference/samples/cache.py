"""Where the sample models are kept: in the user's cache directory, each trained once."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import fasteners  # type: ignore[import-untyped]

from runinference.extras import need


def keeper(recipes: str) -> Callable[[str, str, str, Callable[[Path], None]], str]:
    """What keeps the models of one module.

    Args:
        recipes: The path of the module. The files' names change with its text, so that none outlives the recipe
            that made it.

    Returns:
        A function of a name, an ending, a framework and a function that trains, and writes a file or directory
        at the path it is given. It gives the path in the cache, trained if it is not there yet: of the processes
        that ask at the same time one trains, and none sees half a file.
    """
    recipe = hashlib.sha256(Path(recipes).read_bytes()).hexdigest()[:8]

    def kept(name: str, ending: str, framework: str, train: Callable[[Path], None]) -> str:
        trained_with = f"{framework}-{need(framework, extra=framework).__version__}"
        stem = f"{name}-{recipe}-{trained_with}"
        path = cache() / f"{stem}{ending}"
        if path.exists():
            return str(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = cache() / f"{stem}.unfinished"
        with _one_thread, fasteners.InterProcessLock(cache() / f"{stem}.lock"):
            if not path.exists():
                shutil.rmtree(unfinished, ignore_errors=True)
                train(unfinished)
                os.replace(unfinished, path)
        return str(path)

    return kept


_one_thread = threading.Lock()  # A lock between processes lets all threads of one in.


def cache() -> Path:
    """Where this user's programs keep what they can make again."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        root = Path(given)
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path.home() / ".cache"
    return root / "runinference"
