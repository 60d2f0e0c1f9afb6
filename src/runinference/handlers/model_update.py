"""What a model refresh says: values that name a new model, for all elements or for those of some keys."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from runinference.errors import OptionError

KeyT = TypeVar("KeyT")


class ModelMetadata(NamedTuple):
    """Names the model to use from now on.

    Attributes:
        model_id: Where it is: a path or address from which the handler loads it.
        model_name: A short name for it; metrics of its calls carry it.
    """

    model_id: str
    model_name: str


@dataclass(frozen=True)
class KeyModelPathMapping(Generic[KeyT]):
    """Names the model to use from now on for some keys.

    Attributes:
        keys: Whose model it is.
        update_path: Where it is.
        model_id: A short name for it; metrics of its calls carry it.
    """

    keys: list[KeyT]
    update_path: str
    model_id: str = ""


def check_metadata(update: Any) -> None:
    """Raises unless an update is a ``ModelMetadata`` with a path, ours or Beam's.

    Raises:
        OptionError: It is something else.
    """
    if not isinstance(getattr(update, "model_id", None), str) or hasattr(update, "keys"):
        raise OptionError(
            f"A model refresh is a ModelMetadata(model_id, model_name), or a list of KeyModelPathMapping where "
            f"there is a model per key, and not {update!r}."
        )


def paths_by_key(update: Any, known: set[Any]) -> dict[Any, Any]:
    """The ``KeyModelPathMapping`` of each key.

    Raises:
        OptionError: It is something else, a path is empty, or its keys are not the known ones, once each.
    """
    mappings = update if isinstance(update, (list, tuple)) else [update]
    found: dict[Any, Any] = {}
    for mapping in mappings:
        if not hasattr(mapping, "keys") or not hasattr(mapping, "update_path"):
            raise OptionError(
                "A refresh of models per key is a list of KeyModelPathMapping(keys, update_path, model_id), and "
                f"not {update!r}."
            )
        if not mapping.update_path:
            raise OptionError(f"The model refresh has an empty path for the keys {mapping.keys}.")
        for key in mapping.keys:
            if not isinstance(key, Hashable):
                raise OptionError(
                    f"The model refresh names the key {key!r}, and no model can be mapped to a "
                    f"{type(key).__name__}: name the keys of the KeyModelMapping."
                )
            if key in found:
                raise OptionError(f"The model refresh names the key {key!r} twice.")
            found[key] = mapping
    if found.keys() != known:
        missing = sorted(map(repr, known - found.keys()))
        unknown = sorted(map(repr, found.keys() - known))
        raise OptionError(
            f"A model refresh names each key once. Missing: {', '.join(missing) or 'none'}. "
            f"Not mapped to a model: {', '.join(unknown) or 'none'}."
        )
    return found
