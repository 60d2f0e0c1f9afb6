"""Model updates: values that name a new model for all elements, or for those with certain keys."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from runinference.errors import OptionError

KeyT = TypeVar("KeyT")


class ModelMetadata(NamedTuple):
    """A model update: the model to use from now on.

    Attributes:
        model_id: The path or address that the handler loads the model from.
        model_name: A short name, which prefixes the metrics of the model.
    """

    model_id: str
    model_name: str


@dataclass(frozen=True)
class KeyModelPathMapping(Generic[KeyT]):
    """A model update for some keys.

    Attributes:
        keys: The keys.
        update_path: The path or address that the handler loads the model from.
        model_id: A short name, which prefixes the metrics of the model.
    """

    keys: list[KeyT]
    update_path: str
    model_id: str = ""


def check_metadata(update: Any) -> None:
    """Raise `OptionError` unless an update is a ``ModelMetadata`` of this library or of Beam."""
    if not isinstance(getattr(update, "model_id", None), str) or hasattr(update, "keys"):
        raise OptionError(
            "A model refresh must be a ModelMetadata(model_id, model_name), or a list of KeyModelPathMapping for "
            f"per-key models, but is {update!r}."
        )


def paths_by_key(update: Any, known: set[Any]) -> dict[Any, Any]:
    """Return the ``KeyModelPathMapping`` of each key in an update, which is one mapping or a list of them.

    Raises:
        OptionError: The update is something else, a path is empty, or it doesn't name each known key once.
    """
    mappings = update if isinstance(update, (list, tuple)) else [update]
    found: dict[Any, Any] = {}
    for mapping in mappings:
        if not hasattr(mapping, "keys") or not hasattr(mapping, "update_path"):
            raise OptionError(
                "A refresh of per-key models must be a list of KeyModelPathMapping(keys, update_path, model_id), "
                f"but is {update!r}."
            )
        if not mapping.update_path:
            raise OptionError(f"The model refresh has an empty path for the keys {mapping.keys}.")
        for key in mapping.keys:
            _check_key(key, found)
            found[key] = mapping
    if found.keys() != known:
        missing = sorted(map(repr, known - found.keys()))
        unknown = sorted(map(repr, found.keys() - known))
        raise OptionError(
            f"A model refresh must name each key once. Missing: {', '.join(missing) or 'none'}. "
            f"Unknown keys: {', '.join(unknown) or 'none'}."
        )
    return found


def _check_key(key: Any, found: dict[Any, Any]) -> None:
    if not isinstance(key, Hashable):
        raise OptionError(
            f"The model refresh names the key {key!r}, but a {type(key).__name__} is not hashable. "
            "To fix this, name keys of a KeyModelMapping."
        )
    if key in found:
        raise OptionError(f"The model refresh names the key {key!r} twice.")
