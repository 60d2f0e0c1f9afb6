"""Route each element to the version of the model that serves it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from runinference.batching.policy import BatchPolicy, resolve_policy
from runinference.errors import missing_key_error
from runinference.handlers.keyed import per_key_handler
from runinference.handlers.model_per_key import KeyedModel, PerKeyModelHandler
from runinference.handlers.model_update import paths_by_key, read_metadata, with_model_path


@dataclass(frozen=True, eq=False)
class ModelVersion:
    """A model at one path, with the handler that loads and calls it.

    Attributes:
        name: The name in the model cache.
        handler: Loads and calls the model.
        policy: Limits the batches.
        keys: The keys whose elements the model serves; ``(None,)`` for all elements.
        prefix: Precedes the names of its metrics.
        fallback: The model of the handler, which serves if a refresh names one that cannot be loaded.
    """

    name: str
    handler: Any
    policy: BatchPolicy
    keys: tuple[Any, ...] = (None,)
    prefix: str = ""
    fallback: ModelVersion | None = None


class Router(Protocol):
    """An immutable mapping of elements to model versions."""

    def route(self, element: Any) -> ModelVersion:
        """Return the model version that serves an element."""

    def with_update(self, update: Any) -> Router:
        """Return a router to the models that a model refresh names.

        Raises:
            OptionError: The refresh is invalid for this handler.
        """

    def identify(self, update: Any) -> Hashable:
        """Return a value that is equal for equal model refreshes only; raise `OptionError` if one is invalid."""


def make_router(handler: Any) -> Router:
    """Create the router of a handler, before any model refresh."""
    per_key = per_key_handler(handler)
    return SingleModelRouter(handler) if per_key is None else PerKeyRouter(per_key)


class SingleModelRouter:
    """The router of a handler with one model."""

    def __init__(
        self,
        handler: Any,
        name: str = "",
        prefix: str = "",
        fallback: ModelVersion | None = None,
    ) -> None:
        self._handler = handler
        policy = resolve_policy(handler)
        self._version = ModelVersion(name, handler, policy, prefix=prefix, fallback=fallback)

    def route(self, element: Any) -> ModelVersion:
        return self._version

    def with_update(self, update: Any) -> SingleModelRouter:
        path, name = read_metadata(update)
        handler = with_model_path(self._handler, path)
        return SingleModelRouter(handler, path, name, self._version)

    def identify(self, update: Any) -> Hashable:
        return read_metadata(update)


class PerKeyRouter:
    """The router of a handler with per-key models."""

    def __init__(
        self,
        handler: PerKeyModelHandler,
        models: Mapping[Any, KeyedModel] | None = None,
        fallbacks: Mapping[Any, ModelVersion] | None = None,
    ) -> None:
        self._handler = handler
        by_model: dict[KeyedModel, ModelVersion] = {}
        self._versions: dict[Any, ModelVersion] = {}
        prefixes: set[str] = set()
        for key, model in (models or handler.models_by_key()).items():
            if model not in by_model:
                by_model[model] = _make_version(model, prefixes, (fallbacks or {}).get(key))
            self._versions[key] = by_model[model]

    def route(self, element: Any) -> ModelVersion:
        if not (isinstance(element, tuple) and len(element) == 2):
            raise missing_key_error(element)
        try:
            return self._versions[element[0]]
        except (KeyError, TypeError):
            self._handler.model_for(element[0])  # raises a more helpful error
            raise

    def with_update(self, update: Any) -> PerKeyRouter:
        """Return a router to the new models. Keys that shared a model share a new one with one path."""
        return PerKeyRouter(self._handler, self._handler.update_models(update), self._versions)

    def identify(self, update: Any) -> Hashable:
        return frozenset(paths_by_key(update, self._versions).items())


def _make_version(
    model: KeyedModel, prefixes: set[str], fallback: ModelVersion | None
) -> ModelVersion:
    """Return the version of a per-key model, whose metrics have a prefix that is not in ``prefixes`` yet."""
    prefix = "".join(f"{label}-" for label in model.labels)
    if prefix in prefixes:
        prefix += f"{model.mapping}-"
    prefixes.add(prefix)
    name = f"{model.mapping}={model.path}" if model.path else str(model.mapping)
    policy = resolve_policy(model.handler)
    return ModelVersion(name, model.handler, policy, model.keys, prefix, fallback)
