"""A handler that reads results from a store, and calls the model of another handler for the others."""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from apache_beam.metrics import Metrics

from runinference.caching.guarded_store import GuardedStore
from runinference.caching.options import CacheOptions
from runinference.caching.result_entry import TrustedTypes
from runinference.caching.shared_calls import SharedCalls
from runinference.collate.rows import get_shape, split_rows
from runinference.collate.unbatch import unbatch_results
from runinference.collate.unsplit import returns_unsplit_results
from runinference.errors import ModelLoadError, OptionError, PartialBatchError, PartialResult
from runinference.handlers.cached_batch import CachedBatch, CacheForm, PredictionForm
from runinference.handlers.call import OnPart, call_model, copy_containers, runs_in_parts
from runinference.handlers.compute_turn import compute_turn
from runinference.handlers.delegating import DelegatingHandler
from runinference.handlers.keyed import KeyedModelHandler, MaybeKeyedModelHandler
from runinference.handlers.model_fingerprint import fingerprint_results
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.stable_bytes import to_stable_bytes
from runinference.model_file import ModelFiles

_LOGGER = logging.getLogger(__name__)

#: Maximum number of attempts to load a model whose files are replaced while it is loaded.
_MAX_LOADS = 3


class CachedModel:
    """The model of a handler with a cache.

    Attributes:
        model: The model of the wrapped handler.
        digest: The digest of the model's files, or of the version.
        store: The store of results.
    """

    def __init__(self, model: Any, digest: bytes, store: GuardedStore) -> None:
        self.model, self.digest, self.store = model, digest, store
        self._warned: set[str] = set()
        self._fingerprints: WeakKeyDictionary[Any, tuple[int, bytes]] = WeakKeyDictionary()
        weakref.finalize(self, store.close)

    def get_fingerprint(self, handler: CachedModelHandler) -> bytes:
        """Return the fingerprint of a handler, which is computed once."""
        n_updates = handler.count_path_updates()
        known, fingerprint = self._fingerprints.get(handler, (-1, b""))
        if known != n_updates:
            fingerprint = handler.fingerprint()
            self._fingerprints[handler] = n_updates, fingerprint
        return fingerprint

    def warn_once(self, message: str) -> None:
        """Log a warning, unless the same one was logged before."""
        if message not in self._warned and len(self._warned) < _MAX_WARNINGS:
            self._warned.add(message)
            _LOGGER.warning(message)


_MAX_WARNINGS = 10


class CachedModelHandler(DelegatingHandler):
    """A handler whose results are stored, so that equal elements call the model once.

    Args:
        handler: The handler of the model.
        options: The options of the cache.

    Raises:
        OptionError: The model has no files, and there is no version; or the handler returns unsplit results or has
            a cache already.
    """

    def __init__(self, handler: ModelHandler[Any, Any, Any], options: CacheOptions) -> None:
        super().__init__(handler)
        self._options = options
        self._skips_batching = bool(handler.should_skip_batching())
        self._preprocess_fns = handler.get_preprocess_fns()
        self._postprocess_fns = handler.get_postprocess_fns()
        if isinstance(handler, CachedModelHandler):
            raise OptionError(
                "This handler has a cache already. To fix this, call with_cache once, with all options."
            )
        if returns_unsplit_results(handler):
            self.validate_whole_results()
        if options.version is None and handler.get_model_files() is None:
            raise OptionError(
                f"{type(handler).__name__} doesn't name the files of its model, so a cache can't detect that the "
                "model has changed. To fix this, pass version, for example with_cache(version='2026-11-28'), and "
                "change it with the model."
            )
        self.fingerprint()  # raises the error of an option that can't be pickled

    @property
    def loads_model_of_inner(self) -> bool:
        return False

    @property
    def inner(self) -> Any:
        """The handler of the model."""
        return self._unkeyed

    def load_model(self) -> CachedModel:
        """Load the model, and compute the digest of its files.

        Raises:
            ModelLoadError: The files are replaced each time while the model is loaded.
        """
        paths, version = self._unkeyed.get_model_files(), self._options.version
        if version is not None or not paths:
            digest = hashlib.sha256((version or "").encode()).digest()
            return CachedModel(self._unkeyed.load_model(), digest, self._options.open())
        for _ in range(_MAX_LOADS):
            files = ModelFiles(paths)
            digest = files.digest()
            model = self._unkeyed.load_model()
            if not files.have_changed():
                return CachedModel(model, digest, self._options.open())
        raise ModelLoadError(
            f"The files of the model {paths[0]!r} changed each of {_MAX_LOADS} times while it was loaded. To fix "
            "this, write new models to other paths, or rename them into place."
        )

    def run_inference(
        self, batch: Any, model: CachedModel, inference_args: dict[str, Any] | None = None
    ) -> Iterable[Any]:
        """Return the results of a batch, from the store or from the model.

        Args:
            batch: The examples.
            model: The object that ``load_model`` returned.
            inference_args: Keyword arguments for the model call, or None.
        """
        parts = self.run_in_parts(batch, model, inference_args)
        if any(part.error is not None for part in parts):
            raise PartialBatchError(parts).first_error
        return [result for part in parts for result in part.results or ()]

    def run_in_parts(
        self,
        batch: Any,
        model: CachedModel,
        inference_args: dict[str, Any] | None,
        on_part: OnPart | None = None,
    ) -> list[PartialResult]:
        def call(batch: Any, size: int, on_part: OnPart) -> list[PartialResult]:
            return self._call_inner(batch, size, model.model, inference_args, on_part)

        elements = _list_elements(batch)
        start = self._start_key(model, inference_args)
        cached = CachedBatch(
            batch=batch,
            elements=elements,
            start_key=start,
            form=self._unkeyed if isinstance(self._unkeyed, CacheForm) else PredictionForm(),
            store=model.store,
            trusted=TrustedTypes([*self._options.trusted_types, *self._unkeyed.get_result_types()]),
            max_age_secs=self._options.max_age_secs,
            warn=model.warn_once,
        )
        calls = SharedCalls(model.store, self._options.claim_secs, self._options.max_call_secs)
        try:
            parts = cached.run(calls, call, _pass_turn)
        finally:
            for metric, n in cached.count().items():
                if n:
                    Metrics.counter(self.get_metrics_namespace(), metric).inc(n)
        return parts

    def get_model_bytes(self, model: CachedModel) -> int:
        return super().get_model_bytes(model.model)

    def update_model_paths(self, model: CachedModel, model_paths: Any = None) -> None:
        self._unkeyed.update_model_paths(model.model, model_paths)

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        options: Mapping[str, Any] = self._unkeyed.batch_elements_kwargs()
        return options

    def validate_whole_results(self) -> None:
        raise OptionError(
            "A cache stores one result per element, and doesn't support whole_results=True. To fix this, leave "
            "whole_results out, or leave with_cache out."
        )

    def with_call_timeout(self, seconds: float) -> CachedModelHandler:
        """Return a copy for calls that are abandoned after a time limit, so that others don't wait for them."""
        claim_secs = min(self._options.claim_secs, seconds / 4)
        options = replace(self._options, claim_secs=claim_secs, max_call_secs=seconds)
        return self._replace(_options=options)

    def fingerprint(self) -> bytes:
        """Return a hash of the options and the code that results depend on."""
        return fingerprint_results(self._unkeyed, self._options.version is None)

    def _start_key(self, model: CachedModel, inference_args: dict[str, Any] | None) -> Any:
        """Return a hash of the cache key's parts except the element, or None if an argument can't be pickled."""
        try:
            arguments = to_stable_bytes(sorted((inference_args or {}).items()))
        except Exception:
            return None
        start = hashlib.sha256(model.digest + model.get_fingerprint(self))
        start.update(hashlib.sha256(arguments).digest())
        return start

    def _call_inner(
        self,
        batch: Any,
        size: int,
        model: Any,
        inference_args: dict[str, Any] | None,
        on_part: OnPart,
    ) -> list[PartialResult]:
        """Call the model on some elements, and report each part that is complete."""
        handler, arguments = self._unkeyed, copy_containers(inference_args)
        if runs_in_parts(handler):
            return handler.run_in_parts(batch, model, arguments, on_part)  # type: ignore[no-any-return]
        output = call_model(handler, batch, model, arguments)
        part = PartialResult(size, unbatch_results(output, size, self._list_output), None)
        on_part(0, part)
        return [part]


def with_cache(handler: Any, options: CacheOptions) -> Any:
    """Return a handler with a cache. The keys of elements aren't part of the cache key."""
    if isinstance(handler, (KeyedModelHandler, MaybeKeyedModelHandler)):
        cached = handler.map_inner(partial(with_cache, options=options))
        if returns_unsplit_results(handler):
            cached.validate_whole_results()
        return cached
    if not isinstance(handler, ModelHandler):
        raise OptionError(
            f"with_cache needs handlers of this library, but there is a {type(handler).__name__}. To fix this, "
            "derive its class from runinference.ModelHandler."
        )
    return CachedModelHandler(handler, options)


ModelHandler._cache_wrapper = with_cache


def map_cached_handlers(handler: Any, function: Callable[[CachedModelHandler], Any]) -> Any:
    """Return a handler with ``function(handler)`` instead of each handler with a cache in it."""
    if isinstance(handler, CachedModelHandler):
        return function(handler)
    if isinstance(handler, (KeyedModelHandler, MaybeKeyedModelHandler)):
        return handler.map_inner(partial(map_cached_handlers, function=function))
    return handler


def _list_elements(batch: Any) -> list[Any]:
    """Return the elements of a batch, which can be an array of rows or a table."""
    if isinstance(batch, (list, tuple)):
        return [*batch]
    if get_shape(batch):
        return split_rows(batch)
    raise OptionError(
        f"A cache needs lists of examples or arrays of rows, but an element of with_no_batching is a "
        f"{type(batch).__name__}. To fix this, leave with_no_batching or with_cache out."
    )


def _pass_turn() -> None:
    """Let the next call of this thread's bundle compute, because this call may have to wait for its result."""
    with compute_turn():
        pass
