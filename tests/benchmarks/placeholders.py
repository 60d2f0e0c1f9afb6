"""Placeholders for packages that Beam's modules import but the benchmarks don't use."""

import contextlib
import importlib.machinery
import sys
import types


@contextlib.contextmanager
def placeholder_package(package, name):
    """Provide a package with one class, unless the package is already imported."""
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
