"""Model updates: values that name a new model for all elements, or for those with certain keys."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from apache_beam.internal import pickler

from runinference.errors import OptionError, describe_value

KeyT = TypeVar("KeyT")


class ModelMetadata(NamedTuple):
    """A model update: the model to use for all elements that follow.

    Attributes:
        model_id: The path that the handler loads the model from, or the name of a remote model.
        model_name: A short name, which is the prefix of the model's metrics.
    """

    model_id: str
    model_name: str


@dataclass(frozen=True)
class KeyModelPathMapping(Generic[KeyT]):
    """A model update for some keys of a handler with per-key models.

    Attributes:
        keys: The keys whose model is replaced.
        update_path: The path that the handler loads the model from, or the name of a remote model.
        model_id: A short name, which is the prefix of the model's metrics.
    """

    keys: list[KeyT]
    update_path: str
    model_id: str = ""


def read_metadata(update: Any) -> tuple[str, str]:
    """Return the path and the name in a ``ModelMetadata`` of this library or of Beam.

    Raises:
        OptionError: The update is something else, or its path is empty.
    """
    path = getattr(update, "model_id", None)
    if not isinstance(path, str) or hasattr(update, "keys"):
        raise OptionError(
            "A model refresh must be a ModelMetadata(model_id, model_name), or a list of KeyModelPathMapping for "
            f"per-key models, but is {describe_value(update)}."
        )
    if not path:
        raise OptionError(f"The model refresh {describe_value(update)} has an empty path.")
    return path, str(getattr(update, "model_name", "") or "")


def paths_by_key(update: Any, known: Iterable[Any]) -> dict[Any, tuple[str, str]]:
    """Return the path and the name for each key in an update, which is one ``KeyModelPathMapping`` or several.

    Raises:
        OptionError: The update is something else, a path is empty, or it doesn't name each known key once.
    """
    mappings = update if isinstance(update, (list, tuple)) else [update]
    found: dict[Any, tuple[str, str]] = {}
    for mapping in mappings:
        if not hasattr(mapping, "keys") or not isinstance(
            getattr(mapping, "update_path", None), str
        ):
            raise OptionError(
                "A refresh of per-key models must be a list of KeyModelPathMapping(keys, update_path, model_id), "
                f"but is {describe_value(update)}."
            )
        if isinstance(mapping.keys, str) or not isinstance(mapping.keys, Iterable):
            raise OptionError(
                f"The keys of a KeyModelPathMapping must be a list, but are {describe_value(mapping.keys)}."
            )
        if not mapping.update_path:
            raise OptionError(
                f"The model refresh has an empty path for the keys {describe_value(mapping.keys)}."
            )
        name = str(getattr(mapping, "model_id", "") or "")
        for key in mapping.keys:
            _check_key(key, found)
            found[key] = mapping.update_path, name
    known = dict.fromkeys(known)
    if found.keys() != known.keys():
        raise OptionError(
            "A model refresh must name each key once. "
            f"Missing: {_list_keys(key for key in known if key not in found)}. "
            f"Unknown keys: {_list_keys(key for key in found if key not in known)}."
        )
    return found


def with_model_path(handler: Any, path: str) -> Any:
    """Return a copy of a handler with another model path. The original stays in use until the model is loaded."""
    updated = pickler.loads(pickler.dumps(handler))
    updated.update_model_path(path)
    return updated


def _list_keys(keys: Iterable[Any]) -> str:
    described = sorted(map(describe_value, keys))
    more = f" and {len(described) - 20} more" if len(described) > 20 else ""
    return (", ".join(described[:20]) or "none") + more


def _check_key(key: Any, found: dict[Any, Any]) -> None:
    try:
        is_known = key in found
    except TypeError:
        raise OptionError(
            f"The model refresh names the key {describe_value(key)}, but a {type(key).__name__} is not hashable. "
            "To fix this, name keys of a KeyModelMapping."
        ) from None
    if is_known:
        raise OptionError(f"The model refresh names the key {describe_value(key)} twice.")
