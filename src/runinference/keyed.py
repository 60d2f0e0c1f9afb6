"""Handlers for examples that carry a key: the key goes around the model and comes back with the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

from runinference.errors import (
    ElementError,
    OptionError,
    Part,
    UnknownKeyError,
    nearest,
    parts_of,
    tell_parts,
)
from runinference.handler import ModelHandler
from runinference.shelf import Room, Shelf
from runinference.splitting import split
from runinference.whole import gives_whole_results, run_whole

KeyT = TypeVar("KeyT")
ExampleT = TypeVar("ExampleT")
PredictionT = TypeVar("PredictionT")
ModelT = TypeVar("ModelT")


class _Around(ModelHandler[Any, Any, Any]):
    """Asks the handler inside for everything that has nothing to do with keys."""

    def __init__(self, unkeyed: Any) -> None:
        refuse_functions(unkeyed, type(self).__name__)
        self._unkeyed = unkeyed
        self._env_vars = getattr(unkeyed, "_env_vars", {})
        self._max_batch_bytes = getattr(unkeyed, "_max_batch_bytes", None)

    @property
    def tells_parts(self) -> bool:
        """Whether an error of ``run_inference`` tells what became of the parts of the batch."""
        return bool(getattr(self._unkeyed, "tells_parts", False))

    def load_model(self) -> Any:
        return self._unkeyed.load_model()

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        return int(self._unkeyed.get_num_bytes(batch))

    def get_metrics_namespace(self) -> str:
        return str(self._unkeyed.get_metrics_namespace())

    def get_resource_hints(self) -> dict[str, Any]:
        return dict(self._unkeyed.get_resource_hints())

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        return {
            name: _of_example(value) if callable(value) and name in _PER_EXAMPLE else value
            for name, value in self._unkeyed.batch_elements_kwargs().items()
        }

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        self._unkeyed.validate_inference_args(inference_args)

    def update_model_path(self, model_path: str | None = None) -> None:
        self._unkeyed.update_model_path(model_path=model_path)

    def should_skip_batching(self) -> bool:
        return bool(self._unkeyed.should_skip_batching())

    def gives_whole_results(self) -> bool:
        return gives_whole_results(self._unkeyed)

    def validate_whole_results(self) -> None:
        for handler in self.handlers_inside():
            getattr(handler, "validate_whole_results", lambda: None)()

    def with_no_batching(self, *, whole_results: bool = False) -> ModelHandler[Any, Any, Any]:
        changed: Any = super().with_no_batching(whole_results=whole_results)
        changed._set_inside(partial(_whole, whole_results=whole_results))
        return changed  # type: ignore[no-any-return]

    def handlers_inside(self) -> list[Any]:
        """The handler inside, or those of all keys."""
        return [self._unkeyed]

    def _set_inside(self, change: Callable[[Any], Any]) -> None:
        self._unkeyed = change(self._unkeyed)

    def set_environment_vars(self) -> None:
        self._unkeyed.set_environment_vars()

    def share_model_across_processes(self) -> bool:
        return bool(self._unkeyed.share_model_across_processes())

    def model_copies(self) -> int:
        return int(self._unkeyed.model_copies())

    def may_join_threads(self) -> bool:
        return bool(getattr(self._unkeyed, "may_join_threads", bool)())

    def override_metrics(self, metrics_namespace: str = "") -> bool:
        return bool(self._unkeyed.override_metrics(metrics_namespace))

    def should_garbage_collect_on_timeout(self) -> bool:
        return bool(self._unkeyed.should_garbage_collect_on_timeout())

    def _run_whole(
        self, element: Any, model: Any, inference_args: dict[str, Any] | None
    ) -> tuple[Any, Any]:
        """The result of one element, a key and an array of rows: the key, and the result for all rows."""
        key, rows = _pair(element)
        return key, run_whole(self._unkeyed, rows, model, inference_args)

    def _run_unkeyed(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None
    ) -> list[tuple[Any, Any]]:
        keys = [key for key, _ in batch]
        examples = [example for _, example in batch]
        try:
            output = self._unkeyed.run_inference(examples, model, inference_args)
        except Exception as error:
            if parts := parts_of(error):
                tell_parts(error, _keyed_parts(keys, parts))
            raise
        return list(zip(keys, split(output, len(keys)), strict=True))


class KeyModelMapping(Generic[KeyT, ExampleT, PredictionT, ModelT]):
    """The model of some keys: examples with one of ``keys`` go through the handler ``mh``."""

    def __init__(self, keys: list[KeyT], mh: ModelHandler[ExampleT, PredictionT, ModelT]) -> None:
        self.keys = keys if isinstance(keys, str) else list(keys)  # a text is refused later
        self.mh = mh


class KeyedModelHandler(_Around):
    """Takes ``(key, example)`` and gives ``(key, prediction)``, with one model for all keys or several.

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

    keeps_keys = True

    def __init__(
        self,
        unkeyed: Any,
        max_models_per_worker_hint: int | None = None,
        *,
        max_model_bytes_per_worker: int | None = None,
    ) -> None:
        """Wraps a handler for examples without keys, or several, each for keys of its own.

        Args:
            unkeyed: A handler, or a list of ``KeyModelMapping``. Batches are cut by model, not by key.
            max_models_per_worker_hint: With several models: how many a process holds at a time. The least
                recently used makes room.
            max_model_bytes_per_worker: With several models: how many bytes of models a process holds.

        Raises:
            OptionError: A handler inside has functions of its own, a key has two models, or a mapping has no
                key.
        """
        self.mappings: list[KeyModelMapping[Any, Any, Any, Any]] = []
        self._single_model = not isinstance(unkeyed, (list, tuple))
        self.max_models = max_models_per_worker_hint
        self.max_model_bytes = max_model_bytes_per_worker
        if self._single_model:
            if max_models_per_worker_hint or max_model_bytes_per_worker:
                raise OptionError(
                    "max_models_per_worker_hint and max_model_bytes_per_worker are for several models: give "
                    "KeyedModelHandler a list of KeyModelMapping."
                )
            super().__init__(unkeyed)
            return
        self.mappings = list(unkeyed)
        self._env_vars = {}
        check_mappings(self.mappings)
        self.room  # noqa: B018 - raises for a room of nothing

    @property
    def room(self) -> Room:
        """How many models a process may hold."""
        return Room(self.max_models, self.max_model_bytes)

    def handler_for(self, key: Any) -> KeyedModelHandler:
        """The handler of a key's model, for examples with keys.

        Raises:
            UnknownKeyError: No model is mapped to the key.
            ElementError: The key cannot be looked up, because it can change, such as a list.
        """
        if self._single_model:
            return self
        if self._handlers is None:
            handlers = {}
            for mapping in self.mappings:
                inside: Any = KeyedModelHandler(mapping.mh)
                if self.gives_whole_results():
                    inside = inside.with_no_batching(whole_results=True)
                handlers.update(dict.fromkeys(mapping.keys, inside))
            self._handlers = handlers
        try:
            return self._handlers[key]
        except KeyError:
            near = nearest(str(key), map(str, self._handlers))
            raise UnknownKeyError(
                f"No model is mapped to the key {key!r}.{near} Add it to the keys of a KeyModelMapping."
            ) from None
        except TypeError as error:
            raise ElementError(_no_hash(key, error)) from None

    _handlers: dict[Any, KeyedModelHandler] | None = None

    def load_model(self) -> Any:
        """The model; where there are several, a shelf that loads each when it is first used."""
        return super().load_model() if self._single_model else Shelf(self.room)

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[Any]:
        if self.gives_whole_results():
            if self._single_model:
                return self._run_whole(batch, model, inference_args)
            handler = self.handler_for(_pair(batch)[0])
            with model.lease(str(id(handler)), partial(_Lent.load, handler)) as lent:
                return handler._run_whole(batch, lent.model, inference_args)
        for element in batch:
            _pair(element)
        if self._single_model:
            return self._run_unkeyed(batch, model, inference_args)
        return self._run_each(batch, model, inference_args)

    def _run_each(
        self, batch: Sequence[Any], shelf: Shelf, inference_args: dict[str, Any] | None
    ) -> list[Any]:
        """Results of several models, each called once; the way of ``predict`` and of Beam's own transform."""
        numbers: dict[KeyedModelHandler, list[int]] = {}
        for number, (key, _) in enumerate(batch):
            numbers.setdefault(self.handler_for(key), []).append(number)
        results: dict[int, Any] = {}
        for handler, own in numbers.items():
            with shelf.lease(str(id(handler)), partial(_Lent.load, handler)) as lent:
                found = handler.run_inference([batch[n] for n in own], lent.model, inference_args)
                results.update(zip(own, found, strict=True))
        return [results[number] for number in range(len(batch))]

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        if self.gives_whole_results():
            key, rows = _pair(batch)
            return int(self.handler_for(key)._unkeyed.get_num_bytes(rows))
        if self._single_model:
            return super().get_num_bytes([example for _, example in batch])
        return sum(self.handler_for(element[0]).get_num_bytes([element]) for element in batch)

    def get_metrics_namespace(self) -> str:
        return super().get_metrics_namespace() if self._single_model else "BeamML_KeyedModels"

    def get_resource_hints(self) -> dict[str, Any]:
        return super().get_resource_hints() if self._single_model else self._agreed_hints()

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        return super().batch_elements_kwargs() if self._single_model else {}

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        for handler in self.handlers_inside():
            handler.validate_inference_args(inference_args)

    def update_model_path(self, model_path: str | None = None) -> None:
        if self._single_model:
            super().update_model_path(model_path)
        elif model_path is not None:
            raise OptionError(
                "One path cannot update the models of several keys: emit a list of KeyModelPathMapping."
            )

    def should_skip_batching(self) -> bool:
        return self._single_model and super().should_skip_batching()

    def gives_whole_results(self) -> bool:
        return self._single_model and super().gives_whole_results()

    def set_environment_vars(self) -> None:
        for handler in self.handlers_inside():
            handler.set_environment_vars()

    def share_model_across_processes(self) -> bool:
        return self._single_model and super().share_model_across_processes()

    def model_copies(self) -> int:
        return super().model_copies() if self._single_model else 1

    def override_metrics(self, metrics_namespace: str = "") -> bool:
        return self._single_model and super().override_metrics(metrics_namespace)

    def should_garbage_collect_on_timeout(self) -> bool:
        return self._single_model and super().should_garbage_collect_on_timeout()

    def may_join_threads(self) -> bool:
        return all(getattr(h, "may_join_threads", bool)() for h in self.handlers_inside())

    def handlers_inside(self) -> list[Any]:
        """The handler inside, or those of all keys."""
        return [self._unkeyed] if self._single_model else [mapping.mh for mapping in self.mappings]

    def _set_inside(self, change: Callable[[Any], Any]) -> None:
        if self._single_model:
            super()._set_inside(change)
            return
        self.mappings = [KeyModelMapping(m.keys, change(m.mh)) for m in self.mappings]
        self._handlers = None

    def _agreed_hints(self) -> dict[str, Any]:
        hints: dict[str, Any] = {}
        for mapping in self.mappings:
            for name, value in mapping.mh.get_resource_hints().items():
                if hints.setdefault(name, value) != value:
                    raise OptionError(
                        f"The handlers of a KeyedModelHandler give the resource hint {name} as {hints[name]!r} "
                        f"and {value!r}. Override KeyedModelHandler.get_resource_hints() to say which holds."
                    )
        return hints


class _Lent:
    """A model on a shelf."""

    n_bytes = 0

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def load(cls, handler: Any) -> _Lent:
        return cls(handler.load_model())

    def close(self) -> None:
        self.model = None


class MaybeKeyedModelHandler(_Around):
    """Takes examples with keys or without, and gives predictions alike; for examples that are no tuples."""

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[Any]:
        if self.gives_whole_results():
            with_key = isinstance(batch, tuple)
            run: Any = self._run_whole if with_key else partial(run_whole, self._unkeyed)
            return run(batch, model, inference_args)  # type: ignore[no-any-return]
        keyed = [isinstance(element, tuple) for element in batch]
        if all(keyed):
            return self._run_unkeyed(batch, model, inference_args)
        if any(keyed):
            raise ElementError(
                f"{sum(keyed)} of {len(batch)} elements of a batch are tuples (key, example), the others have no "
                "key. Give MaybeKeyedModelHandler one kind in one PCollection, for example by a key of None."
            )
        return split(self._unkeyed.run_inference(batch, model, inference_args), len(batch))

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        if self.gives_whole_results():
            return super().get_num_bytes(_example(batch))
        return super().get_num_bytes([_example(element) for element in batch])


def _whole(handler: Any, whole_results: bool) -> Any:
    """The handler inside, which makes whole results or none; one of Beam's makes whatever it makes."""
    if gives_whole_results(handler) == whole_results or not isinstance(handler, ModelHandler):
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


def _keyed_parts(keys: list[Any], parts: list[Part]) -> list[Part]:
    """The parts of a batch whose elements have keys."""
    left = iter(keys)
    keyed = []
    for part in parts:
        own = list(islice(left, part.size))
        results = None if part.results is None else list(zip(own, part.results, strict=True))
        keyed.append(part._replace(results=results))
    return keyed


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
            whole = "whole_results=True" if gives_whole_results(mapping.mh) else ""
            raise OptionError(
                "A handler inside a KeyModelMapping cannot skip batching for its keys alone. Say it for all: "
                f"KeyedModelHandler([...]).with_no_batching({whole})."
            )


_PER_EXAMPLE = ("element_size_fn", "length_fn")


class _of_example:  # noqa: N801 - reads as a function
    """A function of an example, as a function of ``(key, example)``."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, element: Any) -> Any:
        return self._function(_example(element))


def _example(element: Any) -> Any:
    return element[1] if isinstance(element, tuple) and len(element) == 2 else element


def _no_hash(key: Any, error: TypeError) -> str:
    return (
        f"A key must not be able to change, and {repr(key)[:60]} of type {type(key).__name__} can ({error}). "
        "Make it a text, a number or a tuple of such, for example with "
        "beam.Map(lambda pair: (tuple(pair[0]), pair[1]))."
    )


def _pair(element: Any) -> tuple[Any, Any]:
    """A key and what it belongs to.

    Raises:
        ElementError: It is no pair.
    """
    if not (isinstance(element, tuple) and len(element) == 2):
        raise no_key(element)
    return element


def no_key(element: Any) -> ElementError:
    """The error for an element that should have a key, and has none."""
    return ElementError(
        f"KeyedModelHandler takes (key, example), and got {type(element).__name__} {repr(element)[:60]}. "
        "Add a key, for example with beam.Map(lambda x: (x.name, x)), or use the handler without "
        "KeyedModelHandler."
    )
