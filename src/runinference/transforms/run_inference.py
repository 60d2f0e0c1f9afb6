"""RunInference: elements are prepared, gathered into batches, run through a model, split and finished."""

from __future__ import annotations

import copy
import time
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import FixedWindows, GlobalWindows, Sessions, WindowFn
from apache_beam.utils.timestamp import MAX_TIMESTAMP

from runinference.caching.memory_budget import limits_from_args
from runinference.caching.model_cache import CacheLimits
from runinference.errors import OptionError
from runinference.handlers.error_policy import DeadLetterPolicy, FailFastPolicy
from runinference.handlers.keyed import per_key_mappings
from runinference.handlers.options import KeywordsChecked
from runinference.serving.model_watcher import WatchConfig
from runinference.serving.placement import Placement, default_placement
from runinference.serving.registry import ProcessShared
from runinference.serving.session import SessionConfig
from runinference.serving.subprocess_model import SubprocessModel
from runinference.transforms.buffered_dofn import AssignShardKey, BufferedInferDoFn, longest_wait
from runinference.transforms.coders import result_type
from runinference.transforms.config import InferenceConfig
from runinference.transforms.dead_letters import (
    ExceptionHandling,
    FailureThreshold,
    RunInferenceDLQ,
    apply_functions,
)
from runinference.transforms.infer_dofn import FAILED, InferDoFn, InferEachWindow
from runinference.transforms.prebatched_dofn import infer_prebatched
from runinference.transforms.side_inputs import is_side_input
from runinference.transforms.watch_file_pattern import AsLatest


class RunInference(KeywordsChecked, beam.PTransform):  # type: ignore[misc]
    """Turns a PCollection of examples into one of predictions, one for each, with a model.

    Each prediction has the window and timestamp of its example.

    >>> from runinference.sklearn_inference import SklearnModelHandlerNumpy
    >>> from runinference import samples
    >>> handler = SklearnModelHandlerNumpy(model_uri=samples.digits_classifier())
    >>> images, labels = samples.held_out_digits()
    >>> with beam.Pipeline() as pipeline:
    ...     results = pipeline | beam.Create(images[:1]) | RunInference(handler)
    ...     _ = results | beam.Map(lambda result: print(result.inference))
    1
    """

    def __init__(
        self,
        model_handler: Any,
        clock: Any = time,
        inference_args: dict[str, Any] | beam.pvalue.AsSideInput | None = None,
        metrics_namespace: str | None = None,
        *,
        model_metadata_pcoll: beam.PCollection | None = None,
        watch_model_pattern: str | None = None,
        model_identifier: str | None = None,
        use_model_manager: bool = False,
        model_manager_args: dict[str, Any] | None = None,
        monitoring_transform: beam.PTransform | None = None,
        interval: float | None = None,
        stop_timestamp: Any = None,
    ) -> None:
        """Takes a handler, and what all its calls have in common.

        Args:
            model_handler: Says how to load the model and how to call it. Any object with the methods of
                Beam's ``ModelHandler`` will do.
            clock: Has ``time_ns()``; for tests of your own.
            inference_args: Arguments for the model's call, the same for all elements: a dictionary, or a side
                input that gives one, such as ``beam.pvalue.AsDict``.
            metrics_namespace: The namespace of the metrics; by default the handler's.
            model_metadata_pcoll: Names new models while the pipeline runs: one ``ModelMetadata`` at a time, or
                a list of ``KeyModelPathMapping`` where there is a model per key.
            watch_model_pattern: In place of it: a pattern of files of which the newest is the model. Each worker
                process looks for itself.
            model_identifier: Steps with the same one share their model. By default each has its own.
            use_model_manager: Whether this step's model shares a budget of memory with those of all other
                steps that say so.
            model_manager_args: The budget: ``max_model_bytes``, ``max_models``, ``wait_timeout_seconds``.
            monitoring_transform: Gets the predictions too, before they are postprocessed.
            interval: For ``watch_model_pattern``: seconds from one look to the next.
            stop_timestamp: For ``watch_model_pattern``: when to look for the last time.

        Raises:
            UnknownOptionError: A keyword is not known; the message names the nearest one.
            OptionError: Options contradict each other.
        """
        super().__init__()
        check_handler(model_handler)
        if model_metadata_pcoll is not None and watch_model_pattern:
            raise OptionError(
                "model_metadata_pcoll and watch_model_pattern both name new models: give one of them."
            )
        if not watch_model_pattern and (interval is not None or stop_timestamp is not None):
            raise OptionError("interval and stop_timestamp are for watch_model_pattern.")
        if model_manager_args and not use_model_manager:
            raise OptionError("model_manager_args needs use_model_manager=True.")
        self._model_handler = model_handler
        self._clock = clock
        self._inference_args = inference_args
        self._metrics_namespace = metrics_namespace
        self._metadata = model_metadata_pcoll
        self._watch = watch_model_pattern and WatchConfig(
            watch_model_pattern,
            interval=360 if interval is None else interval,
            began=time.time(),
            until=float(MAX_TIMESTAMP if stop_timestamp is None else stop_timestamp),
        )
        self._model_identifier = model_identifier
        self._manager_limits = (
            limits_from_args(model_manager_args or {}) if use_model_manager else None
        )
        self._monitoring_transform = monitoring_transform
        self._handling: ExceptionHandling | None = None

    @classmethod
    def from_callable(cls, model_handler_provider: Any, **kwargs: Any) -> RunInference:
        """A transform whose handler is ``model_handler_provider(**kwargs)``, for pipelines in other languages."""
        return cls(model_handler_provider(**kwargs))

    def with_exception_handling(
        self,
        *,
        exc_class: type[BaseException] | tuple[type[BaseException], ...] = Exception,
        use_subprocess: bool = False,
        threshold: float = 1,
        timeout: float | None = None,
    ) -> RunInference:
        """A copy that gives ``(results, dead letters)``: what fails does not stop the pipeline.

        Exactly the failing elements come out in the [RunInferenceDLQ][runinference.RunInferenceDLQ]; all others
        get their predictions.

        Args:
            exc_class: The errors that are set aside; others stop the pipeline.
            use_subprocess: Whether the model runs in a process of its own, so that one that crashes takes down
                a batch and not the worker. Each batch then crosses a process boundary.
            threshold: The share of records that may fail; above it, the pipeline stops.
            timeout: Seconds for loading a model and calling it once. A model that takes longer is given up,
                and a fresh one is loaded.

        Raises:
            OptionError: A value is out of range.
        """
        return self._but(_handling=ExceptionHandling(exc_class, use_subprocess, threshold, timeout))

    def with_monitoring_transform(self, monitoring_transform: beam.PTransform) -> RunInference:
        """A copy whose predictions go through a transform too, before they are postprocessed."""
        return self._but(_monitoring_transform=monitoring_transform)

    def annotations(self) -> dict[str, Any]:
        """Names the handler and the model for tools that draw pipelines; the same from run to run."""
        kind = type(self._model_handler)
        return {
            "model_handler": kind.__qualname__,
            "model_handler_type": f"{kind.__module__}.{kind.__qualname__}",
            "model_identifier": self._model_identifier or "",
            **super().annotations(),
        }

    def expand(self, examples: beam.PCollection) -> Any:
        handler, handling = self._model_handler, self._handling
        if not is_side_input(self._inference_args):
            handler.validate_inference_args(self._inference_args)
        prepared, bad_before = apply_functions(
            examples, handler.get_preprocess_fns(), "Preprocess", handling
        )
        results, bad = self._inferred(prepared)
        if self._monitoring_transform is not None:
            _ = results | "BeamML_RunInference_MonitoringOutlet" >> self._monitoring_transform
        finished, bad_after = apply_functions(
            results, handler.get_postprocess_fns(), "Postprocess", handling
        )
        if handling is None:
            return finished
        if handling.threshold < 1:
            _ = (finished, bad, *bad_before, *bad_after) | FailureThreshold(handling.threshold)
        return finished, RunInferenceDLQ(bad, bad_before, bad_after)

    def _inferred(
        self, examples: beam.PCollection
    ) -> tuple[beam.PCollection, beam.PCollection | None]:
        """Predictions, and the dead letters if errors are set aside."""
        handler = self._model_handler
        declared = result_type(handler, examples.element_type)
        do_fn = self._do_fn(examples.windowing.windowfn)
        if isinstance(do_fn, BufferedInferDoFn):
            shard = beam.ParDo(AssignShardKey(handler)).with_output_types(tuple[str, Any])
            examples = examples | "BeamML_RunInference_Shard" >> shard
        infer = beam.ParDo(do_fn, **self._side_inputs()).with_output_types(declared)
        infer = infer.with_resource_hints(**handler.get_resource_hints())
        if self._handling is None:
            return examples | "BeamML_RunInference" >> infer, None
        outputs = examples | "BeamML_RunInference" >> infer.with_outputs(
            FAILED, main="results", allow_unknown_tags=False
        )
        return outputs.results, outputs[FAILED]

    def _do_fn(self, windows: WindowFn) -> InferDoFn:
        """How elements become batches: as they are, within a bundle, or across bundles."""
        handler, step = self._model_handler, self._config()
        one = isinstance(windows, (GlobalWindows, FixedWindows, Sessions))
        if handler.should_skip_batching():
            return infer_prebatched(step, one)
        duration = longest_wait(handler)
        if duration is not None:
            return BufferedInferDoFn(step, duration)
        return InferDoFn(step) if one else InferEachWindow(step)

    def _side_inputs(self) -> dict[str, Any]:
        """What an element comes with: the last refresh, and the arguments if they come from the pipeline."""
        update = {} if self._metadata is None else {"update": AsLatest(self._metadata)}
        arguments = self._inference_args
        return update | ({"arguments": arguments} if is_side_input(arguments) else {})

    def _config(self) -> InferenceConfig:
        handler, handling, given = self._model_handler, self._handling, self._inference_args
        refreshing = self._metadata is not None or bool(self._watch)
        several = bool(per_key_mappings(handler))
        managed = self._manager_limits is not None
        models = ProcessShared(
            self._manager_limits or (handler.cache_limits if several else CacheLimits()),
            "model manager" if managed else self._model_identifier,
        )
        timeout = handling.timeout if handling else None
        session = SessionConfig(
            models=models,
            placement=self._place(models.name),
            clock=self._clock,
            timeout=timeout,
            cache_prefix=f"{self._model_identifier or models.name}/" if managed else "",
            keep_until_bundle_end=refreshing and not several and not managed,
            dynamic_batching=self._joins(),
        )
        return InferenceConfig(
            handler=handler,
            inference_args=None if is_side_input(given) else given,
            namespace=self._metrics_namespace,
            errors=FailFastPolicy() if handling is None else DeadLetterPolicy(handling.exc_class),
            session=session,
            load_in_setup=not (refreshing or several or managed or timeout),
            watch=self._watch or None,
        )

    def _joins(self) -> bool:
        """Whether threads may call the model together: it is here, nobody is given up, batches are ours.

        And all calls have the same arguments, which those that come from the pipeline may not be.
        """
        handler = self._model_handler
        if handler.should_skip_batching() or handler.share_model_across_processes():
            return False
        if is_side_input(self._inference_args):
            return False
        if self._handling is not None and (self._handling.use_subprocess or self._handling.timeout):
            return False
        return bool(getattr(handler, "may_join_threads", bool)())

    def _place(self, tag: str) -> Placement:
        """Where the model lives, by what the handler and the exception handling ask for."""
        if self._handling is not None and self._handling.use_subprocess:
            return SubprocessModel
        return partial(default_placement, tag=self._model_identifier or tag)

    def _but(self, **changes: Any) -> RunInference:
        changed = copy.copy(self)
        for name, value in changes.items():
            setattr(changed, name, value)
        return changed


def check_handler(handler: Any) -> None:
    """Raises unless a handler has what a transform calls.

    Raises:
        OptionError: It is a class, or lacks a method.
    """
    if isinstance(handler, type):
        raise OptionError(
            f"model_handler is the class {handler.__name__}: give RunInference an object of it, "
            f"{handler.__name__}(...)."
        )
    missing = [name for name in ("load_model", "run_inference") if not hasattr(handler, name)]
    if missing:
        raise OptionError(
            f"model_handler is a {type(handler).__name__} without {' and '.join(missing)}. Give RunInference a "
            "ModelHandler, such as SklearnModelHandlerNumpy(model_uri=...)."
        )
