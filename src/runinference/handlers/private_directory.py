"""Directories for files that only processes of the same user may read."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def private_directory(name: str) -> Path:
    """Return a directory of this user among the temporary files of the machine.

    Raises:
        PermissionError: Others can access the directory.
    """
    path = Path(tempfile.gettempdir(), f"{name}-{os.getuid()}")
    path.mkdir(0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(
            f"{path} must be a directory that only this user can access, because it contains the keys of shared "
            "processes. To fix this, remove it, or set TMPDIR to another directory."
        )
    return path
