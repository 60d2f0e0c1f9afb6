"""Load and call models for one thread: model refresh, timeouts and dynamic batching."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from runinference.batching.adaptive_size import AdaptiveSize
from runinference.batching.overlap import OverlapDecision
from runinference.errors import (
    ChildDiedError,
    InferenceTimeoutError,
    ModelUnavailableError,
    get_message,
    is_out_of_memory,
)
from runinference.handlers.call import may_modify_examples
from runinference.handlers.compute_turn import CancelledTurnError, get_waited_ns
from runinference.handlers.error_policy import Call
from runinference.handlers.repeatable_batch import get_elements, take_elements
from runinference.serving.call_thread import CallOutcome, CallProgress, CallThread, ModelCall
from runinference.serving.overlapping_calls import OverlappingCalls
from runinference.serving.placement import InProcessModel, Model, ModelGoneError, Placement
from runinference.serving.registry import ProcessShared
from runinference.serving.routing import ModelVersion

_LOGGER = logging.getLogger(__name__)

#: Seconds before a new model that could not be loaded is tried again.
RETRY_REFRESH_SECS = 30

#: Attempts to begin a call if the process of the model ends each time, without a call that could be the reason.
_MAX_ATTEMPTS = 3


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


class ModelSession:
    """The models of one thread.

    After a model refresh, the new model replaces the old one once it is loaded. If it can't be loaded, the old one
    stays in use.
    """

    def __init__(self, config: SessionConfig) -> None:
        self._config = config
        self.models = config.models.open()
        self.models.add_session(self)
        self._current: dict[Any, ModelVersion] = {}
        self._failed_refreshes: dict[str, tuple[int, Exception]] = {}
        self._used_in_bundle: set[str] = set()
        self._loads: list[tuple[ModelVersion, int, int]] = []
        self._events: Counter[str] = Counter()
        self._overlapping = OverlappingCalls()
        self._decisions: WeakKeyDictionary[ModelVersion, OverlapDecision] = WeakKeyDictionary()

    def call(
        self, version: ModelVersion, batch: Any, inference_args: dict[str, Any] | None
    ) -> CallOutcome:
        """Return the results of a batch, and the model calls that this thread made, for other threads too."""
        self._overlapping.finish_all()  # a handler may not support concurrent calls
        if self._config.timeout is None:
            return self._run(version, batch, inference_args, CallProgress(version))
        return self._run_with_timeout(version, batch, inference_args)

    def can_start(self, version: ModelVersion) -> bool:
        """Return whether a call can start in another thread: the model is current and loaded."""
        is_current = self._current.get(version.keys[0]) is version
        return is_current and self.models.cache.has_loaded(self._cache_name(version.name))

    def start(
        self, version: ModelVersion, batch: Any, inference_args: dict[str, Any] | None
    ) -> Callable[[ModelVersion, Any, dict[str, Any] | None], CallOutcome]:
        """Start a call in another thread, and return a function like ``call``, whose first call waits for it.

        Until then, calls of other models must not start.
        """
        users, progress = ExitStack(), CallProgress(version)
        used, model = users.enter_context(self._acquire(version, progress))
        progress.model = model

        def run() -> CallOutcome:
            calls: list[ModelCall] = []
            return self._run_once(used, model, batch, inference_args, calls), calls

        wait = partial(self._wait, progress=progress)
        started = self._overlapping.start(used.handler, run, users, wait)

        def call(
            version: ModelVersion, batch: Any, inference_args: dict[str, Any] | None
        ) -> CallOutcome:
            if not self._overlapping.remove(started):
                return self.call(version, batch, inference_args)
            self._overlapping.finish(started)
            if started.timeout_error is not None:
                raise started.timeout_error
            try:
                return started.thread.outcome.result()
            except CancelledTurnError:
                pass
            except ModelGoneError:
                self._invalidate(used, model)
            except ChildDiedError:
                self._invalidate(used, model)
                raise
            return self.call(version, batch, inference_args)

        return call

    def preload(self, version: ModelVersion) -> None:
        """Load a model before the first call, or raise the error of its handler."""
        try:
            with self._acquire(version, CallProgress(version)):
                return
        except ModelUnavailableError as error:
            failed = error.__cause__ or error
        raise failed  # outside of the except clause, which would set its context

    def current_names(self) -> set[str]:
        """Return the names of the current models."""
        return {version.name for version in [*self._current.values()]}

    def size_for(self, version: ModelVersion) -> AdaptiveSize:
        """Return the batch size of a model, which all threads of the step share."""
        return self.models.size_for(self._config.models.name, version)

    def overlap_for(self, version: ModelVersion) -> OverlapDecision:
        """Return the decision of this thread on whether the calls of a model overlap."""
        decision = self._decisions.get(version)
        if decision is None:
            decision = self._decisions[version] = OverlapDecision()
        return decision

    def has_room_for(self, version: ModelVersion) -> bool:
        """Return whether a model is loaded, or can be loaded without evicting another one."""
        return self.models.cache.has_room_for(self._cache_name(version.name))

    def end_bundle(self) -> None:
        """Close the models that were replaced within the bundle, unless bundles of other threads use them.

        If the bundle failed, wait for its calls first.
        """
        self._overlapping.discard_all()
        current = self.current_names()
        while self._used_in_bundle:
            name = self._used_in_bundle.pop()
            if self.models.end_use_in_bundle(self._cache_name(name)) and name not in current:
                self._expire(name)

    def close(self) -> None:
        """End the session. If it is the last one of the process, also end the processes of its models."""
        self.end_bundle()
        if self.models.remove_session(self) and self._config.end_with_step:
            for name in self.models.cache.names():
                self.models.cache.expire(name)

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
        calls, attempts = list[ModelCall](), _MAX_ATTEMPTS
        while True:
            with self._acquire(version, progress) as (used, model):
                progress.version, progress.model, progress.loading = used, model, None

                def run(
                    batch: Any, version: ModelVersion = used, model: Model = model
                ) -> list[Any]:
                    return self._run_once(version, model, batch, inference_args, calls)

                try:
                    return self._call_with_dynamic_batching(used, batch, run), calls
                except ModelGoneError as error:
                    # The call did not begin, so it can't be the reason. Repeat it with a new model.
                    self._invalidate(used, model)
                    attempts -= not error.ended_in_call
                    if progress.timed_out or not attempts:
                        raise
                except ChildDiedError:
                    self._invalidate(used, model)
                    raise
            progress.model = None

    def _run_once(
        self,
        version: ModelVersion,
        model: Model,
        batch: Any,
        inference_args: dict[str, Any] | None,
        calls: list[ModelCall],
    ) -> list[Any]:
        """Call a model, and add the call to ``calls`` if it succeeds."""
        clock, handler = self._config.clock, version.handler
        may_modify = isinstance(model, InProcessModel) and may_modify_examples(
            handler, get_elements(batch)
        )
        elements = take_elements(batch, may_modify)
        start = clock.time_ns()
        results = model.run(handler, elements, inference_args)
        nanoseconds = max(0, clock.time_ns() - start - get_waited_ns())
        calls.append(ModelCall(elements, len(results), nanoseconds))
        return results

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
    def _acquire(
        self, version: ModelVersion, progress: CallProgress
    ) -> Iterator[tuple[ModelVersion, Model]]:
        """Acquire a model version or, if it can't be loaded, the one that it would replace."""
        current = self._current.get(version.keys[0])
        previous = current or version.fallback
        # If another thread has loaded the new model, the old one is not needed, and may be closed already.
        is_loaded = self.models.cache.has_loaded(self._cache_name(version.name))
        if previous is None or previous is version or is_loaded:
            with self._acquire_exactly(version, progress) as model:
                progress.check()
                self._set_current(version)
                self._events["model_refreshes"] += current not in (None, version)
                yield version, model
            return
        with ExitStack() as users:
            # The current model stays in use while the new one loads. Without one, the new one is loaded first.
            old = None
            if current is not None:
                old = users.enter_context(self._acquire_exactly(current, progress))
            new = self._refresh(version, progress, users)
            progress.check()
            if new is not None:
                self._set_current(version)
                yield version, new
                return
            if old is None:
                old = self._acquire_fallback(version, previous, progress, users)
                progress.check()
                self._set_current(previous)
            yield previous, old

    def _refresh(
        self, version: ModelVersion, progress: CallProgress, users: ExitStack
    ) -> Model | None:
        """Return the new model, or None if it can't be loaded."""
        retry_at, _ = self._failed_refreshes.get(version.name, (0, None))
        if retry_at > self._config.clock.time_ns():
            return None
        is_first = version.keys[0] not in self._current
        progress.refreshing = True
        try:
            model = users.enter_context(
                self._acquire_exactly(version, progress, exceed_limits=not is_first)
            )
        except ModelUnavailableError as error:
            progress.check()
            self._postpone_refresh(version, error)
            progress.refreshing = False
            return None
        progress.check()
        progress.refreshing = False
        self._events["model_refreshes"] += not is_first
        return model

    def _acquire_fallback(
        self,
        version: ModelVersion,
        fallback: ModelVersion,
        progress: CallProgress,
        users: ExitStack,
    ) -> Model:
        """Return the handler's own model. If it can't be loaded either, raise the error of the refresh."""
        try:
            return users.enter_context(self._acquire_exactly(fallback, progress))
        except ModelUnavailableError as error:
            _, failed = self._failed_refreshes[version.name]
            raise self._unavailable(
                f"{failed} The model of the handler cannot be loaded either: {error}"
            ) from (failed.__cause__ or failed)

    def _postpone_refresh(self, version: ModelVersion, error: Exception) -> None:
        now = self._config.clock.time_ns()
        self._failed_refreshes = {
            name: failed for name, failed in self._failed_refreshes.items() if failed[0] > now
        }
        retry_at = now + RETRY_REFRESH_SECS * 1_000_000_000
        self._failed_refreshes[version.name] = retry_at, error
        self._events["failed_model_refreshes"] += 1
        _LOGGER.error(
            "Can't load model %r, so the previous model stays in use: %s",
            version.name,
            error,
        )

    def _set_current(self, version: ModelVersion) -> None:
        """Make a version the current one of its keys, and expire versions that have no keys left."""
        if self._current.get(version.keys[0]) is version:
            return
        replaced = {old.name for key in version.keys if (old := self._current.get(key))}
        self._current.update(dict.fromkeys(version.keys, version))
        unused = self.models.replace_current(self._config.models.name, version)
        replaced |= {
            name for name in unused if not self.models.is_in_bundle(self._cache_name(name))
        }
        for name in replaced - self.current_names():
            if name not in self._used_in_bundle:
                self._expire(name)

    def _expire(self, name: str) -> None:
        self.models.cache.expire(self._cache_name(name))
        self.models.forget(self._config.models.name, name)

    def _acquire_exactly(
        self, version: ModelVersion, progress: CallProgress, exceed_limits: bool = False
    ) -> AbstractContextManager[Model]:
        name, progress.version = self._cache_name(version.name), version
        if self._config.keep_until_bundle_end and version.name not in self._used_in_bundle:
            self._used_in_bundle.add(version.name)
            self.models.start_use_in_bundle(name)
        load = partial(self._load, version, progress)
        return self.models.cache.acquire(name, load, exceed_limits=exceed_limits)

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

    def _run_with_timeout(
        self,
        version: ModelVersion,
        batch: Any,
        inference_args: dict[str, Any] | None,
    ) -> CallOutcome:
        while True:
            progress = CallProgress(version)
            thread = CallThread(partial(self._run, version, batch, inference_args, progress))
            thread.start()
            try:
                self._wait(thread, progress)
            except InferenceTimeoutError as error:
                if not progress.refreshing:
                    raise
                self._postpone_refresh(version, error)  # now run the batch with the previous model
            else:
                return thread.outcome.result()

    def _wait(self, thread: CallThread, progress: CallProgress) -> None:
        """Wait for a call. If it takes too long, abandon it and raise `InferenceTimeoutError`."""
        timeout = self._config.timeout
        while thread.is_alive() and not progress.timed_out:
            thread.join(timeout)
            # Queued calls don't time out, because the thread that runs the call enforces the timeout.
            model = progress.model
            progress.timed_out = thread.is_alive() and (
                model is None or model.is_running(thread.ident)
            )
        if progress.timed_out:
            self._events["inference_timeouts"] += 1
            self._abandon(thread, progress)
            raise InferenceTimeoutError(
                f"Loading and calling the model took more than {timeout} seconds. The call was abandoned, and the "
                "model is reloaded for the next batch. If it is only slow, set a longer timeout."
            )

    def _abandon(self, thread: threading.Thread, progress: CallProgress) -> None:
        """Replace the model of a call that hangs, unless it has to be kept."""
        model, loading = progress.model, progress.loading
        ends_soon = loading is not None or (model is not None and model.ends_on_terminate)
        if model is not None and not ends_soon:
            handler = progress.version.handler
            if not getattr(handler, "should_garbage_collect_on_timeout", lambda: True)():
                return
        if ends_soon or self.models.may_abandon(thread, model):
            self._invalidate(progress.version, model)
            hanging = model or loading
            if hanging is not None:
                hanging.terminate()

    def _invalidate(self, version: ModelVersion, model: Model | None) -> None:
        self.models.cache.invalidate(self._cache_name(version.name), model)
