"""What Beam's modules import and do not use here: a name in the place of a package that is not installed."""

import contextlib
import sys
import types


@contextlib.contextmanager
def standing_in(package, name):
    """Offers a package with one class of this name, for an import, unless the package is there already."""
    if package in sys.modules:
        yield
        return
    module = types.ModuleType(package)
    setattr(module, name, type(name, (), {}))
    sys.modules[package] = module
    try:
        yield
    finally:
        del sys.modules[package]
