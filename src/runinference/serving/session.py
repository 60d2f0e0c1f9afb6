"""Call models for one thread: timeouts, overlapping calls and dynamic batching."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from runinference.batching.adaptive_size import AdaptiveSize
from runinference.batching.measured_switch import MeasuredSwitch
from runinference.errors import (
    ChildDiedError,
    InferenceTimeoutError,
    ModelUnavailableError,
    is_out_of_memory,
)
from runinference.handlers.call import may_modify_examples
from runinference.handlers.compute_turn import CancelledTurnError, get_waited_ns
from runinference.handlers.error_policy import Call
from runinference.handlers.repeatable_batch import get_elements, take_elements
from runinference.serving.call_thread import CallOutcome, CallProgress, CallThread, ModelCall
from runinference.serving.current_models import CurrentModels, SessionConfig
from runinference.serving.overlapping_calls import OverlappingCalls
from runinference.serving.placement import InProcessModel, Model, ModelGoneError
from runinference.serving.routing import ModelVersion

#: Attempts to begin a call if the process of the model ends each time, without a call that could be the reason.
_MAX_ATTEMPTS = 3
#: Minimum time of a call in seconds. Shorter calls lose more than they gain from another thread, because that
#: thread waits up to 5 ms for the interpreter lock while the pipeline computes.
_MIN_OVERLAP_SECS = 0.002


class ModelSession:
    """The model calls of one thread.

    Attributes:
        registry: The models of the process.
        models: The models of this thread.
    """

    def __init__(self, config: SessionConfig) -> None:
        self._config = config
        self.registry = config.models.open()
        self.models = CurrentModels(config, self.registry)
        self._overlapping = OverlappingCalls()
        self._overlap: WeakKeyDictionary[ModelVersion, MeasuredSwitch] = WeakKeyDictionary()

    def call(
        self, version: ModelVersion, batch: Any, inference_args: dict[str, Any] | None
    ) -> CallOutcome:
        """Return the results of a batch, and the model calls that this thread made, for other threads too."""
        self._overlapping.finish_all()  # a handler may not support concurrent calls
        if self._config.timeout is None:
            return self._run(version, batch, inference_args, CallProgress(version))
        return self._run_with_timeout(version, batch, inference_args)

    def start(
        self, version: ModelVersion, batch: Any, inference_args: dict[str, Any] | None
    ) -> Callable[[ModelVersion, Any, dict[str, Any] | None], CallOutcome]:
        """Start a call in another thread, and return a function like ``call``, whose first call waits for it.

        Until then, calls of other models must not start.
        """
        progress = CallProgress(version)
        used, use = self.models.acquire(version, progress)
        model = progress.model = use.model

        def run() -> CallOutcome:
            calls: list[ModelCall] = []
            return self._run_once(used, model, batch, inference_args, calls), calls

        wait = partial(self._wait, progress=progress)
        started = self._overlapping.start(used.handler, run, use, wait)

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
                self.models.invalidate(used, model)
            except ChildDiedError:
                self.models.invalidate(used, model)
                raise
            return self.call(version, batch, inference_args)

        return call

    def preload(self, version: ModelVersion) -> None:
        """Load a model before the first call, or raise the error of its handler."""
        try:
            _, use = self.models.acquire(version, CallProgress(version))
            return use.release()
        except ModelUnavailableError as error:
            failed = error.__cause__ or error
        raise failed  # outside of the except clause, which would set its context

    def size_for(self, version: ModelVersion) -> AdaptiveSize:
        """Return the batch size of a model, which all threads of the step share."""
        return self.registry.size_for(self._config.models.name, version)

    def overlap_for(self, version: ModelVersion) -> MeasuredSwitch:
        """Return the switch that decides whether a model's calls overlap. Each thread has a separate switch."""
        overlap = self._overlap.get(version)
        if overlap is None:
            overlap = self._overlap[version] = MeasuredSwitch(min_secs=_MIN_OVERLAP_SECS)
        return overlap

    def end_bundle(self) -> None:
        """Wait for the calls of a bundle that failed, and close models that were replaced within the bundle."""
        self._overlapping.discard_all()
        self.models.end_bundle()

    def close(self) -> None:
        """End the session. If it is the last one of the process, also end the processes of its models."""
        self.end_bundle()
        self.models.close()

    def _run(
        self,
        version: ModelVersion,
        batch: Any,
        inference_args: dict[str, Any] | None,
        progress: CallProgress,
    ) -> CallOutcome:
        calls, attempts = list[ModelCall](), _MAX_ATTEMPTS
        while True:
            used, use = self.models.acquire(version, progress)
            with use as model:
                progress.version, progress.model, progress.loading = used, model, None

                def run(
                    batch: Any, version: ModelVersion = used, model: Model = model
                ) -> list[Any]:
                    return self._run_once(version, model, batch, inference_args, calls)

                try:
                    return self._call_with_dynamic_batching(used, batch, run), calls
                except ModelGoneError as error:
                    # The call did not begin, so it can't be the reason. Repeat it with a new model.
                    self.models.invalidate(used, model)
                    attempts -= not error.ended_in_call
                    if progress.timed_out or not attempts:
                        raise
                except ChildDiedError:
                    self.models.invalidate(used, model)
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

        dynamic_batcher = self.registry.dynamic_batcher_for(self._config.models.name, version)
        return dynamic_batcher.call(batch, size.max_size, run_combined)

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
                self.models.postpone_refresh(
                    version, error
                )  # now run the batch with the previous model
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
            self.models.events["inference_timeouts"] += 1
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
        if ends_soon or self.registry.may_abandon(thread, model):
            self.models.invalidate(progress.version, model)
            hanging = model or loading
            if hanging is not None:
                hanging.terminate()
