"""Train each sample model once, and keep it in the user's cache directory."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import fasteners  # type: ignore[import-untyped]

from runinference.caching.cache_directory import cache_directory
from runinference.extras import need

_THREAD_LOCK = threading.Lock()  # the lock between processes doesn't exclude their threads


def get_or_train(
    name: str,
    suffix: str,
    framework: str,
    train: Callable[[Path], None],
    sources: Iterable[str | None],
) -> str:
    """Return the path of a model in the cache, and train the model if it isn't there yet.

    If several processes call this at the same time, only one trains. The file name contains the version of the
    framework and a digest of ``sources``, the source files that define the training. ``train`` writes a complete
    file or directory at a path.
    """
    digest = hashlib.sha256(b"".join(Path(str(source)).read_bytes() for source in sources))
    version = need(framework, extra=framework).__version__
    stem = f"{name}-{digest.hexdigest()[:8]}-{framework}-{version}"
    folder = cache_directory()
    path = folder / f"{stem}{suffix}"
    if path.exists():
        return str(path)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{stem}.unfinished"
    with _THREAD_LOCK, fasteners.InterProcessLock(folder / f"{stem}.lock"):
        if not path.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            train(unfinished)
            os.replace(unfinished, path)
    return str(path)
