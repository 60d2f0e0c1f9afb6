"""Fingerprints that tell whether two handlers load the same model."""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
from types import CodeType, FunctionType, ModuleType
from typing import Any

from apache_beam.internal import pickler

from runinference.handlers.delegating import DelegatingHandler
from runinference.handlers.keyed import (
    per_key_mappings,
)
from runinference.handlers.model_handler import ModelHandler

#: Attributes of handlers that say how a model is called, and not which one is loaded.
_OF_CALLS = frozenset(
    {
        "_batching_kwargs",
        "_by_key",
        "_inference_fn",
        "_max_batch_bytes",
        "_max_padded_size",
        "_model_inference_fn",
        "_n_path_updates",
        "_postprocess_fns",
        "_preprocess_fns",
        "_skips_batching",
        "_texts",
        "_whole_results",
        "get_postprocess_fns",
        "get_preprocess_fns",
    }
)


#: Attributes of classes that do not change what their instances do, or cannot be written.
_OF_CLASSES = frozenset(
    {
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__module__",
        "__static_attributes__",
        "__weakref__",
        "_abc_impl",
    }
)


def fingerprint(handler: Any, *more: Any) -> str:
    """Return a text that is equal for handlers of one class that load the same model, also in other processes.

    It depends on all attributes that may affect the model, such as paths. Options for batching and functions that
    call the model have no effect.

    >>> from runinference.sklearn_inference import SklearnModelHandlerNumpy
    >>> small = SklearnModelHandlerNumpy("a.pickle", max_batch_size=2)
    >>> fingerprint(small) == fingerprint(SklearnModelHandlerNumpy("a.pickle"))
    True
    >>> fingerprint(small) == fingerprint(SklearnModelHandlerNumpy("b.pickle"))
    False

    Args:
        handler: A handler. Keys that are added to its results have no effect.
        *more: Other values that must be equal.
    """
    while isinstance(handler, DelegatingHandler) and not per_key_mappings(handler):
        [handler] = handler.inner_handlers()
    try:
        content = _dumps((handler, more))
    except Exception:  # contains something that only Beam's pickler can write
        content = pickler.dumps((handler, more))
    return hashlib.sha256(content).hexdigest()[:16]


def _dumps(value: Any) -> bytes:
    with io.BytesIO() as file:
        _Pickler(file).dump(value)
        return file.getvalue()


class _Pickler(pickle.Pickler):
    """Writes the same bytes for equal values. They are not meant to be loaded."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        # No references between equal parts, which are the same object in one value and copies in another.
        self.fast = True
        self._classes: dict[type, int] = {}  # those whose attributes are written, with their number

    def persistent_id(self, value: Any) -> Any:
        """Return what is written instead of a value; None for the value itself."""
        if isinstance(value, ModuleType):
            return value.__name__
        if isinstance(value, type):
            return self._class_id(value)
        if isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            name = f"{value.__module__}.{value.__qualname__}"
            return name, value.__code__, value.__defaults__, value.__kwdefaults__, cells
        if isinstance(value, CodeType):
            return value.co_code, value.co_names, value.co_consts
        if isinstance(value, (set, frozenset)):
            return sorted(map(_dumps, value))
        if isinstance(value, (staticmethod, classmethod)):
            return type(value).__name__, value.__func__
        if isinstance(value, property):
            return value.fget, value.fset, value.fdel
        if isinstance(value, ModelHandler):
            return type(value), [
                (name, attribute)
                for name, attribute in sorted(vars(value).items())
                if name not in _OF_CALLS and not name.startswith("_runinference")
            ]
        return None

    def _class_id(self, kind: type) -> Any:
        """Return the name of a class, and its attributes if another class can have the same name."""
        name = f"{kind.__module__}.{kind.__qualname__}"
        if _is_importable(kind):
            return name
        if kind in self._classes:
            return name, self._classes[kind]
        self._classes[kind] = len(self._classes)
        attributes = [(k, v) for k, v in sorted(vars(kind).items()) if k not in _OF_CLASSES]
        return name, kind.__bases__, attributes


def _is_importable(kind: type) -> bool:
    """Return whether the name of a class leads to it, which is not so for classes defined in a function."""
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is kind
