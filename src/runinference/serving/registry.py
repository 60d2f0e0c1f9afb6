"""Per-process registries of models that survive pickling."""

from __future__ import annotations

import threading
import uuid
import weakref
from collections import Counter
from collections.abc import Hashable
from typing import Any

from apache_beam.utils.shared import Shared

from runinference.batching.adaptive_size import AdaptiveSize
from runinference.caching.model_cache import CacheLimits, ModelCache
from runinference.serving.dynamic_batching import DynamicBatcher
from runinference.serving.model_watcher import ModelWatcher, WatchConfig
from runinference.serving.routing import ModelVersion

#: The number of copies of a model whose calls were abandoned and still run. At this limit, the model is kept.
_MAX_ABANDONED = 2


class ModelRegistry:
    """The model cache of a process, with the batch size, dynamic batcher and watcher of each model.

    Steps that share a cache have separate batch sizes and dynamic batchers, because their options may differ.
    """

    def __init__(self, limits: CacheLimits) -> None:
        self.cache = ModelCache(limits)
        self._sizes: dict[tuple[str, str], AdaptiveSize] = {}
        self._dynamic_batchers: dict[tuple[str, str], DynamicBatcher] = {}
        self._watchers: dict[WatchConfig, ModelWatcher] = {}
        self._in_bundles: Counter[Hashable] = Counter()
        self._names: dict[tuple[str, Any], set[str]] = {}
        self._abandoned: list[tuple[threading.Thread, int]] = []
        self._sessions: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()

    def watcher_for(self, watch: WatchConfig) -> ModelWatcher:
        """Return the watcher that all threads share."""
        with self._lock:
            return self._watchers.setdefault(watch, ModelWatcher(watch))

    def dynamic_batcher_for(self, step: str, version: ModelVersion) -> DynamicBatcher:
        """Return the dynamic batcher that all threads of a step share."""
        key = step, version.name
        batcher = self._dynamic_batchers.get(key)
        if batcher is None:
            with self._lock:
                batcher = self._dynamic_batchers.setdefault(key, DynamicBatcher(version.policy))
        return batcher

    def size_for(self, step: str, version: ModelVersion) -> AdaptiveSize:
        """Return the batch size that all threads of a step share. It is kept when the model is evicted."""
        key = step, version.name
        size = self._sizes.get(key)
        if size is None:
            with self._lock:
                size = self._sizes.setdefault(key, AdaptiveSize(version.policy))
        return size

    def replace_current(self, step: str, version: ModelVersion) -> set[str]:
        """Note the current version of its keys, and return the names of versions that no session uses any more.

        A runner may drop a session without ending it, so the session that used a version can't always expire it.
        """
        keys = [(step, key) for key in version.keys]
        with self._lock:
            in_use = set().union(*(models.current_names() for models in self._sessions))
            known = set().union(*(self._names.get(key, ()) for key in keys))
            unused = {name for name in known - in_use if name != version.name}
            for key in keys:
                self._names.setdefault(key, set()).add(version.name)
            return unused

    def forget(self, step: str, name: str) -> None:
        """Drop the batch size and the dynamic batcher of a model that was replaced."""
        with self._lock:
            self._sizes.pop((step, name), None)
            self._dynamic_batchers.pop((step, name), None)
            for key in [key for key, names in self._names.items() if name in names]:
                if key[0] == step:
                    self._names[key].discard(name)

    def start_use_in_bundle(self, name: Hashable) -> None:
        """Keep a model that is replaced within a bundle from being closed before the bundle ends."""
        with self._lock:
            self._in_bundles[name] += 1

    def is_in_bundle(self, name: Hashable) -> bool:
        """Return whether a bundle of any thread uses the model."""
        with self._lock:
            return self._in_bundles[name] > 0

    def end_use_in_bundle(self, name: Hashable) -> bool:
        """Return whether no bundle of any thread uses the model any more."""
        with self._lock:
            self._in_bundles[name] -= 1
            unused = self._in_bundles[name] <= 0
            if unused:
                del self._in_bundles[name]
            return unused

    def may_abandon(self, thread: threading.Thread, model: Any) -> bool:
        """Return whether a model whose call hangs in a thread may be replaced by another copy.

        The thread keeps its copy in memory until the call returns, so the number of such copies is limited.
        """
        copy = id(thread if model is None else model)
        with self._lock:
            self._abandoned = [(t, c) for t, c in self._abandoned if t.is_alive()]
            copies = {c for _, c in self._abandoned}
            may_abandon = len(copies | {copy}) <= _MAX_ABANDONED
            if may_abandon:
                self._abandoned.append((thread, copy))
            return may_abandon

    def add_session(self, models: Any) -> None:
        """Count a session, which uses these models. ``models`` are its `CurrentModels`."""
        with self._lock:
            self._sessions.add(models)

    def remove_session(self, models: Any) -> bool:
        """Stop counting a session, and return whether there is no other."""
        with self._lock:
            self._sessions.discard(models)
            return not self._sessions


class ProcessShared:
    """A handle to the model registry of a process. Each copy of a pickled handle opens the same registry.

    Args:
        limits: The limits of the model cache.
        identifier: Steps with the same identifier and limits share a registry, however long each waits. If None,
            the step has its own.
    """

    def __init__(self, limits: CacheLimits, identifier: str | None = None) -> None:
        self.name = uuid.uuid4().hex
        self._limits = limits
        self._identifier = identifier
        self._shared = Shared()

    def open(self) -> ModelRegistry:
        """Return the registry, which lives as long as something refers to it."""
        shared = self._shared
        if self._identifier is not None:
            limits = self._limits.max_models, self._limits.max_bytes
            shared = _BY_IDENTIFIER.setdefault((self._identifier, limits), shared)
        registry: ModelRegistry = shared.acquire(lambda: ModelRegistry(self._limits.on_worker()))
        return registry


_BY_IDENTIFIER: dict[tuple[str, tuple[int | None, int | None]], Shared] = {}
