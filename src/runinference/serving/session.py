"""Borrows a model for a call: loads it, refreshes it, gives it up when it is stuck."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from apache_beam.runners.worker.statesampler import get_current_tracker, set_current_tracker

from runinference.batching.adaptive_size import AdaptiveSize
from runinference.errors import (
    ChildDiedError,
    InferenceTimeoutError,
    ModelUnavailableError,
    is_out_of_memory,
)
from runinference.handlers.error_policy import Call
from runinference.serving.placement import Model, Placement
from runinference.serving.registry import ProcessShared
from runinference.serving.routing import ModelVersion

_LOGGER = logging.getLogger(__name__)

#: How long a new model that could not be loaded is not tried again.
RETRY_REFRESH_SECS = 30


@dataclass(frozen=True)
class SessionConfig:
    """How a session loads and calls models.

    Attributes:
        models: The registry of models of each worker process.
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


class ModelCall(NamedTuple):
    """A call of the model that went well.

    Attributes:
        batch: What it was called with.
        n_results: How many results it gave.
        nanoseconds: How long it took.
    """

    batch: Any
    n_results: int
    nanoseconds: int


_Outcome = tuple[list[Any], list[ModelCall]]


class ModelSession:
    """Lends one thread the models of its process.

    A refresh loads the new model beside the old one, and swaps them when it is there. If it cannot be loaded,
    the old one serves on. Until the bundle ends, models that a refresh replaced are kept: a refresh that goes
    back and forth between two loads each once.
    """

    def __init__(self, config: SessionConfig) -> None:
        self._config = config
        self.models = config.models.open()
        self._serving: dict[Any, ModelVersion] = {}
        self._broken: dict[str, int] = {}
        self._held = ExitStack()
        self._held_models: dict[str, Model] = {}
        self._loads: list[tuple[ModelVersion, int, int]] = []
        self._events: Counter[str] = Counter()

    def call(
        self, version: ModelVersion, batch: Any, inference_args: dict[str, Any] | None
    ) -> _Outcome:
        """The results of a batch, and the calls of the model that this thread made for it.

        Where threads share a call, one of them made it: with the elements of all.

        Raises:
            ModelUnavailableError: The model cannot be loaded.
            InferenceTimeoutError: Loading and calling it took longer than the timeout.
        """
        timeout, use = self._config.timeout, _Use(version)
        run = partial(self._run, version, batch, inference_args, use)
        return run() if timeout is None else self._in_time(use, run, timeout)

    def preload(self, version: ModelVersion) -> None:
        """Loads a model before it is needed.

        Raises:
            Exception: What the handler raised.
        """
        try:
            with self._borrow(version):
                pass
        except ModelUnavailableError as error:
            raise (error.__cause__ or error) from None

    def size_for(self, version: ModelVersion) -> AdaptiveSize:
        """Return the batch size of a model, which all threads of the step share."""
        return self.models.size_for(self._config.models.name, version)

    def end_bundle(self) -> None:
        """Gives back what was kept for the length of the bundle."""
        self._held_models.clear()
        self._held.close()

    def drain_events(self) -> tuple[list[tuple[ModelVersion, int, int]], Counter[str]]:
        """What was loaded (with nanoseconds and bytes), and how often what happened, since last asked."""
        loads, self._loads = self._loads, []
        events, self._events = self._events, Counter()
        events["model_evictions"] += self.models.cache.drain_evictions()
        return loads, +events

    def _run(
        self, version: ModelVersion, batch: Any, inference_args: dict[str, Any] | None, use: _Use
    ) -> _Outcome:
        clock, calls = self._config.clock, list[ModelCall]()
        while True:
            with self._borrow(version) as (serving, model):
                use.serving, use.model = serving, model

                def run(
                    batch: Any, model: Model = model, handler: Any = serving.handler
                ) -> list[Any]:
                    start = clock.time_ns()
                    results = model.run(handler, batch, inference_args)
                    calls.append(ModelCall(batch, len(results), clock.time_ns() - start))
                    return results

                try:
                    return self._joined(serving, batch, run), calls
                except ChildDiedError:
                    self._invalidate(serving, model)
                    if use.over or not model.abandoned:
                        raise
            # Another thread was stuck in it and gave it up: this batch has nothing to do with that.

    def _joined(self, version: ModelVersion, batch: Any, run: Call) -> list[Any]:
        """What ``run`` makes of a batch; a small one may share its call with those of other threads."""
        if not (self._config.dynamic_batching and version.policy.has_only_size_limits):
            return run(batch)
        size = self.size_for(version)
        if len(batch) >= size.current:
            return run(batch)

        def run_together(joined: Any) -> list[Any]:
            try:
                return run(joined)
            except Exception as error:
                if len(joined) > len(batch) and is_out_of_memory(error):
                    size.record_out_of_memory(len(joined))
                raise

        coalescer = self.models.coalescer_for(self._config.models.name, version.name, version)
        return coalescer.call(batch, size.max_size, run_together)

    @contextmanager
    def _borrow(self, version: ModelVersion) -> Iterator[tuple[ModelVersion, Model]]:
        """Lends the model of an version, or the one that served before if this one is broken."""
        served = self._serving.get(version.keys[0])
        if served is None or served is version:
            with self._lease(version) as model:
                self._serves(version)
                yield version, model
            return
        with ExitStack() as users:
            old = users.enter_context(self._lease(served))
            new = self._refreshed(version, users)
            if new is None:
                yield served, old
            else:
                self._serves(version)
                yield version, new

    def _refreshed(self, version: ModelVersion, users: ExitStack) -> Model | None:
        """The new model, or None if it cannot be loaded."""
        now = self._config.clock.time_ns()
        if self._broken.get(version.name, now) > now:
            return None
        try:
            model: Model = users.enter_context(self._lease(version, beside=True))
        except ModelUnavailableError as error:
            self._broken[version.name] = now + RETRY_REFRESH_SECS * 1_000_000_000
            self._events["failed_model_refreshes"] += 1
            _LOGGER.error(
                "The new model %r is not used, the old one serves on: %s", version.name, error
            )
            return None
        self._events["model_refreshes"] += 1
        return model

    def _serves(self, version: ModelVersion) -> None:
        """Notes that an version serves its keys now, and retires what serves none."""
        if self._serving.get(version.keys[0]) is version:
            return
        replaced = {old.name: old for key in version.keys if (old := self._serving.get(key))}
        self._serving.update(dict.fromkeys(version.keys, version))
        still = {serving.name for serving in self._serving.values()}
        for name in replaced.keys() - still:
            self.models.cache.expire(self._name(name))

    @contextmanager
    def _lease(self, version: ModelVersion, beside: bool = False) -> Iterator[Model]:
        name = self._name(version.name)
        if not self._config.keep_until_bundle_end:
            with self.models.cache.lease(
                name, partial(self._load, version), beside=beside
            ) as model:
                yield model
            return
        if name not in self._held_models:
            lease = self.models.cache.lease(name, partial(self._load, version), beside=True)
            self._held_models[name] = self._held.enter_context(lease)
        yield self._held_models[name]

    def _load(self, version: ModelVersion) -> Model:
        clock = self._config.clock
        start = clock.time_ns()
        try:
            model = self._config.placement(version)
        except Exception as error:
            raise ModelUnavailableError(f"The model cannot be loaded: {error}") from error
        self._loads.append((version, clock.time_ns() - start, model.n_bytes))
        return model

    def _name(self, name: str) -> str:
        return f"{self._config.cache_prefix}{name}"

    def _in_time(self, use: _Use, run: Callable[[], _Outcome], timeout: float) -> _Outcome:
        call = _InThread(run)
        while not call.ended_within(timeout):
            if use.model is None or use.model.works_for(call.ident):
                break  # else it waits behind another call, whose time is counted by its own thread
        else:
            return call.outcome()
        self._events["inference_timeouts"] += 1
        use.over = True
        self._invalidate(use.serving, use.model)
        if use.model is not None:
            use.model.abandon()
        raise InferenceTimeoutError(
            f"Loading the model and calling it took more than {timeout} seconds. The model was given up, and "
            "a fresh one is loaded for the next batch. If it was slow, not stuck, give with_exception_handling "
            "a longer timeout."
        )

    def _invalidate(self, version: ModelVersion, model: Model | None) -> None:
        name = self._name(version.name)
        self._held_models.pop(name, None)
        self.models.cache.invalidate(name, model)


class _Use:
    """Which model a call uses, as far as it is known; ``over`` when nobody waits for the call any more."""

    def __init__(self, version: ModelVersion) -> None:
        self.serving = version
        self.model: Model | None = None
        self.over = False


class _InThread:
    """A call in a thread that does not keep the process alive."""

    def __init__(self, run: Callable[[], _Outcome]) -> None:
        self._run = run
        self._result: _Outcome = ([], [])
        self._error: BaseException | None = None
        self._tracker = get_current_tracker()
        self._thread = threading.Thread(target=self._work, daemon=True, name="runinference-call")
        self._thread.start()

    def _work(self) -> None:
        set_current_tracker(
            self._tracker
        )  # or metrics of the handler's own would count for no step
        try:
            self._result = self._run()
        except BaseException as error:
            self._error = error

    @property
    def ident(self) -> int | None:
        return self._thread.ident

    def ended_within(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def outcome(self) -> _Outcome:
        if self._error is not None:
            raise self._error
        return self._result
