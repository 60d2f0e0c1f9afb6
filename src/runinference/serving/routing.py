"""Route each element to the version of the model that serves it."""

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
    """A model at one path, with the handler that loads and calls it.

    Attributes:
        name: The name in the model cache.
        handler: Loads and calls the model.
        policy: Limits the batches.
        keys: The keys whose elements the model serves; ``(None,)`` for all elements.
        prefix: Precedes the names of its metrics.
    """

    name: str
    handler: Any
    policy: BatchPolicy
    keys: tuple[Any, ...] = (None,)
    prefix: str = ""


class Router(Protocol):
    """An immutable mapping of elements to model versions."""

    def route(self, element: Any) -> ModelVersion:
        """Return the model version that serves an element."""

    def with_update(self, update: Any) -> Router:
        """Return a router to the models that a model refresh names."""


def make_router(handler: Any) -> Router:
    """Create the router of a handler, before any model refresh."""
    if per_key_mappings(handler):
        return PerKeyRouter.from_handler(handler)
    return SingleModelRouter(handler)


class SingleModelRouter:
    """The router of a handler with one model."""

    def __init__(self, handler: Any, name: str = "", prefix: str = "") -> None:
        self._handler = handler
        self._version = ModelVersion(name, handler, resolve_policy(handler), prefix=prefix)

    def route(self, element: Any) -> ModelVersion:
        return self._version

    def with_update(self, update: Any) -> SingleModelRouter:
        check_metadata(update)
        handler = _with_path(self._handler, update.model_id)
        return SingleModelRouter(handler, update.model_id, getattr(update, "model_name", ""))


class PerKeyRouter:
    """The router of a handler with per-key models."""

    def __init__(self, handler: Any, versions: dict[Any, ModelVersion]) -> None:
        self._handler = handler
        self._versions = versions

    @classmethod
    def from_handler(cls, handler: Any) -> PerKeyRouter:
        """Create the router of a ``KeyedModelHandler`` with a list of ``KeyModelMapping``."""
        versions = {}
        for mapping in handler.mappings:
            first = mapping.keys[0]
            inner = handler.handler_for(first)
            # The name is a repr because the keys 1 and "1" differ.
            name, prefix = repr(first), f"{first}-"
            version = ModelVersion(name, inner, resolve_policy(inner), tuple(mapping.keys), prefix)
            versions.update(dict.fromkeys(mapping.keys, version))
        return cls(handler, versions)

    def route(self, element: Any) -> ModelVersion:
        if not (isinstance(element, tuple) and len(element) == 2):
            raise missing_key_error(element)
        try:
            return self._versions[element[0]]
        except (KeyError, TypeError):
            self._handler.handler_for(element[0])  # raises a more helpful error
            raise

    def with_update(self, update: Any) -> PerKeyRouter:
        """Return a router to the new models. Keys that shared a model share a new one with one path."""
        paths = paths_by_key(update, set(self._versions))
        cohorts: dict[tuple[int, str], list[Any]] = {}
        for key, mapping in paths.items():
            cohort = (id(self._handler.handler_for(key)), mapping.update_path)
            cohorts.setdefault(cohort, []).append(key)
        versions = {}
        for (_, path), keys in cohorts.items():
            first = keys[0]
            inner = _with_path(self._handler.handler_for(first), path)
            name, prefix = f"{first!r}={path}", f"{first}-{paths[first].model_id}-"
            version = ModelVersion(name, inner, resolve_policy(inner), tuple(keys), prefix)
            versions.update(dict.fromkeys(keys, version))
        return PerKeyRouter(self._handler, versions)


def _with_path(handler: Any, path: str) -> Any:
    """Return a copy of a handler with another model path. The original stays in use until the model is loaded."""
    updated = pickler.loads(pickler.dumps(handler))
    updated.update_model_path(path)
    return updated
