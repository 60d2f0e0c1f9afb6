"""Loads the hooks of the site, which are files and not a package."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from types import ModuleType

from docs.blocks import ROOT


@cache
def load_override(name: str) -> ModuleType:
    """Import a module of docs/overrides."""
    directory = str(ROOT / "docs" / "overrides")
    if directory not in sys.path:
        sys.path.append(directory)
    return import_module(name)
