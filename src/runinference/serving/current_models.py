"""The models that a thread uses: the current version of each key, and its refresh."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from runinference.caching.model_cache import ModelUse
from runinference.errors import ModelUnavailableError, get_message
from runinference.serving.call_thread import CallProgress
from runinference.serving.placement import Model, Placement
from runinference.serving.registry import ModelRegistry, ProcessShared
from runinference.serving.routing import ModelVersion

_LOGGER = logging.getLogger(__name__)

#: Seconds before a new model that could not be loaded is tried again.
RETRY_REFRESH_SECS = 30


class Clock(Protocol):
    """A clock, such as the module ``time``."""

    def time_ns(self) -> int:
        """Return the nanoseconds since the epoch."""


@dataclass(frozen=True)
class SessionConfig:
    """The configuration of a `ModelSession`.

    Attributes:
        models: Opens the registry of models of the worker process.
        placement: Loads a model in this process, in a subprocess or in a shared process.
        clock: An object with ``time_ns()``.
        timeout: Seconds to load and call a model; None for no limit.
        cache_prefix: Precedes the names of models in a cache that several steps share.
        keep_until_bundle_end: Whether a model that is replaced stays in the cache until the bundle ends, in case
            elements alternate between the old and the new model. The limits of the cache apply.
        dynamic_batching: Whether small batches of several threads may share a call.
        end_with_step: Whether models are closed when the last thread of the process ends its session.
        stop_if_not_loaded: Whether a model that can't be loaded stops the pipeline, because there is no other.
    """

    models: ProcessShared
    placement: Placement
    clock: Clock = time
    timeout: float | None = None
    cache_prefix: str = ""
    keep_until_bundle_end: bool = False
    dynamic_batching: bool = False
    end_with_step: bool = False
    stop_if_not_loaded: bool = False


class CurrentModels:
    """The current model version of each key, for one thread.

    After a model refresh, the new model replaces the old one once it is loaded. If it can't be loaded, the old one
    stays in use.

    Attributes:
        events: Counts of what happened, by the name of a metric.
    """

    def __init__(self, config: SessionConfig, registry: ModelRegistry) -> None:
        self._loads: list[tuple[ModelVersion, int, int]] = []
        self.events: Counter[str] = Counter()
        self._config = config
        self._registry = registry
        self._current: dict[Any, ModelVersion] = {}
        self._failed_refreshes: dict[str, tuple[int, Exception]] = {}
        self._used_in_bundle: set[str] = set()
        registry.add_session(
            self
        )  # last, because other threads read the models of this one from now on

    def acquire(
        self, version: ModelVersion, progress: CallProgress
    ) -> tuple[ModelVersion, ModelUse]:
        """Acquire a model version or, if it can't be loaded, the one that it would replace."""
        current = self._current.get(version.keys[0])
        if current is version:
            return version, self._acquire_exactly(version, progress)
        previous = current or version.fallback
        # If another thread has loaded the new model, the old one is not needed, and may be closed already.
        if previous is None or self._registry.cache.has_loaded(self._cache_name(version.name)):
            use = self._acquire_exactly(version, progress)
            self._set_current(version)
            if current is not None:
                self.events["model_refreshes"] += 1
            return version, use
        with ExitStack() as old_use:
            # The current model stays in use while the new one loads. Without one, the new one is loaded first.
            old = None
            if current is not None:
                old = self._acquire_exactly(current, progress)
                old_use.enter_context(old)
            new = self._refresh(version, progress)
            if new is not None:
                self._set_current(version)
                return version, new
            old_use.pop_all()
        if old is None:
            old = self._acquire_fallback(version, previous, progress)
            self._set_current(previous)
        return previous, old

    def current_names(self) -> set[str]:
        """Return the names of the current models."""
        return {version.name for version in [*self._current.values()]}

    def is_ready(self, version: ModelVersion) -> bool:
        """Return whether a version is the current one of its keys, and is loaded."""
        is_current = self._current.get(version.keys[0]) is version
        return is_current and self._registry.cache.has_loaded(self._cache_name(version.name))

    def has_room_for(self, version: ModelVersion) -> bool:
        """Return whether a model is loaded, or can be loaded without evicting another one."""
        return self._registry.cache.has_room_for(self._cache_name(version.name))

    def drain_events(self) -> tuple[list[tuple[ModelVersion, int, int]], Counter[str]]:
        """Return what happened since the last call: loads (version, nanoseconds, bytes) and counts of events."""
        if evictions := self._registry.cache.drain_evictions():
            self.events["model_evictions"] += evictions
        loads, events = self._loads, self.events
        if loads or events:
            self._loads, self.events = [], Counter()
        return loads, events

    def close(self) -> None:
        """End the use of all models. If no other thread uses them, also end their processes."""
        if self._registry.remove_session(self) and self._config.end_with_step:
            for name in self._registry.cache.names():
                self._registry.cache.expire(name)

    def end_bundle(self) -> None:
        """Close the models that were replaced within the bundle, unless bundles of other threads use them."""
        if not self._used_in_bundle:
            return
        current = self.current_names()
        while self._used_in_bundle:
            name = self._used_in_bundle.pop()
            if self._registry.end_use_in_bundle(self._cache_name(name)) and name not in current:
                self._expire(name)

    def invalidate(self, version: ModelVersion, model: Model | None) -> None:
        """Remove a model that can't be used any more from the cache."""
        self._registry.cache.invalidate(self._cache_name(version.name), model)

    def postpone_refresh(self, version: ModelVersion, error: Exception) -> None:
        """Keep the previous model for a while, because a new one can't be loaded."""
        now = self._config.clock.time_ns()
        self._failed_refreshes = {
            name: failed for name, failed in self._failed_refreshes.items() if failed[0] > now
        }
        retry_at = now + RETRY_REFRESH_SECS * 1_000_000_000
        self._failed_refreshes[version.name] = retry_at, error
        self.events["failed_model_refreshes"] += 1
        _LOGGER.error(
            "Can't load model %r, so the previous model stays in use: %s",
            version.name,
            error,
        )

    def _refresh(self, version: ModelVersion, progress: CallProgress) -> ModelUse | None:
        """Return the new model, or None if it can't be loaded."""
        retry_at, _ = self._failed_refreshes.get(version.name, (0, None))
        if retry_at > self._config.clock.time_ns():
            return None
        is_first = version.keys[0] not in self._current
        progress.refreshing = True
        try:
            use = self._acquire_exactly(version, progress, exceed_limits=not is_first)
        except ModelUnavailableError as error:
            progress.check()
            self.postpone_refresh(version, error)
            progress.refreshing = False
            return None
        progress.refreshing = False
        if not is_first:
            self.events["model_refreshes"] += 1
        return use

    def _acquire_fallback(
        self, version: ModelVersion, fallback: ModelVersion, progress: CallProgress
    ) -> ModelUse:
        """Return the handler's own model. If it can't be loaded either, raise the error of the refresh."""
        try:
            return self._acquire_exactly(fallback, progress)
        except ModelUnavailableError as error:
            _, failed = self._failed_refreshes[version.name]
            raise self._unavailable(
                f"{failed} The model of the handler cannot be loaded either: {error}"
            ) from (failed.__cause__ or failed)

    def _set_current(self, version: ModelVersion) -> None:
        """Make a version the current one of its keys, and expire versions that have no keys left."""
        if self._current.get(version.keys[0]) is version:
            return
        replaced = {old.name for key in version.keys if (old := self._current.get(key))}
        self._current.update(dict.fromkeys(version.keys, version))
        unused = self._registry.replace_current(self._config.models.name, version)
        replaced |= {
            name for name in unused if not self._registry.is_in_bundle(self._cache_name(name))
        }
        for name in replaced - self.current_names():
            if name not in self._used_in_bundle:
                self._expire(name)

    def _expire(self, name: str) -> None:
        self._registry.cache.expire(self._cache_name(name))
        self._registry.forget(self._config.models.name, name)

    def _acquire_exactly(
        self, version: ModelVersion, progress: CallProgress, exceed_limits: bool = False
    ) -> ModelUse:
        name, progress.version = self._cache_name(version.name), version
        if self._config.keep_until_bundle_end and version.name not in self._used_in_bundle:
            self._used_in_bundle.add(version.name)
            self._registry.start_use_in_bundle(name)
        load = partial(self._load, version, progress)
        use = self._registry.cache.acquire(name, load, exceed_limits=exceed_limits)
        try:
            progress.check()
        except BaseException:
            use.release()
            raise
        return use

    def _load(self, version: ModelVersion, progress: CallProgress) -> Model:
        start = self._config.clock.time_ns()
        try:
            model = self._config.placement(version, progress.start_loading)
        except Exception as error:
            message = f"The model cannot be loaded: {get_message(error)}"
            raise self._unavailable(message) from error
        self._loads.append((version, self._config.clock.time_ns() - start, model.n_bytes))
        return model

    def _unavailable(self, message: str) -> ModelUnavailableError:
        unavailable = ModelUnavailableError(message)
        unavailable.stops_pipeline = self._config.stop_if_not_loaded
        return unavailable

    def _cache_name(self, name: str) -> tuple[str, str]:
        return self._config.cache_prefix, name
