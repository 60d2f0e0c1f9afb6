"""A model for each key: several handlers, each for keys of its own, as one handler of pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from runinference.handlers.model_handler import ExampleT, ModelHandler, ModelT, PredictionT

KeyT = TypeVar("KeyT")


class KeyModelMapping(Generic[KeyT, ExampleT, PredictionT, ModelT]):
    """The model of some keys: examples with one of ``keys`` go through the handler ``mh``."""

    def __init__(self, keys: list[KeyT], mh: ModelHandler[ExampleT, PredictionT, ModelT]) -> None:
        self.keys = keys if isinstance(keys, str) else list(keys)  # a text is refused later
        self.mh = mh


class PerKeyModelHandler(ModelHandler[Any, Any, Any]):
    """The handlers of several mappings, as one: what a ``KeyedModelHandler`` holds where keys have models.

    Its batches are pairs of a key and an example. Its model is a cache, which loads each when it is first used.

    Attributes:
        mappings: Which keys have which handler.
        room: How many models a process may hold.
    """

    def __init__(
        self,
        mappings: Sequence[KeyModelMapping[Any, Any, Any, Any]],
        room: CacheLimits,
        keyed: Callable[[Any], Any],
    ) -> None:
        """Takes mappings, room, and what makes a handler of pairs of a handler of examples.

        Raises:
            OptionError: A handler has functions of its own, a key has two models, or a mapping has no key.
        """
        check_mappings(mappings)
        super().__init__()
        self.mappings = list(mappings)
        self.room = room
        self._keyed = keyed
        self._handlers: dict[Any, Any] | None = None

    def handler_for(self, key: Any) -> Any:
        """The handler of a key's model, for examples with keys.

        Raises:
            UnknownKeyError: No model is mapped to the key.
            ElementError: The key cannot be looked up, because it can change, such as a list.
        """
        if self._handlers is None:
            handlers = {}
            for mapping in self.mappings:
                inside = self._keyed(mapping.mh)
                if self.gives_whole_results():
                    inside = inside.with_no_batching(whole_results=True)
                handlers.update(dict.fromkeys(mapping.keys, inside))
            self._handlers = handlers
        try:
            return self._handlers[key]
        except KeyError:
            near = suggest(str(key), map(str, self._handlers))
            raise UnknownKeyError(
                f"No model is mapped to the key {key!r}.{near} Add it to the keys of a KeyModelMapping."
            ) from None
        except TypeError as error:
            raise ElementError(_no_hash(key, error)) from None

    def load_model(self) -> ModelCache:
        return ModelCache(self.room)

    def run_inference(
        self, batch: Any, model: ModelCache, inference_args: dict[str, Any] | None = None
    ) -> Any:
        """Results of several models, each called once; the way of ``predict`` and of Beam's own transform."""
        if self.gives_whole_results():
            return self._called(self.handler_for(pair(batch)[0]), batch, model, inference_args)
        numbers: dict[Any, list[int]] = {}
        for number, element in enumerate(batch):
            numbers.setdefault(self.handler_for(pair(element)[0]), []).append(number)
        results: dict[int, Any] = {}
        for handler, own in numbers.items():
            found = self._called(handler, [batch[n] for n in own], model, inference_args)
            results.update(zip(own, found, strict=True))
        return [results[number] for number in range(len(batch))]

    def _called(
        self, handler: Any, batch: Any, cache: ModelCache, inference_args: dict[str, Any] | None
    ) -> Any:
        with cache.lease(str(id(handler)), partial(_Lent.load, handler)) as lent:
            return handler.run_inference(batch, lent.model, inference_args)

    def with_no_batching(self, *, whole_results: bool = False) -> ModelHandler[Any, Any, Any]:
        changed: Any = super().with_no_batching(whole_results=whole_results)
        changed.mappings = [
            KeyModelMapping(mapping.keys, wholly(mapping.mh, whole_results))
            for mapping in self.mappings
        ]
        changed._handlers = None
        return changed  # type: ignore[no-any-return]

    def validate_whole_results(self) -> None:
        for handler in self._each():
            getattr(handler, "validate_whole_results", lambda: None)()

    def get_num_bytes(self, batch: Any) -> int:
        if self.gives_whole_results():
            return int(self.handler_for(pair(batch)[0]).get_num_bytes(batch))
        return sum(self.handler_for(element[0]).get_num_bytes([element]) for element in batch)

    def get_metrics_namespace(self) -> str:
        return "BeamML_KeyedModels"

    def get_resource_hints(self) -> dict[str, Any]:
        """The hints of all handlers.

        Raises:
            OptionError: Two contradict each other.
        """
        hints: dict[str, Any] = {}
        for handler in self._each():
            for name, value in handler.get_resource_hints().items():
                if hints.setdefault(name, value) != value:
                    raise OptionError(
                        f"The handlers of a KeyedModelHandler give the resource hint {name} as {hints[name]!r} "
                        f"and {value!r}. Override KeyedModelHandler.get_resource_hints() to say which holds."
                    )
        return hints

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        for handler in self._each():
            handler.validate_inference_args(inference_args)

    def update_model_path(self, model_path: str | None = None) -> None:
        if model_path is not None:
            raise OptionError(
                "One path cannot update the models of several keys: emit a list of KeyModelPathMapping."
            )

    def set_environment_vars(self) -> None:
        for handler in self._each():
            handler.set_environment_vars()

    def may_join_threads(self) -> bool:
        return all(getattr(handler, "may_join_threads", bool)() for handler in self._each())

    def _each(self) -> list[Any]:
        return [mapping.mh for mapping in self.mappings]


class _Lent:
    """A model on a cache."""

    n_bytes = 0

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def load(cls, handler: Any) -> _Lent:
        return cls(handler.load_model())

    def close(self) -> None:
        self.model = None


def wholly(handler: Any, whole_results: bool) -> Any:
    """A handler that makes whole results, or none; one of Beam's makes whatever it makes."""
    if returns_unsplit_results(handler) == whole_results or not isinstance(handler, ModelHandler):
        return handler
    return handler.with_no_batching(whole_results=whole_results)


def refuse_functions(unkeyed: Any, wrapper: str) -> None:
    """Raises for a handler that already has functions: applied inside, they would not see the key."""
    for functions, kind in (
        (unkeyed.get_preprocess_fns(), "preprocess"),
        (unkeyed.get_postprocess_fns(), "postprocess"),
    ):
        if functions:
            raise OptionError(
                f"{wrapper} wraps a {type(unkeyed).__name__} that already has {kind}ing. Add the function to "
                f"the outer handler instead, where it sees key and example: {wrapper}(handler)"
                f".with_{kind}_fn(fn)."
            )


def check_mappings(mappings: Sequence[Any]) -> None:
    """Raises unless each key has one model, and each handler is one for examples without functions."""
    if not mappings:
        raise OptionError(
            "KeyedModelHandler got an empty list. Give it a handler, or a list of KeyModelMapping(keys, handler)."
        )
    taken: dict[Any, int] = {}
    for number, mapping in enumerate(mappings):
        if not hasattr(mapping, "keys") or not hasattr(mapping, "mh"):
            raise OptionError(
                f"KeyedModelHandler takes a list of KeyModelMapping(keys, handler), and item {number} is a "
                f"{type(mapping).__name__}."
            )
        if isinstance(mapping.keys, str) or not list(mapping.keys):
            raise OptionError(
                f"KeyModelMapping number {number} needs a list of one or more keys, has {mapping.keys!r}."
            )
        for key in mapping.keys:
            try:
                hash(key)
            except TypeError as error:
                raise OptionError(_no_hash(key, error)) from None
            if key in taken:
                raise OptionError(
                    f"The key {key!r} is in KeyModelMapping number {taken[key]} and number {number}. Each key has "
                    "one model: remove it from one of them."
                )
            taken[key] = number
        refuse_functions(mapping.mh, "KeyedModelHandler")
        if mapping.mh.should_skip_batching():
            whole = "whole_results=True" if returns_unsplit_results(mapping.mh) else ""
            raise OptionError(
                "A handler inside a KeyModelMapping cannot skip batching for its keys alone. Say it for all: "
                f"KeyedModelHandler([...]).with_no_batching({whole})."
            )


def _no_hash(key: Any, error: TypeError) -> str:
    return (
        f"A key must not be able to change, and {repr(key)[:60]} of type {type(key).__name__} can ({error}). "
        "Make it a text, a number or a tuple of such, for example with "
        "beam.Map(lambda pair: (tuple(pair[0]), pair[1]))."
    )


def pair(element: Any) -> tuple[Any, Any]:
    """A key and what it belongs to.

    Raises:
        ElementError: It is no pair.
    """
    if not (isinstance(element, tuple) and len(element) == 2):
        raise missing_key_error(element)
    return element
