"""Per-key models: one handler that combines several, each with its keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from runinference.caching.model_cache import CacheLimits, ModelCache
from runinference.collate.unsplit import returns_unsplit_results
from runinference.errors import (
    ElementError,
    OptionError,
    UnknownKeyError,
    missing_key_error,
    suggest,
)
from runinference.handlers.call import call_model
from runinference.handlers.model_handler import ExampleT, ModelHandler, ModelT, PredictionT

KeyT = TypeVar("KeyT")


class KeyModelMapping(Generic[KeyT, ExampleT, PredictionT, ModelT]):
    """A mapping of keys to a model: elements with one of ``keys`` use the handler ``mh``."""

    def __init__(self, keys: list[KeyT], mh: ModelHandler[ExampleT, PredictionT, ModelT]) -> None:
        self.keys = list(keys) if _is_list(keys) else keys  # other values are rejected later
        self.mh = mh


class PerKeyModelHandler(ModelHandler[Any, Any, Any]):
    """A handler of elements ``(key, example)``, which routes each to the handler of its key.

    Its model is a cache, which loads the model of each handler on first use.

    Attributes:
        mappings: The mappings of keys to handlers.
        cache_limits: The limits on the models that a process holds.
    """

    _metrics_namespace = "BeamML_KeyedModels"

    def __init__(
        self,
        mappings: Sequence[KeyModelMapping[Any, Any, Any, Any]],
        cache_limits: CacheLimits,
        keyed: Callable[[Any], Any],
    ) -> None:
        """Combine the handlers of several mappings; ``keyed`` wraps each so that it takes ``(key, example)``."""
        check_mappings(mappings)
        super().__init__()
        self.mappings = list(mappings)
        self.cache_limits = cache_limits
        self._keyed = keyed
        self._handlers: dict[Any, Any] | None = None

    def handler_for(self, key: Any) -> Any:
        """Return the handler of a key's model; see `KeyedModelHandler.handler_for`."""
        if self._handlers is None:
            self._handlers = self._handlers_by_key()
        try:
            return self._handlers[key]
        except KeyError:
            hint = suggest(str(key), map(str, self._handlers))
            raise UnknownKeyError(
                f"No model is mapped to the key {key!r}.{hint} Add it to the keys of a KeyModelMapping."
            ) from None
        except TypeError as error:
            raise ElementError(_not_hashable(key, error)) from None

    def _handlers_by_key(self) -> dict[Any, Any]:
        handlers = {}
        for mapping in self.mappings:
            handler = self._keyed(mapping.mh)
            if self.gives_whole_results():
                handler = handler.with_no_batching(whole_results=True)
            handlers.update(dict.fromkeys(mapping.keys, handler))
        return handlers

    def load_model(self) -> ModelCache:
        return ModelCache(self.cache_limits)

    def run_inference(
        self, batch: Any, model: ModelCache, inference_args: dict[str, Any] | None = None
    ) -> Any:
        """Run each model once on its part of a batch. Used by ``predict`` and by Beam's own transform."""
        if self.gives_whole_results():
            handler = self.handler_for(split_pair(batch)[0])
            return self._run_one(handler, batch, model, inference_args)
        indices: dict[Any, list[int]] = {}
        for index, element in enumerate(batch):
            indices.setdefault(self.handler_for(split_pair(element)[0]), []).append(index)
        results: dict[int, Any] = {}
        for handler, places in indices.items():
            part = [batch[index] for index in places]
            output = self._run_one(handler, part, model, inference_args)
            results.update(zip(places, output, strict=True))
        return [results[index] for index in range(len(batch))]

    def _run_one(
        self, handler: Any, batch: Any, cache: ModelCache, inference_args: dict[str, Any] | None
    ) -> Any:
        with cache.acquire(str(id(handler)), partial(_LoadedModel, handler)) as loaded:
            return call_model(handler, batch, loaded.model, inference_args)

    def with_no_batching(self, *, whole_results: bool = False) -> ModelHandler[Any, Any, Any]:
        changed: Any = super().with_no_batching(whole_results=whole_results)
        changed.mappings = [
            KeyModelMapping(mapping.keys, with_unsplit_results(mapping.mh, whole_results))
            for mapping in self.mappings
        ]
        changed._handlers = None
        return changed  # type: ignore[no-any-return]

    def validate_whole_results(self) -> None:
        for handler in self._each():
            getattr(handler, "validate_whole_results", lambda: None)()

    def get_resource_hints(self) -> dict[str, Any]:
        """Return the hints of all handlers; raise `OptionError` if two disagree."""
        hints: dict[str, Any] = {}
        for handler in self._each():
            for name, value in handler.get_resource_hints().items():
                if hints.setdefault(name, value) != value:
                    raise OptionError(
                        f"The handlers of a KeyedModelHandler set the resource hint {name} to {hints[name]!r} and "
                        f"{value!r}. To fix this, override KeyedModelHandler.get_resource_hints()."
                    )
        return hints

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        for handler in self._each():
            handler.validate_inference_args(inference_args)

    def update_model_path(self, model_path: str | None = None) -> None:
        if model_path is not None:
            raise OptionError(
                "One path cannot update per-key models. To fix this, emit a list of KeyModelPathMapping."
            )

    def set_environment_vars(self) -> None:
        for handler in self._each():
            handler.set_environment_vars()

    def may_join_threads(self) -> bool:
        return all(getattr(handler, "may_join_threads", bool)() for handler in self._each())

    def _each(self) -> list[Any]:
        return [mapping.mh for mapping in self.mappings]


class _LoadedModel:
    """A model in the cache of a `PerKeyModelHandler`."""

    n_bytes = 0

    def __init__(self, handler: Any) -> None:
        self.model = handler.load_model()

    def close(self) -> None:
        self.model = None


def with_unsplit_results(handler: Any, whole_results: bool) -> Any:
    """Return a handler with unsplit or split results. Handlers of other libraries are returned unchanged."""
    if returns_unsplit_results(handler) == whole_results or not isinstance(handler, ModelHandler):
        return handler
    return handler.with_no_batching(whole_results=whole_results)


def check_handler_object(handler: Any, wrapper: str) -> None:
    """Raise `OptionError` unless an object has the methods of a model handler."""
    if isinstance(handler, type):
        raise OptionError(
            f"{wrapper} got the class {handler.__name__}. To fix this, pass an instance: {handler.__name__}(...)."
        )
    if not all(hasattr(handler, name) for name in ("load_model", "run_inference")):
        raise OptionError(
            f"{wrapper} takes a model handler, such as SklearnModelHandlerNumpy(model_uri=...), but got a "
            f"{type(handler).__name__}."
        )


def reject_functions(unkeyed: Any, wrapper: str) -> None:
    """Raise `OptionError` if a handler has functions: when wrapped, they would not receive the key."""
    for functions, kind in (
        (unkeyed.get_preprocess_fns(), "preprocess"),
        (unkeyed.get_postprocess_fns(), "postprocess"),
    ):
        if functions:
            raise OptionError(
                f"{wrapper} wraps a {type(unkeyed).__name__} that already has {kind}ing functions. To fix this, "
                "add the function to the outer handler, where it receives key and example: "
                f"{wrapper}(handler).with_{kind}_fn(fn)."
            )


def check_mappings(mappings: Sequence[Any]) -> None:
    """Raise `OptionError` unless each key has one model, and each handler takes examples and has no functions."""
    if not mappings:
        raise OptionError(
            "KeyedModelHandler got an empty list. Give it a handler, or a list of KeyModelMapping(keys, handler)."
        )
    _check_variables(mappings)
    owners: dict[Any, int] = {}
    for number, mapping in enumerate(mappings):
        _check_mapping(number, mapping)
        for key in mapping.keys:
            try:
                owner = owners.get(key)
            except TypeError as error:
                raise OptionError(_not_hashable(key, error)) from None
            if owner is not None:
                raise OptionError(
                    f"The key {key!r} is in KeyModelMapping number {owner} and number {number}. Each key "
                    "has one model. To fix this, remove the key from one of them."
                )
            owners[key] = number


def _check_variables(mappings: Sequence[Any]) -> None:
    """Raise `OptionError` if two handlers set a variable to different values: they share the environment."""
    found: dict[str, str] = {}
    for mapping in mappings:
        for name, value in getattr(getattr(mapping, "mh", None), "_env_vars", {}).items():
            if found.setdefault(name, value) != value:
                raise OptionError(
                    f"Two handlers of a KeyedModelHandler set the environment variable {name} to different "
                    "values, but they share a process. To fix this, give them the same env_vars."
                )


def _check_mapping(number: int, mapping: Any) -> None:
    if not hasattr(mapping, "keys") or not hasattr(mapping, "mh"):
        raise OptionError(
            f"KeyedModelHandler takes a list of KeyModelMapping(keys, handler), but item {number} is a "
            f"{type(mapping).__name__}."
        )
    if not _is_list(mapping.keys) or not list(mapping.keys):
        raise OptionError(
            f"KeyModelMapping number {number} needs a list of one or more keys, but has {mapping.keys!r}."
        )
    check_handler_object(mapping.mh, f"KeyModelMapping number {number}")
    reject_functions(mapping.mh, "KeyedModelHandler")
    if mapping.mh.should_skip_batching():
        argument = "whole_results=True" if returns_unsplit_results(mapping.mh) else ""
        raise OptionError(
            "A handler inside a KeyModelMapping cannot skip batching for its keys alone. To fix this, skip it for "
            f"all keys: KeyedModelHandler([...]).with_no_batching({argument})."
        )


def _is_list(keys: Any) -> bool:
    return isinstance(keys, Iterable) and not isinstance(keys, (str, bytes))


def _not_hashable(key: Any, error: TypeError) -> str:
    return (
        f"A key must be hashable, but {repr(key)[:60]} of type {type(key).__name__} is not ({error}). To fix "
        "this, use a string, a number or a tuple of these, for example with "
        "beam.Map(lambda pair: (tuple(pair[0]), pair[1]))."
    )


def split_pair(element: Any) -> tuple[Any, Any]:
    """Return the key and the example of an element; raise `ElementError` unless it is a tuple of two items."""
    if not (isinstance(element, tuple) and len(element) == 2):
        raise missing_key_error(element)
    return element
