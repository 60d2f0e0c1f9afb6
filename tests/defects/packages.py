"""Beam's package and this one as values, so that one program can run with either."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from types import ModuleType


@dataclass(frozen=True)
class Package:
    """A package that has the modules of `apache_beam.ml.inference`.

    Attributes:
        prefix: The import path of the package.
    """

    prefix: str

    def module(self, name: str) -> ModuleType:
        """Import a module of the package, such as `base` or `sklearn_inference`."""
        return import_module(f"{self.prefix}.{name}")

    @cached_property
    def base(self) -> ModuleType:
        return self.module("base")

    @cached_property
    def sklearn(self) -> ModuleType:
        return self.module("sklearn_inference")

    @cached_property
    def torch(self) -> ModuleType:
        return self.module("pytorch_inference")

    @property
    def remote_handler(self) -> type:
        return (
            getattr(self.base, "RemoteModelHandler", None)
            or self.module("remote").RemoteModelHandler
        )

    def handler(self, kind: type, *arguments: object, **options: object) -> object:
        """Create a model handler of this package that has the methods of `kind`."""
        return type(kind.__name__, (kind, self.base.ModelHandler), {})(*arguments, **options)

    def __str__(self) -> str:
        return self.prefix


BEAM = Package("apache_beam.ml.inference")
OURS = Package("runinference")
BOTH = (BEAM, OURS)
