"""The RunInference transform: preprocess, run inference, postprocess, and collect dead letters."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import methodcaller
from typing import Any, cast

import apache_beam as beam
from apache_beam.pvalue import AsSideInput
from apache_beam.transforms.window import FixedWindows, GlobalWindows, Sessions
from apache_beam.utils.timestamp import Timestamp

from runinference.caching.memory_budget import limits_from_args
from runinference.caching.model_cache import CacheLimits
from runinference.checks import (
    check_bool,
    check_callable,
    check_mapping,
    check_seconds,
    check_text,
)
from runinference.collate.class_output import ProbabilitiesOption
from runinference.collate.unsplit import returns_unsplit_results
from runinference.errors import OptionError
from runinference.handlers.cached_handler import map_cached_handlers
from runinference.handlers.error_policy import DeadLetterPolicy, FailFastPolicy
from runinference.handlers.handler_config import create_handler, parse_output, to_plain
from runinference.handlers.keyed import per_key_mappings
from runinference.handlers.model_fingerprint import fingerprint
from runinference.handlers.model_handler import ModelHandlerLike
from runinference.handlers.options import KeywordsChecked
from runinference.handlers.row_handler import with_rows
from runinference.handlers.row_options import OutputOption, RowOptions
from runinference.serving.current_models import Clock, SessionConfig
from runinference.serving.model_watcher import WatchConfig
from runinference.serving.placement import Placement
from runinference.serving.registry import ProcessShared
from runinference.serving.shared_process import default_placement
from runinference.serving.subprocess_model import SubprocessModel
from runinference.transforms.batch_sources import BundleBatches, PrebatchedBatches, UnsplitBatches
from runinference.transforms.buffered_dofn import (
    BufferedInferDoFn,
    InferInWindows,
    get_max_wait_secs,
)
from runinference.transforms.coders import result_type
from runinference.transforms.config import InferenceConfig, validate_handler, validate_model_updates
from runinference.transforms.dead_letters import (
    ExceptionHandling,
    FailureThreshold,
    RunInferenceDLQ,
    apply_functions,
)
from runinference.transforms.engine import FAILED
from runinference.transforms.infer_dofn import ExplodeWindows, InferDoFn
from runinference.transforms.row_types import pass_rows_through, with_input_type
from runinference.transforms.runner_checks import check_runner
from runinference.transforms.shard_key import AssignShardKey
from runinference.transforms.side_inputs import AsLatest
from runinference.transforms.watch_file_pattern import check_timestamp

#: Windowing that puts each element in one window.
_SINGLE_WINDOW = (GlobalWindows, FixedWindows, Sessions)


class RunInference(KeywordsChecked, beam.PTransform):  # type: ignore[misc]
    """Run a model on each element of a PCollection.

    Each prediction has the window and timestamp of its element.

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
        model_handler: ModelHandlerLike,
        clock: Clock = time,
        inference_args: dict[str, Any] | AsSideInput | None = None,
        metrics_namespace: str | None = None,
        *,
        columns: str | Sequence[str] | None = None,
        output: OutputOption | None = None,
        keep: str | Sequence[str] | None = None,
        probabilities: ProbabilitiesOption | None = None,
        model_metadata_pcoll: beam.PCollection | None = None,
        watch_model_pattern: str | None = None,
        model_identifier: str | None = None,
        use_model_manager: bool = False,
        model_manager_args: Mapping[str, Any] | None = None,
        monitoring_transform: beam.PTransform | None = None,
        interval: float | None = None,
        stop_timestamp: Timestamp | float | None = None,
    ) -> None:
        """Create the transform.

        Args:
            model_handler: Loads and calls the model: a ``ModelHandler``, or any object with the methods of Beam's
                ``ModelHandler``.
            clock: Source of the time for latency metrics: an object with ``time_ns()``. Replace it only in tests.
            inference_args: Keyword arguments for each model call: a dictionary, or a side input with a dictionary,
                such as ``beam.pvalue.AsDict``.
            metrics_namespace: Namespace of the metrics. By default, the handler's namespace.
            columns: For elements that are rows or tables, the names of the feature columns, in the order of the
                training data. By default, the features that the model names.
            output: For rows, the name of the column with the predictions, ``"prediction"`` by default. To declare
                the type of its values, pass a dictionary, such as ``{"prediction": float}``. If the
                model's output has fields, their names select them, such as ``{"label": str, "score": float}``.
            keep: For rows, the names of the columns that results have, too. By default, all columns.
            probabilities: For rows and a classifier, the columns with the probabilities of its classes. A pattern
                such as ``"p_{}"`` stands for a column for each class, and ``{"yes": "p_yes"}`` names those of some
                classes. The column ``output`` is the label.
            model_metadata_pcoll: A PCollection of model updates: ``ModelMetadata``, or lists of
                ``KeyModelPathMapping`` for per-key models.
            watch_model_pattern: A file pattern. When a matching file appears while the pipeline runs, it becomes
                the new model. Each worker process polls the pattern.
            model_identifier: Steps with the same identifier share a model. By default, each step has its own.
            use_model_manager: Whether the models of this step share a memory budget with those of all other steps
                that set this option.
            model_manager_args: The budget of a worker process: ``max_model_bytes`` and ``max_models``, by default
                three quarters of the available memory, and ``wait_timeout_seconds``, the time to wait for a model
                to be released if all are in use, by default 300.
            monitoring_transform: A transform that also receives the predictions, before postprocessing.
            interval: Seconds between polls of ``watch_model_pattern``, greater than 0. Default: 360.
            stop_timestamp: Time of the last poll of ``watch_model_pattern``: a Beam ``Timestamp``, or seconds
                since the epoch. By default, polling never stops.

        Raises:
            UnknownOptionError: A keyword argument is unknown. The message suggests the closest one.
            OptionError: The handler is not a model handler, options conflict, a value is out of range, or the
                columns don't fit the model.
        """
        super().__init__()
        validate_handler(model_handler)
        row_options = RowOptions.create(columns, output, keep, inference_args, probabilities)
        self._takes_rows = row_options is not None
        if row_options is not None:
            model_handler = with_rows(model_handler, row_options)
        _check_types(
            inference_args, model_metadata_pcoll, monitoring_transform, metrics_namespace, clock
        )
        for name, text in (
            ("watch_model_pattern", watch_model_pattern),
            ("model_identifier", model_identifier),
        ):
            if text is not None:
                check_text(name, text)
        check_bool("use_model_manager", use_model_manager)
        if model_metadata_pcoll is not None and watch_model_pattern:
            raise OptionError(
                "model_metadata_pcoll and watch_model_pattern both provide new models. "
                "To fix this, pass only one of them."
            )
        if not watch_model_pattern and (interval is not None or stop_timestamp is not None):
            raise OptionError("interval and stop_timestamp are for watch_model_pattern.")
        if interval is not None:
            check_seconds("interval", interval)
        if stop_timestamp is not None:
            check_timestamp("stop_timestamp", stop_timestamp)
        if model_manager_args is not None:
            check_mapping("model_manager_args", model_manager_args)
        if model_manager_args and not use_model_manager:
            raise OptionError("model_manager_args needs use_model_manager=True.")
        if use_model_manager and per_key_mappings(model_handler):
            _check_one_limit(cast(Any, model_handler).cache_limits)
        self._model_handler: Any = model_handler
        self._clock = clock
        self._inference_args = inference_args
        self._metrics_namespace = metrics_namespace
        self._metadata = model_metadata_pcoll
        self._watch = (
            WatchConfig.create(watch_model_pattern, interval, stop_timestamp)
            if watch_model_pattern
            else None
        )
        self._model_identifier = model_identifier
        self._manager_limits = (
            limits_from_args(model_manager_args or {}) if use_model_manager else None
        )
        self._monitoring_transform = monitoring_transform
        self._handling: ExceptionHandling | None = None

    @classmethod
    def from_callable(
        cls,
        model_handler_provider: str | Callable[..., ModelHandlerLike],
        *,
        columns: str | Sequence[str] | None = None,
        output: OutputOption | None = None,
        keep: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> RunInference:
        """Create a transform for cross-language pipelines.

        A pipeline in another language sends rows, and receives rows with the predictions. They have a schema if
        the type of the predictions is known.

        Args:
            model_handler_provider: A class or function that returns the model handler, or the name of a handler
                of this library, such as ``"SklearnModelHandlerNumpy"``.
            columns: The names of the feature columns, as in ``RunInference``.
            output: The columns with the predictions, as in ``RunInference``. Types can be names:
                ``{"prediction": "number"}``, ``"integer"``, ``"string"``, ``"boolean"``, or ``"bytes"``.
            keep: The names of the columns that results have, too, as in ``RunInference``.
            **kwargs: Keyword arguments for ``model_handler_provider``. For a handler of this library, they are
                plain values, such as ``model_file_type="JOBLIB"``.

        Raises:
            OptionError: There is no handler with this name, or an option is invalid.
        """
        if isinstance(model_handler_provider, str):
            handler = create_handler(model_handler_provider, to_plain(kwargs))
        else:
            check_callable("model_handler_provider", model_handler_provider)
            handler = model_handler_provider(**kwargs)
        return cls(handler, columns=columns, output=parse_output(to_plain(output)), keep=keep)

    def with_exception_handling(
        self,
        *,
        exc_class: type[BaseException] | tuple[type[BaseException], ...] = Exception,
        use_subprocess: bool = False,
        threshold: float = 1,
        timeout: float | None = None,
    ) -> RunInference:
        """Return a copy that outputs dead letters for failing elements instead of failing the pipeline.

        The copy outputs a tuple: the PCollection of results, and a
        [RunInferenceDLQ][runinference.RunInferenceDLQ] with the dead letters. Only the failing elements of a batch
        become dead letters. All others get their predictions.

        Args:
            exc_class: Exception class, or tuple of classes, of the errors that become dead letters. Others fail
                the pipeline.
            use_subprocess: Whether the model runs in a subprocess, so that a crash fails a batch and not the
                worker. Each batch is then sent to the subprocess, and its results are sent back.
            threshold: Maximum share of elements that may fail, from 0 to 1. Above it, the pipeline fails.
            timeout: Maximum time in seconds to load a model and call it once. A call that exceeds the timeout is
                abandoned, and the model is reloaded. None for no limit.

        Raises:
            OptionError: A value is out of range, or ``use_subprocess`` is combined with a model that processes
                share.
        """
        handling = ExceptionHandling(exc_class, use_subprocess, threshold, timeout)
        if use_subprocess and self._model_handler.share_model_across_processes():
            raise OptionError(
                "use_subprocess=True loads the model in a subprocess of each worker process, so large_model and "
                "model_copies would have no effect. To fix this, leave one of them out."
            )
        return self._copy(_handling=handling)

    def with_monitoring_transform(self, monitoring_transform: beam.PTransform) -> RunInference:
        """Return a copy that also passes the predictions to another transform, before postprocessing.

        Args:
            monitoring_transform: A transform of the PCollection of predictions. Its output is ignored.
        """
        _check_monitoring_transform(monitoring_transform)
        return self._copy(_monitoring_transform=monitoring_transform)

    def annotations(self) -> dict[str, Any]:
        """Return the handler and model names for tools that display pipelines, identical in every run."""
        kind = type(self._model_handler)
        return {
            "model_handler": kind.__qualname__,
            "model_handler_type": f"{kind.__module__}.{kind.__qualname__}",
            "model_identifier": self._model_identifier or "",
            **super().annotations(),
        }

    def expand(self, examples: beam.PCollection) -> Any:
        handler, handling = self._model_handler, self._handling
        check_runner(examples.pipeline, [examples, *self._side_pcollections()])
        if (
            self._watch
        ):  # updates from a PCollection may load the same path again, or only name the model
            validate_model_updates(handler)
        if not isinstance(self._inference_args, AsSideInput):
            handler.validate_inference_args(self._inference_args)
        preprocessed, failed_preprocessing = apply_functions(
            examples, handler.get_preprocess_fns(), "Preprocess", handling
        )
        typed = self._copy(_model_handler=with_input_type(handler, preprocessed.element_type))
        predictions, failed = typed._infer(preprocessed)
        if self._takes_rows:
            predictions = pass_rows_through(predictions)
        if self._monitoring_transform is not None:
            _ = predictions | "BeamML_RunInference_MonitoringOutlet" >> self._monitoring_transform
        results, failed_postprocessing = apply_functions(
            predictions, handler.get_postprocess_fns(), "Postprocess", handling
        )
        if handling is None:
            return results
        if handling.threshold < 1:
            records = (results, failed, *failed_preprocessing, *failed_postprocessing)
            _ = records | FailureThreshold(handling.threshold)
        return results, RunInferenceDLQ(failed, failed_preprocessing, failed_postprocessing)

    def _infer(
        self, examples: beam.PCollection
    ) -> tuple[beam.PCollection, beam.PCollection | None]:
        """Return the predictions, and the dead letters if there are any."""
        handler, do_fn, element_type = self._model_handler, self._make_dofn(), examples.element_type
        windowing, side_inputs = examples.windowing, self._side_inputs()
        infer = beam.ParDo(do_fn, **side_inputs)
        if not isinstance(windowing.windowfn, _SINGLE_WINDOW):
            explode = beam.ParDo(ExplodeWindows(handler)).with_output_types(element_type)
            examples = examples | "BeamML_RunInference_ExplodeWindows" >> explode
        if isinstance(do_fn, BufferedInferDoFn):
            shard = beam.ParDo(AssignShardKey(handler))
            if windowing.windowfn.is_merging():
                # Elements wait in the global window, across sessions.
                shard = beam.ParDo(AssignShardKey(handler, keep_windows=True), **side_inputs)
                infer = InferInWindows(do_fn, windowing)
            shard = shard.with_output_types(tuple[str, Any])
            examples = examples | "BeamML_RunInference_Shard" >> shard
            if windowing.windowfn.is_merging():
                wait = beam.WindowInto(GlobalWindows())
                examples = examples | "BeamML_RunInference_GlobalWindow" >> wait
        infer = infer.with_output_types(result_type(handler, element_type))
        infer = infer.with_resource_hints(**handler.get_resource_hints())
        if self._handling is None:
            return examples | "BeamML_RunInference" >> infer, None
        outputs = examples | "BeamML_RunInference" >> infer.with_outputs(
            FAILED, main="results", allow_unknown_tags=False
        )
        return outputs.results, outputs[FAILED]

    def _make_dofn(self) -> InferDoFn | BufferedInferDoFn:
        """Choose how elements become batches: prebatched, within a bundle, or across bundles."""
        handler, config = self._model_handler, self._config()
        if handler.should_skip_batching():
            unsplit = returns_unsplit_results(handler)
            return InferDoFn(config, UnsplitBatches if unsplit else PrebatchedBatches)
        max_wait_secs = get_max_wait_secs(handler)
        if max_wait_secs is not None:
            return BufferedInferDoFn(config, max_wait_secs)
        return InferDoFn(config, BundleBatches)

    def _side_inputs(self) -> dict[str, Any]:
        update = {} if self._metadata is None else {"update": AsLatest(self._metadata)}
        arguments = self._inference_args
        return update | ({"arguments": arguments} if isinstance(arguments, AsSideInput) else {})

    def _side_pcollections(self) -> list[beam.PCollection]:
        arguments = self._inference_args
        pcolls = [self._metadata, arguments.pvalue if isinstance(arguments, AsSideInput) else None]
        return [pcoll for pcoll in pcolls if pcoll is not None]

    def _config(self) -> InferenceConfig:
        handler, handling, arguments = self._model_handler, self._handling, self._inference_args
        refreshed = self._metadata is not None or self._watch is not None
        per_key = bool(per_key_mappings(handler))
        managed = self._manager_limits is not None
        timeout = handling.timeout if handling else None
        if timeout is not None:
            handler = map_cached_handlers(handler, methodcaller("with_call_timeout", timeout))
        use_subprocess = bool(handling and handling.use_subprocess)
        models = ProcessShared(
            self._manager_limits or self._cache_limits(refreshed, per_key),
            "model manager" if managed else self._model_identifier,
        )
        name = self._model_identifier or models.name
        if self._model_identifier:
            name += f"/{fingerprint(handler, use_subprocess)}"
        placement: Placement = partial(default_placement, tag=name)
        if use_subprocess:
            placement = SubprocessModel
        session = SessionConfig(
            models=models,
            placement=placement,
            clock=self._clock,
            timeout=timeout,
            cache_prefix=f"{name}/" if managed or self._model_identifier else "",
            keep_until_bundle_end=refreshed and not per_key and not managed,
            dynamic_batching=self._allows_dynamic_batching(),
            end_with_step=use_subprocess,
            stop_if_not_loaded=not (refreshed or per_key or managed),
        )
        return InferenceConfig(
            handler=handler,
            inference_args=None if isinstance(arguments, AsSideInput) else arguments,
            namespace=self._metrics_namespace,
            errors=FailFastPolicy() if handling is None else DeadLetterPolicy(handling.exc_class),
            session=session,
            load_in_setup=not (refreshed or per_key or managed or timeout),
            watch=self._watch,
        )

    def _cache_limits(self, refreshed: bool, per_key: bool) -> CacheLimits:
        if per_key:
            return self._model_handler.cache_limits  # type: ignore[no-any-return]
        # At most the old and the new model, even if a bundle has many updates.
        return CacheLimits(max_models=2, wait_secs=0) if refreshed else CacheLimits()

    def _allows_dynamic_batching(self) -> bool:
        """Return whether threads may share a call: with equal arguments, in this process, without a timeout."""
        handler, handling = self._model_handler, self._handling
        if handler.should_skip_batching() or handler.share_model_across_processes():
            return False
        if handling is not None and (handling.use_subprocess or handling.timeout):
            return False
        if isinstance(self._inference_args, AsSideInput):
            return False
        return bool(getattr(handler, "may_join_threads", bool)())

    def _copy(self, **changes: Any) -> RunInference:
        changed = copy.copy(self)
        changed.__dict__.update(changes)
        return changed


def _check_types(
    inference_args: Any, metadata: Any, monitoring_transform: Any, namespace: Any, clock: Any
) -> None:
    """Raise `OptionError` if an option of ``RunInference`` has the wrong type."""
    if inference_args is not None and not isinstance(inference_args, AsSideInput):
        check_mapping("inference_args", inference_args)
    if metadata is not None and not isinstance(metadata, beam.PCollection):
        raise OptionError(
            "model_metadata_pcoll must be a PCollection of ModelMetadata or KeyModelPathMapping, but is a "
            f"{type(metadata).__name__}."
        )
    if monitoring_transform is not None:
        _check_monitoring_transform(monitoring_transform)
    if namespace is not None and not isinstance(namespace, str):
        raise OptionError(f"metrics_namespace must be a string, but is {namespace!r}.")
    if not callable(getattr(clock, "time_ns", None)):
        raise OptionError(f"clock must be an object with time_ns(), but is {clock!r}.")


def _check_one_limit(limits: CacheLimits) -> None:
    if limits != CacheLimits():
        raise OptionError(
            "use_model_manager=True replaces the limits max_models_per_worker_hint and max_model_bytes_per_worker "
            "of the KeyedModelHandler. To fix this, set them in model_manager_args instead."
        )


def _check_monitoring_transform(transform: Any) -> None:
    if not isinstance(transform, beam.PTransform):
        raise OptionError(
            f"monitoring_transform must be a PTransform, but is {transform!r}. To fix this, wrap a function in "
            "beam.Map."
        )
