"""Imports a framework when it is needed; if it is missing, says which extra brings it."""

from __future__ import annotations

import importlib
from types import ModuleType


def need(module: str, *, extra: str) -> ModuleType:
    """The module, imported now.

    Raises:
        ImportError: It is not installed; the message names the extra to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise ImportError(
            f"{missing} is needed here and cannot be imported ({error}). Install it with:"
            f' pip install "runinference[{extra}]". On a distributed runner the workers need it too.',
            name=error.name,
        ) from error
