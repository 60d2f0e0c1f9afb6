"""Import an optional framework, or name the extra that installs it."""

from __future__ import annotations

import importlib
from types import ModuleType


def need(module: str, *, extra: str) -> ModuleType:
    """Import and return a module.

    Raises:
        ImportError: The module is not installed. The message names the extra to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise ImportError(
            f"{missing} is required but cannot be imported ({error}). To fix this, run:"
            f' pip install "runinference[{extra}]". On a distributed runner, the workers need it too.',
            name=error.name,
        ) from error
