"""The arrays in a structure by the names that lead to them; and what is known of those of a model's output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

#: The names and numbers that lead to an array: ``("hidden_states", 2)``.
Path = tuple[Hashable, ...]


def get_unpad_cache(model: Any, method: str | None) -> dict[Path, bool]:
    """What is known of the output of a model's method, as long as the model lives; see ``Padding.rows``."""
    try:
        return _KNOWN.setdefault(model, {}).setdefault(method, {})
    except TypeError:  # cannot be referred to weakly
        return {}


_KNOWN: WeakKeyDictionary[Any, dict[str | None, dict[Path, bool]]] = WeakKeyDictionary()


def leaves_with_path(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The arrays in a structure, each with the names and numbers that lead to it."""
    fields = children(value)
    if fields is None:
        yield path, value
    else:
        for name, part in fields.items():
            yield from leaves_with_path(part, (*path, name))


def map_with_path(value: Any, function: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """The same structure with each array replaced."""
    fields = children(value)
    if fields is None:
        return function(path, value)
    made = {name: map_with_path(part, function, (*path, name)) for name, part in fields.items()}
    return rebuild(value, made)


def rebuild(value: Any, made: dict[Any, Any]) -> Any:
    """A structure like this one, with other parts under its names and numbers; a mapping as a dictionary."""
    if isinstance(value, Mapping):
        return made
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **made)
    return type(value)(**made) if hasattr(value, "_fields") else type(value)(list(made.values()))


def children(value: Any) -> Mapping[Any, Any] | None:
    """The parts of a structure by name or number; None for what is no structure."""
    if isinstance(value, Mapping):
        return value
    if hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    return None
