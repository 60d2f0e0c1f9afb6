"""Which model an element goes to, and which edition of it a refresh has named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from apache_beam.internal import pickler

from runinference.batching.policy import BatchPolicy, policy_of
from runinference.errors import no_key
from runinference.handlers.model_update import check_metadata, paths_by_key


@dataclass(frozen=True, eq=False)
class Edition:
    """A model as it was named at one time.

    Attributes:
        name: Tells it from others on the same shelf.
        handler: Loads it and calls it, and knows its path.
        policy: Of its batches.
        keys: Whom it serves; ``(None,)`` for everyone.
        prefix: Of the names of its metrics.
    """

    name: str
    handler: Any
    policy: BatchPolicy
    keys: tuple[Any, ...] = (None,)
    prefix: str = ""


class Routes(Protocol):
    """Finds the edition for an element. Immutable: a refresh makes new routes."""

    def of(self, element: Any) -> Edition:
        """Where the element goes."""

    def updated(self, update: Any) -> Routes:
        """The routes after a refresh."""


def routes_of(handler: Any) -> Routes:
    """The routes of a handler, before any refresh."""
    return (
        ModelPerKey.of_handler(handler) if getattr(handler, "mappings", None) else OneModel(handler)
    )


class OneModel:
    """All elements go to one model."""

    def __init__(self, handler: Any, name: str = "", prefix: str = "") -> None:
        self._handler = handler
        self._edition = Edition(name, handler, policy_of(handler), prefix=prefix)

    def of(self, element: Any) -> Edition:
        return self._edition

    def updated(self, update: Any) -> OneModel:
        check_metadata(update)
        handler = _copied(self._handler)
        handler.update_model_path(update.model_id)
        return OneModel(handler, update.model_id, getattr(update, "model_name", ""))


class ModelPerKey:
    """Elements go to the model of their key."""

    def __init__(self, handler: Any, editions: dict[Any, Edition]) -> None:
        self._handler = handler
        self._editions = editions

    @classmethod
    def of_handler(cls, handler: Any) -> ModelPerKey:
        """The routes of a ``KeyedModelHandler`` over several ``KeyModelMapping``."""
        editions = {}
        for mapping in handler.mappings:
            inside = handler.handler_for(mapping.keys[0])
            first = mapping.keys[0]  # 1 and "1" are two keys
            edition = Edition(
                repr(first), inside, policy_of(inside), tuple(mapping.keys), f"{first}-"
            )
            editions.update(dict.fromkeys(mapping.keys, edition))
        return cls(handler, editions)

    def of(self, element: Any) -> Edition:
        if not (isinstance(element, tuple) and len(element) == 2):
            raise no_key(element)
        try:
            return self._editions[element[0]]
        except (KeyError, TypeError):
            self._handler.handler_for(element[0])  # raises, and says why
            raise

    def updated(self, update: Any) -> ModelPerKey:
        """Keys that shared a model share the new one if they are given one path."""
        paths = paths_by_key(update, set(self._editions))
        cohorts: dict[tuple[int, str], list[Any]] = {}
        for key, mapping in paths.items():
            cohort = (id(self._handler.handler_for(key)), mapping.update_path)
            cohorts.setdefault(cohort, []).append(key)
        editions = {}
        for (_, path), keys in cohorts.items():
            inside = _copied(self._handler.handler_for(keys[0]))
            inside.update_model_path(path)
            prefix = f"{keys[0]}-{paths[keys[0]].model_id}-"
            name = f"{keys[0]!r}={path}"
            edition = Edition(name, inside, policy_of(inside), tuple(keys), prefix)
            editions.update(dict.fromkeys(keys, edition))
        return ModelPerKey(self._handler, editions)


def _copied(handler: Any) -> Any:
    """A deep copy, as a worker would get it: an update must not be seen by who uses the original."""
    return pickler.loads(pickler.dumps(handler))
