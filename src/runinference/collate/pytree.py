"""Pytrees: nested mappings, lists, tuples and dataclasses, whose leaves are arrays or other values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

#: The keys and indices that lead to a leaf: ``("hidden_states", 2)``.
Path = tuple[Hashable, ...]


def leaves_with_path(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield each leaf of a tree with its path."""
    nodes = children(tree)
    if nodes is None:
        yield path, tree
    else:
        for name, node in nodes.items():
            yield from leaves_with_path(node, (*path, name))


def map_with_path(tree: Any, function: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """Return a tree of the same structure, with ``function(path, leaf)`` instead of each leaf."""
    nodes = children(tree)
    if nodes is None:
        return function(path, tree)
    mapped = {name: map_with_path(node, function, (*path, name)) for name, node in nodes.items()}
    return rebuild(tree, mapped)


def rebuild(tree: Any, nodes: dict[Any, Any]) -> Any:
    """Return a copy of a tree with other children. A mapping becomes a dictionary."""
    if isinstance(tree, Mapping):
        return nodes
    if is_dataclass_instance(tree):
        return dataclasses.replace(tree, **nodes)
    return type(tree)(**nodes) if hasattr(tree, "_fields") else type(tree)(list(nodes.values()))


def children(tree: Any) -> Mapping[Any, Any] | None:
    """Return the children of a tree by key, field name or index, or None for a leaf."""
    if isinstance(tree, Mapping):
        return tree
    if hasattr(tree, "_fields"):
        return dict(zip(tree._fields, tree, strict=True))
    if isinstance(tree, (tuple, list)):
        return dict(enumerate(tree))
    if is_dataclass_instance(tree):
        return {f.name: getattr(tree, f.name) for f in dataclasses.fields(tree) if f.init}
    return None


def is_dataclass_instance(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
