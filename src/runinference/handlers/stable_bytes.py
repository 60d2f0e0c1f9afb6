"""Write equal bytes for equal values, in any process, for fingerprints and the hashes of cached results."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

#: Attributes of classes that don't affect the behavior of instances, or that can't be pickled.
_OF_CLASSES = frozenset(
    {
        "__annotations_cache__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__module__",
        "__slotnames__",  # set when an instance is pickled
        "__static_attributes__",
        "__weakref__",
        "_abc_impl",
    }
)

#: Attributes of code objects that affect behavior, including the names of parameters, but not line numbers.
_OF_CODE = (
    "co_code",
    "co_names",
    "co_consts",
    "co_varnames",
    "co_cellvars",
    "co_freevars",
    "co_argcount",
    "co_posonlyargcount",
    "co_kwonlyargcount",
    "co_flags",
    "co_exceptiontable",  # since Python 3.11
)


def to_stable_bytes(value: Any, replace: Callable[[Any], Any] = lambda value: None) -> bytes:
    """Return the same bytes for equal values of one type, and other bytes for others.

    Types matter: ``1``, ``1.0`` and ``True`` differ, as do ``0.0`` and ``-0.0``, arrays with other dtypes or
    shapes, and dictionaries in another order. A NaN equals itself. The memory layout of an array has no effect.

    >>> to_stable_bytes({1, 2}) == to_stable_bytes({2, 1}), to_stable_bytes(1) == to_stable_bytes(True)
    (True, False)

    Args:
        value: The value.
        replace: Returns what is written instead of a part of the value; None for the part itself.

    Raises:
        Exception: The value can't be pickled, or contains itself.
    """
    with io.BytesIO() as file:
        _Pickler(file, replace).dump(value)
        return file.getvalue()


class _Pickler(pickle.Pickler):
    """Writes the same bytes for equal values. The bytes aren't loaded again."""

    def __init__(self, file: io.BytesIO, replace: Callable[[Any], Any]) -> None:
        super().__init__(file, protocol=5)
        # Write no references, because equal parts can be the same object in one value and copies in another.
        self.fast = True
        self._replace = replace
        self._classes: dict[type, int] = {}  # those whose attributes are written, with their number

    def persistent_id(self, value: Any) -> Any:
        """Return what is written instead of a value; None for the value itself."""
        if type(value) in (str, int, float):
            return None
        if (replaced := self._replace(value)) is not None:
            return replaced
        if isinstance(value, type):
            return self._class_id(value)
        if isinstance(value, ModuleType):
            return value.__name__
        if isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            name = f"{value.__module__}.{value.__qualname__}"
            return name, value.__code__, value.__defaults__, value.__kwdefaults__, cells
        if isinstance(value, CodeType):
            return [getattr(value, name, None) for name in _OF_CODE]
        if isinstance(value, (set, frozenset)):
            kind = type(value).__name__
            return kind, sorted(to_stable_bytes(each, self._replace) for each in value)
        if isinstance(value, (staticmethod, classmethod)):
            return type(value).__name__, value.__func__
        if isinstance(value, property):
            return value.fget, value.fset, value.fdel
        return _array_id(value)

    def _class_id(self, kind: type) -> Any:
        """Return the name of a class, and its attributes if another class can have the same name."""
        name = get_class_name(kind)
        if _is_importable(kind):
            return name
        if kind in self._classes:
            return name, self._classes[kind]
        self._classes[kind] = len(self._classes)
        return name, kind.__bases__, get_class_code(kind)


def get_class_name(kind: type) -> str:
    """Return the full name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def get_class_code(kind: type) -> Any:
    """Return the attributes of a class, such as its methods, for `to_stable_bytes`."""
    return [(k, v) for k, v in sorted(vars(kind).items()) if k not in _OF_CLASSES]


def _array_id(value: Any) -> Any:
    """Return the type, shape and data of an array or tensor; None for other values."""
    if type(value) is np.ndarray:
        if value.dtype.hasobject:
            return "array", value.dtype, value.shape, value.ravel().tolist()
        return "array", value.dtype, value.shape, value.tobytes()
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return None
    # The pickle of a tensor contains all of the memory that it is a view of.
    flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    name = get_class_name(type(value))
    return name, str(value.dtype), tuple(value.shape), str(value.device), data


def _is_importable(kind: type) -> bool:
    """Return whether a class can be found by its name. Classes that are defined in a function can't."""
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is kind
