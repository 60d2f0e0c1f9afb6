"""The two packages, as values: what a program gets from the one it gets from the other under the same name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from types import ModuleType


@dataclass(frozen=True)
class Package:
    """A package with Beam's modules of inference."""

    prefix: str

    def module(self, name: str) -> ModuleType:
        """One of its modules: ``base``, ``sklearn_inference`` and so on."""
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
        """A handler of this package with the methods of a class."""
        return type(kind.__name__, (kind, self.base.ModelHandler), {})(*arguments, **options)

    def __str__(self) -> str:
        return self.prefix


BEAM = Package("apache_beam.ml.inference")
OURS = Package("runinference")
BOTH = (BEAM, OURS)
