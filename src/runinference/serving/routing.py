"""Which model an element goes to, and which version of it a refresh has named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from apache_beam.internal import pickler

from runinference.batching.policy import BatchPolicy, resolve_policy
from runinference.errors import missing_key_error
from runinference.handlers.keyed import per_key_mappings
from runinference.handlers.model_update import check_metadata, paths_by_key


@dataclass(frozen=True, eq=False)
class ModelVersion:
    """A model as it was named at one time.

    Attributes:
        name: Tells it from others on the same cache.
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


class Router(Protocol):
    """Finds the version for an element. Immutable: a refresh makes new routes."""

    def route(self, element: Any) -> ModelVersion:
        """Where the element goes."""

    def with_update(self, update: Any) -> Router:
        """The routes after a refresh."""


def make_router(handler: Any) -> Router:
    """The routes of a handler, before any refresh."""
    return (
        PerKeyRouter.of_handler(handler)
        if per_key_mappings(handler)
        else SingleModelRouter(handler)
    )


class SingleModelRouter:
    """All elements go to one model."""

    def __init__(self, handler: Any, name: str = "", prefix: str = "") -> None:
        self._handler = handler
        self._version = ModelVersion(name, handler, resolve_policy(handler), prefix=prefix)

    def route(self, element: Any) -> ModelVersion:
        return self._version

    def with_update(self, update: Any) -> SingleModelRouter:
        check_metadata(update)
        handler = _copied(self._handler)
        handler.update_model_path(update.model_id)
        return SingleModelRouter(handler, update.model_id, getattr(update, "model_name", ""))


class PerKeyRouter:
    """Elements go to the model of their key."""

    def __init__(self, handler: Any, versions: dict[Any, ModelVersion]) -> None:
        self._handler = handler
        self._versions = versions

    @classmethod
    def of_handler(cls, handler: Any) -> PerKeyRouter:
        """The routes of a ``KeyedModelHandler`` over several ``KeyModelMapping``."""
        versions = {}
        for mapping in handler.mappings:
            inside = handler.handler_for(mapping.keys[0])
            first = mapping.keys[0]  # 1 and "1" are two keys
            version = ModelVersion(
                repr(first), inside, resolve_policy(inside), tuple(mapping.keys), f"{first}-"
            )
            versions.update(dict.fromkeys(mapping.keys, version))
        return cls(handler, versions)

    def route(self, element: Any) -> ModelVersion:
        if not (isinstance(element, tuple) and len(element) == 2):
            raise missing_key_error(element)
        try:
            return self._versions[element[0]]
        except (KeyError, TypeError):
            self._handler.handler_for(element[0])  # raises, and says why
            raise

    def with_update(self, update: Any) -> PerKeyRouter:
        """Keys that shared a model share the new one if they are given one path."""
        paths = paths_by_key(update, set(self._versions))
        cohorts: dict[tuple[int, str], list[Any]] = {}
        for key, mapping in paths.items():
            cohort = (id(self._handler.handler_for(key)), mapping.update_path)
            cohorts.setdefault(cohort, []).append(key)
        versions = {}
        for (_, path), keys in cohorts.items():
            inside = _copied(self._handler.handler_for(keys[0]))
            inside.update_model_path(path)
            prefix = f"{keys[0]}-{paths[keys[0]].model_id}-"
            name = f"{keys[0]!r}={path}"
            version = ModelVersion(name, inside, resolve_policy(inside), tuple(keys), prefix)
            versions.update(dict.fromkeys(keys, version))
        return PerKeyRouter(self._handler, versions)


def _copied(handler: Any) -> Any:
    """A deep copy, as a worker would get it: an update must not be seen by who uses the original."""
    return pickler.loads(pickler.dumps(handler))
