"""Load and call models for one thread: model refresh, timeouts and dynamic batching."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from runinference.batching.adaptive_size import AdaptiveSize
from runinference.errors import (
    ChildDiedError,
    InferenceTimeoutError,
    ModelUnavailableError,
    is_out_of_memory,
)
from runinference.handlers.error_policy import Call
from runinference.serving.call_thread import CallOutcome, CallProgress, CallThread, ModelCall
from runinference.serving.placement import Model, Placement
from runinference.serving.registry import ProcessShared
from runinference.serving.routing import ModelVersion

_LOGGER = logging.getLogger(__name__)

#: Seconds before a new model that could not be loaded is tried again.
RETRY_REFRESH_SECS = 30


@dataclass(frozen=True)
class SessionConfig:
    """The configuration of a `ModelSession`.

    Attributes:
        models: Opens the registry of models of the worker process.
        placement: Loads a model in this process, in a subprocess or in a shared process.
        clock: An object with ``time_ns()``.
        timeout: Seconds to load and call a model; None for no limit.
        cache_prefix: Precedes the names of models in a cache that several steps share.
        keep_until_bundle_end: Whether models stay loaded until the bundle ends.
        dynamic_batching: Whether small batches of several threads may share a call.
    """

    models: ProcessShared
    placement: Placement
    clock: Any = time
    timeout: float | None = None
    cache_prefix: str = ""
    keep_until_bundle_end: bool = False
    dynamic_batching: bool = False


class ModelSession:
    """The models of one thread.

    After a model refresh, the new model replaces the old one once it is loaded. If it can't be loaded, the old one
    stays in use.
    """

    def __init__(self, config: SessionConfig) -> None:
        self._config = config
        self.models = config.models.open()
        self._current: dict[Any, ModelVersion] = {}
        self._retry_at: dict[str, int] = {}
        self._bundle = ExitStack()
        self._bundle_models: dict[str, Model] = {}
        self._loads: list[tuple[ModelVersion, int, int]] = []
        self._events: Counter[str] = Counter()

    def call(
        self, version: ModelVersion, batch: Any, inference_args: dict[str, Any] | None
    ) -> CallOutcome:
        """Return the results of a batch, and the model calls that this thread made, for other threads too."""
        timeout, progress = self._config.timeout, CallProgress(version)
        run = partial(self._run, version, batch, inference_args, progress)
        return run() if timeout is None else self._run_with_timeout(run, progress, timeout)

    def preload(self, version: ModelVersion) -> None:
        """Load a model before the first call, or raise the error of its handler."""
        try:
            with self._acquire(version):
                pass
        except ModelUnavailableError as error:
            raise (error.__cause__ or error) from None

    def size_for(self, version: ModelVersion) -> AdaptiveSize:
        """Return the batch size of a model, which all threads of the step share."""
        return self.models.size_for(self._config.models.name, version)

    def end_bundle(self) -> None:
        """Release the models that were kept until the end of the bundle."""
        self._bundle_models.clear()
        self._bundle.close()

    def drain_events(self) -> tuple[list[tuple[ModelVersion, int, int]], Counter[str]]:
        """Return what happened since the last call: loads (version, nanoseconds, bytes) and counts of events."""
        loads, self._loads = self._loads, []
        events, self._events = self._events, Counter()
        events["model_evictions"] += self.models.cache.drain_evictions()
        return loads, +events

    def _run(
        self,
        version: ModelVersion,
        batch: Any,
        inference_args: dict[str, Any] | None,
        progress: CallProgress,
    ) -> CallOutcome:
        clock, calls = self._config.clock, list[ModelCall]()
        while True:
            with self._acquire(version) as (used, model):
                progress.version, progress.model = used, model

                def run(batch: Any, model: Model = model, handler: Any = used.handler) -> list[Any]:
                    start = clock.time_ns()
                    results = model.run(handler, batch, inference_args)
                    calls.append(ModelCall(batch, len(results), clock.time_ns() - start))
                    return results

                try:
                    return self._call_with_dynamic_batching(used, batch, run), calls
                except ChildDiedError:
                    self._invalidate(used, model)
                    if progress.timed_out or not model.terminated:
                        raise
            # Another thread's call timed out and terminated the model. Repeat this one with a new model.

    def _call_with_dynamic_batching(
        self, version: ModelVersion, batch: Any, run: Call
    ) -> list[Any]:
        """Run a batch; small batches may be combined with those of other threads."""
        if not (self._config.dynamic_batching and version.policy.has_only_size_limits):
            return run(batch)
        size = self.size_for(version)
        if len(batch) >= size.current:
            return run(batch)

        def run_combined(combined: Any) -> list[Any]:
            try:
                return run(combined)
            except Exception as error:
                if len(combined) > len(batch) and is_out_of_memory(error):
                    size.record_out_of_memory(len(combined))
                raise

        dynamic_batcher = self.models.dynamic_batcher_for(self._config.models.name, version)
        return dynamic_batcher.call(batch, size.max_size, run_combined)

    @contextmanager
    def _acquire(self, version: ModelVersion) -> Iterator[tuple[ModelVersion, Model]]:
        """Acquire a model version or, if it can't be loaded, the one that it would replace."""
        current = self._current.get(version.keys[0])
        if current is None or current is version:
            with self._acquire_exactly(version) as model:
                self._set_current(version)
                yield version, model
            return
        with ExitStack() as users:
            old = users.enter_context(self._acquire_exactly(current))
            new = self._refresh(version, users)
            if new is None:
                yield current, old
            else:
                self._set_current(version)
                yield version, new

    def _refresh(self, version: ModelVersion, users: ExitStack) -> Model | None:
        """Return the new model, or None if it can't be loaded."""
        now = self._config.clock.time_ns()
        if self._retry_at.get(version.name, now) > now:
            return None
        try:
            model = users.enter_context(self._acquire_exactly(version, exceed_limits=True))
        except ModelUnavailableError as error:
            self._retry_at[version.name] = now + RETRY_REFRESH_SECS * 1_000_000_000
            self._events["failed_model_refreshes"] += 1
            _LOGGER.error(
                "Can't load model %r, so the previous model stays in use: %s", version.name, error
            )
            return None
        self._events["model_refreshes"] += 1
        return model

    def _set_current(self, version: ModelVersion) -> None:
        """Make a version the current one of its keys, and expire versions that have no keys left."""
        if self._current.get(version.keys[0]) is version:
            return
        replaced = {old.name for key in version.keys if (old := self._current.get(key))}
        self._current.update(dict.fromkeys(version.keys, version))
        for name in replaced - {current.name for current in self._current.values()}:
            self.models.cache.expire(self._cache_name(name))

    def _acquire_exactly(
        self, version: ModelVersion, exceed_limits: bool = False
    ) -> AbstractContextManager[Model]:
        name, load = self._cache_name(version.name), partial(self._load, version)
        if self._config.keep_until_bundle_end:
            return self._acquire_for_bundle(name, load)
        return self.models.cache.acquire(name, load, exceed_limits=exceed_limits)

    @contextmanager
    def _acquire_for_bundle(self, name: str, load: Callable[[], Model]) -> Iterator[Model]:
        # If elements alternate between the old and the new model within a bundle, each is loaded only once.
        if name not in self._bundle_models:
            user = self.models.cache.acquire(name, load, exceed_limits=True)
            self._bundle_models[name] = self._bundle.enter_context(user)
        yield self._bundle_models[name]

    def _load(self, version: ModelVersion) -> Model:
        start = self._config.clock.time_ns()
        try:
            model = self._config.placement(version)
        except Exception as error:
            raise ModelUnavailableError(f"The model cannot be loaded: {error}") from error
        self._loads.append((version, self._config.clock.time_ns() - start, model.n_bytes))
        return model

    def _cache_name(self, name: str) -> str:
        return f"{self._config.cache_prefix}{name}"

    def _run_with_timeout(
        self, run: Callable[[], CallOutcome], progress: CallProgress, timeout: float
    ) -> CallOutcome:
        thread = CallThread(run)
        thread.start()
        while True:
            thread.join(timeout)
            if not thread.is_alive():
                return thread.outcome.result()
            # Queued calls don't time out, because the thread that runs the call enforces the timeout.
            if progress.model is None or progress.model.is_running(thread.ident):
                break
        self._events["inference_timeouts"] += 1
        progress.timed_out = True
        self._invalidate(progress.version, progress.model)
        if progress.model is not None:
            progress.model.terminate()
        raise InferenceTimeoutError(
            f"Loading and calling the model took more than {timeout} seconds. The call was abandoned, and the "
            "model is reloaded for the next batch. If it is only slow, set a longer timeout."
        )

    def _invalidate(self, version: ModelVersion, model: Model | None) -> None:
        name = self._cache_name(version.name)
        self._bundle_models.pop(name, None)
        self.models.cache.invalidate(name, model)
