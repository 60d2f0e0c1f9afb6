"""Per-process registries of models that survive pickling."""

from __future__ import annotations

import threading
import uuid

from apache_beam.utils.shared import Shared

from runinference.batching.adaptive_size import AdaptiveSize
from runinference.caching.model_cache import CacheLimits, ModelCache
from runinference.serving.dynamic_batching import DynamicBatcher
from runinference.serving.model_watcher import ModelWatcher, WatchConfig
from runinference.serving.routing import ModelVersion


class ModelRegistry:
    """The model cache of a process, with the batch size, dynamic batcher and watcher of each model.

    Steps that share a cache have separate batch sizes and dynamic batchers, because their options may differ.
    """

    def __init__(self, limits: CacheLimits) -> None:
        self.cache = ModelCache(limits)
        self._sizes: dict[tuple[str, str], AdaptiveSize] = {}
        self._dynamic_batchers: dict[tuple[str, str], DynamicBatcher] = {}
        self._watchers: dict[WatchConfig, ModelWatcher] = {}
        self._lock = threading.Lock()

    def watcher_for(self, watch: WatchConfig) -> ModelWatcher:
        """Return the watcher that all threads share."""
        with self._lock:
            return self._watchers.setdefault(watch, ModelWatcher(watch))

    def dynamic_batcher_for(self, step: str, version: ModelVersion) -> DynamicBatcher:
        """Return the dynamic batcher that all threads of a step share."""
        key = step, version.name
        with self._lock:
            if key not in self._dynamic_batchers:
                self._dynamic_batchers[key] = DynamicBatcher(version.policy)
            return self._dynamic_batchers[key]

    def size_for(self, step: str, version: ModelVersion) -> AdaptiveSize:
        """Return the batch size that all threads of a step share. It is kept when the model is evicted."""
        key = step, version.name
        with self._lock:
            if key not in self._sizes:
                self._sizes[key] = AdaptiveSize(version.policy)
            return self._sizes[key]


class ProcessShared:
    """A handle to the model registry of a process. Each copy of a pickled handle opens the same registry.

    Args:
        limits: The limits of the model cache.
        identifier: Steps with the same identifier and limits share a registry. If None, the step has its own.
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
            shared = _BY_IDENTIFIER.setdefault((self._identifier, self._limits), shared)
        registry: ModelRegistry = shared.acquire(lambda: ModelRegistry(self._limits))
        return registry


_BY_IDENTIFIER: dict[tuple[str, CacheLimits], Shared] = {}
