"""What Beam's modules import and do not use here: a name in the place of a package that is not installed."""

import contextlib
import importlib.machinery
import sys
import types


@contextlib.contextmanager
def standing_in(package, name):
    """Offers a package with one class of this name, for an import, unless the package is there already."""
    if package in sys.modules:
        yield
        return
    module = types.ModuleType(package)
    module.__spec__ = importlib.machinery.ModuleSpec(package, None)
    setattr(module, name, type(name, (), {}))
    sys.modules[package] = module
    try:
        yield
    finally:
        del sys.modules[package]
