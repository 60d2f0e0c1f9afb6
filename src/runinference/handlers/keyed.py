"""Handlers for elements with a key, which stays with the element and its result."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from typing_extensions import Self

from runinference.caching.model_cache import CacheLimits
from runinference.checks import check_int
from runinference.collate.unbatch import SplitRows, unbatch_results
from runinference.collate.unsplit import returns_unsplit_results, run_unsplit
from runinference.errors import ElementError, OptionError, PartialResult
from runinference.handlers.call import OnPart, call_model, run_parts
from runinference.handlers.delegating import DelegatingHandler
from runinference.handlers.key_mapping import (
    KeyModelMapping,
    check_handler_object,
    reject_functions,
)
from runinference.handlers.model_handler import ModelHandler, ModelHandlerLike
from runinference.handlers.model_per_key import (
    PerKeyModelHandler,
    split_pair,
    with_unsplit_results,
)
from runinference.handlers.model_update import KeyModelPathMapping


class _KeyWrapper(DelegatingHandler):
    """A handler that adds keys to another one, and delegates everything else to it."""

    def __init__(self, unkeyed: ModelHandlerLike) -> None:
        """Wrap a handler for examples without keys.

        Args:
            unkeyed: The handler: a ``ModelHandler``, or any object with the methods of Beam's ``ModelHandler``.

        Raises:
            OptionError: ``unkeyed`` is not a handler, or has preprocessing or postprocessing functions.
        """
        check_handler_object(unkeyed, type(self).__name__)
        reject_functions(unkeyed, type(self).__name__)
        super().__init__(unkeyed)
        self._per_key = isinstance(unkeyed, PerKeyModelHandler)

    def run_in_parts(
        self,
        batch: Sequence[Any],
        model: Any,
        inference_args: dict[str, Any] | None,
        on_part: OnPart | None = None,
    ) -> list[PartialResult]:
        if not self._are_keyed(batch):
            return self._unkeyed.run_in_parts(batch, model, inference_args, on_part)  # type: ignore[no-any-return]
        keys, examples = _unzip(batch)

        def finish(start: int, part: PartialResult) -> PartialResult:
            return _add_keys(part, keys[start : start + part.size])

        return run_parts(self._unkeyed, examples, model, inference_args, on_part, finish)

    def map_inner(self, function: Callable[[Any], Any]) -> Self:
        if not self._per_key:
            return super().map_inner(function)
        return self._replace(_unkeyed=self._unkeyed.map_inner(function))

    def group_by_model(
        self, examples: Iterable[Any], model: Any
    ) -> Iterable[tuple[ModelHandlerLike, Iterable[tuple[int | list[int], Any]]]]:
        if not self._per_key:
            return super().group_by_model(examples, model)
        if self.should_skip_batching() and not self.gives_whole_results():
            return self._unkeyed.group_rows_by_model(examples, model)  # type: ignore[no-any-return]
        return self._unkeyed.group_by_model(examples, model)  # type: ignore[no-any-return]

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        return {
            name: partial(_apply_to_example, value)
            if callable(value) and name in _PER_EXAMPLE
            else value
            for name, value in self._unkeyed.batch_elements_kwargs().items()
        }

    def update_model_paths(
        self, model: Any, model_paths: Sequence[KeyModelPathMapping[Any]] | None = None
    ) -> None:
        if model_paths and not self._per_key:
            raise OptionError(
                "A list of KeyModelPathMapping cannot update a handler with one model for all keys. To fix this, "
                "emit a ModelMetadata, or give KeyedModelHandler a list of KeyModelMapping."
            )
        self._unkeyed.update_model_paths(model, model_paths)

    def should_skip_batching(self) -> bool:
        return bool(self._unkeyed.should_skip_batching()) or super().should_skip_batching()

    def gives_whole_results(self) -> bool:
        return super().gives_whole_results() or returns_unsplit_results(self._unkeyed)

    def validate_whole_results(self) -> None:
        getattr(self._unkeyed, "validate_whole_results", lambda: None)()

    def with_no_batching(self, *, whole_results: bool = False) -> ModelHandler[Any, Any, Any]:
        changed: Any = super().with_no_batching(whole_results=whole_results)
        changed._unkeyed = with_unsplit_results(self._unkeyed, whole_results)
        return changed  # type: ignore[no-any-return]

    def _are_keyed(self, batch: Sequence[Any]) -> bool:
        """Return whether the elements of a batch have keys; raise `ElementError` if some lack theirs."""
        raise NotImplementedError

    def _run_keyed(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None
    ) -> list[tuple[Any, Any]]:
        keys, examples = _unzip(batch)
        output = call_model(self._unkeyed, examples, model, inference_args)
        results = unbatch_results(output, len(keys), self._list_output)
        return SplitRows(zip(keys, results, strict=True))

    def _run_keyed_unsplit(
        self, element: Any, model: Any, inference_args: dict[str, Any] | None
    ) -> tuple[Any, Any]:
        key, array = split_pair(element)
        return key, run_unsplit(partial(call_model, self._unkeyed), array, model, inference_args)


class KeyedModelHandler(_KeyWrapper):
    """A handler that takes ``(key, example)`` and returns ``(key, prediction)``.

    It has one model for all keys, or per-key models.

    >>> from runinference import samples
    >>> from runinference.sklearn_inference import ModelFileType, SklearnModelHandlerNumpy
    >>> regression = SklearnModelHandlerNumpy(samples.digits_classifier())
    >>> forest = SklearnModelHandlerNumpy(samples.digits_forest(), ModelFileType.JOBLIB)
    >>> images, labels = samples.held_out_digits()
    >>> [(key, result)] = KeyedModelHandler(regression).predict([("first", images[0])])
    >>> key, int(result.inference)
    ('first', 1)
    >>> keyed = KeyedModelHandler([KeyModelMapping(["a"], regression), KeyModelMapping(["b"], forest)])
    >>> [key for key, result in keyed.predict([("a", images[0]), ("b", images[0])])]
    ['a', 'b']
    """

    def __init__(
        self,
        unkeyed: ModelHandlerLike | Sequence[KeyModelMapping[Any, Any, Any, Any]],
        max_models_per_worker_hint: int | None = None,
        *,
        max_model_bytes_per_worker: int | None = None,
    ) -> None:
        """Wrap a handler for examples without keys, or several handlers with their keys.

        Args:
            unkeyed: A handler for all keys, or a list of ``KeyModelMapping`` for per-key models. Batches are
                formed per model, not per key.
            max_models_per_worker_hint: With per-key models, the maximum number of models in a worker process. The
                least recently used model is evicted first. By default, there is no limit.
            max_model_bytes_per_worker: With per-key models, the maximum size in bytes of all models in a worker
                process. By default, there is no limit.

        Raises:
            OptionError: A wrapped handler has preprocessing or postprocessing functions, a key has two models,
                a mapping has no key, or a limit is set for one model.
        """
        for name, limit in (
            ("max_models_per_worker_hint", max_models_per_worker_hint),
            ("max_model_bytes_per_worker", max_model_bytes_per_worker),
        ):
            if limit is not None:
                check_int(name, limit)
        limits = CacheLimits(max_models_per_worker_hint, max_model_bytes_per_worker)
        handler: Any = unkeyed
        if isinstance(unkeyed, (list, tuple)):
            handler = PerKeyModelHandler(unkeyed, limits, KeyedModelHandler)
        elif limits != CacheLimits():
            raise OptionError(
                "max_models_per_worker_hint and max_model_bytes_per_worker apply to per-key models only. To use "
                "them, give KeyedModelHandler a list of KeyModelMapping."
            )
        super().__init__(handler)

    @property
    def mappings(self) -> list[KeyModelMapping[Any, Any, Any, Any]]:
        """The mappings of keys to handlers; empty if one handler serves all keys."""
        return self._unkeyed.mappings if self._per_key else []

    @property
    def cache_limits(self) -> CacheLimits:
        """The limits on the models in a worker process."""
        return self._unkeyed.cache_limits if self._per_key else CacheLimits()

    def handler_for(self, key: Hashable) -> KeyedModelHandler:
        """Return the handler for a key's model. It takes elements with keys.

        Args:
            key: A hashable key. With one model for all keys, any key.

        Raises:
            UnknownKeyError: No model is mapped to the key.
            ElementError: The key is not hashable.
        """
        return self._unkeyed.model_for(key).handler if self._per_key else self

    def inner_handlers(self) -> list[ModelHandlerLike]:
        return [mapping.mh for mapping in self.mappings] or [self._unkeyed]

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[Any]:
        if self._per_key:
            return call_model(self._unkeyed, batch, model, inference_args)  # type: ignore[no-any-return]
        if self.gives_whole_results():
            return self._run_keyed_unsplit(batch, model, inference_args)
        self._are_keyed(batch)
        return self._run_keyed(batch, model, inference_args)

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        examples = split_pair(batch)[1] if self.gives_whole_results() else _unzip(batch)[1]
        return super().get_num_bytes(examples)

    def _are_keyed(self, batch: Sequence[Any]) -> bool:
        if set(map(type, batch)) != {tuple} or set(map(len, batch)) != {2}:
            for element in batch:
                split_pair(element)
        return True


class MaybeKeyedModelHandler(_KeyWrapper):
    """A handler that takes examples with or without keys, and returns predictions of the same form.

    Examples must not be tuples, because a tuple is interpreted as ``(key, example)``.
    """

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[Any]:
        if self.gives_whole_results():
            keyed = isinstance(batch, tuple)
            run: Any = (
                self._run_keyed_unsplit
                if keyed
                else partial(run_unsplit, partial(call_model, self._unkeyed))
            )
            return run(batch, model, inference_args)  # type: ignore[no-any-return]
        if self._are_keyed(batch):
            return self._run_keyed(batch, model, inference_args)
        output = call_model(self._unkeyed, batch, model, inference_args)
        return unbatch_results(output, len(batch), self._list_output)

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        unsplit = self.gives_whole_results()
        return super().get_num_bytes(_drop_key(batch) if unsplit else [*map(_drop_key, batch)])

    def _are_keyed(self, batch: Sequence[Any]) -> bool:
        keyed = [isinstance(element, tuple) for element in batch]
        if any(keyed) and not all(keyed):
            raise ElementError(
                f"{sum(keyed)} of {len(batch)} elements of a batch are tuples (key, example), and the others have "
                "no key. To fix this, give MaybeKeyedModelHandler one kind, for example by adding the key None."
            )
        return all(keyed)


def per_key_mappings(handler: Any) -> list[KeyModelMapping[Any, Any, Any, Any]]:
    """Return the mappings of a handler with per-key models; an empty list for any other handler."""
    per_key = per_key_handler(handler)
    return per_key.mappings if per_key else []


def per_key_handler(handler: Any) -> PerKeyModelHandler | None:
    """Return the per-key models of a ``KeyedModelHandler``; None for any other handler."""
    if isinstance(handler, KeyedModelHandler) and isinstance(handler._unkeyed, PerKeyModelHandler):
        return handler._unkeyed
    return None


#: Batching options that are functions of one example.
_PER_EXAMPLE = ("element_size_fn", "length_fn")


def _apply_to_example(function: Callable[[Any], Any], element: Any) -> Any:
    return function(_drop_key(element))


def _drop_key(element: Any) -> Any:
    return element[1] if isinstance(element, tuple) and len(element) == 2 else element


def _unzip(batch: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    return [key for key, _ in batch], [example for _, example in batch]


def _add_keys(part: PartialResult, keys: list[Any]) -> PartialResult:
    if part.results is None:
        return part
    return part._replace(results=list(zip(keys, part.results, strict=True)))
