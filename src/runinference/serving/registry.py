"""Per-process registries of models that survive pickling."""

from __future__ import annotations

import threading
import uuid

from apache_beam.utils.shared import Shared

from runinference.batching.adaptive_size import AdaptiveSize
from runinference.caching.model_cache import CacheLimits, ModelCache
from runinference.serving.batch_coalescer import BatchCoalescer
from runinference.serving.model_watcher import ModelWatcher, WatchConfig
from runinference.serving.routing import ModelVersion


class ModelRegistry:
    """What this process knows of the models of a step: the cache they lie on, and their batch sizes."""

    def __init__(self, room: CacheLimits) -> None:
        self.cache = ModelCache(room)
        self._sizes: dict[tuple[str, str], AdaptiveSize] = {}
        self._joiners: dict[tuple[str, str], BatchCoalescer] = {}
        self._watchers: dict[WatchConfig, ModelWatcher] = {}
        self._lock = threading.Lock()

    def watcher_for(self, watch: WatchConfig) -> ModelWatcher:
        """Who looks for new models, for all threads together."""
        with self._lock:
            return self._watchers.setdefault(watch, ModelWatcher(watch))

    def coalescer_for(self, step: str, name: str, version: ModelVersion) -> BatchCoalescer:
        """Who calls a model for the threads that work for one step."""
        with self._lock:
            if (step, name) not in self._joiners:
                self._joiners[step, name] = BatchCoalescer(version.policy)
            return self._joiners[step, name]

    def size_for(self, step: str, version: ModelVersion) -> AdaptiveSize:
        """The batch size of a model, learnt by all threads of a step together; kept while the model is not.

        Steps that share a model, or a budget of memory, each have their own options for batching.
        """
        key = step, version.name
        with self._lock:
            if key not in self._sizes:
                self._sizes[key] = AdaptiveSize(version.policy)
            return self._sizes[key]


class ProcessShared:
    """Finds the same models in whatever thread of a process asks.

    Made with the transform, and sent to the workers with it.

    Args:
        room: How much the process may hold.
        identifier: Shared by all steps that give the same one and the same room; None for this step alone.
    """

    def __init__(self, room: CacheLimits, identifier: str | None = None) -> None:
        self.name = uuid.uuid4().hex
        self._room = room
        self._identifier = identifier
        self._shared = Shared()

    def open(self) -> ModelRegistry:
        """The models; they live as long as somebody holds them."""
        shared = self._shared
        if self._identifier is not None:
            shared = _BY_IDENTIFIER.setdefault((self._identifier, self._room), shared)
        models: ModelRegistry = shared.acquire(lambda: ModelRegistry(self._room))
        return models


_BY_IDENTIFIER: dict[tuple[str, CacheLimits], Shared] = {}
