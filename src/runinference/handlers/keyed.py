"""Handlers for examples that carry a key: the key goes around the model and comes back with the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from runinference.caching.model_cache import CacheLimits
from runinference.collate.unbatch import unbatch
from runinference.collate.unsplit import returns_unsplit_results, run_unsplit
from runinference.errors import ElementError, OptionError, Part, parts_of, tell_parts
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.model_per_key import (
    KeyModelMapping,
    PerKeyModelHandler,
    pair,
    refuse_functions,
    wholly,
)


class _KeyWrapper(ModelHandler[Any, Any, Any]):
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
        return returns_unsplit_results(self._unkeyed)

    def validate_whole_results(self) -> None:
        getattr(self._unkeyed, "validate_whole_results", lambda: None)()

    def with_no_batching(self, *, whole_results: bool = False) -> ModelHandler[Any, Any, Any]:
        changed: Any = super().with_no_batching(whole_results=whole_results)
        changed._unkeyed = wholly(self._unkeyed, whole_results)
        return changed  # type: ignore[no-any-return]

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
        key, rows = pair(element)
        return key, run_unsplit(self._unkeyed, rows, model, inference_args)

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
        return list(zip(keys, unbatch(output, len(keys)), strict=True))


class KeyedModelHandler(_KeyWrapper):
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
        room = CacheLimits(max_models_per_worker_hint, max_model_bytes_per_worker)
        if isinstance(unkeyed, (list, tuple)):
            unkeyed = PerKeyModelHandler(unkeyed, room, KeyedModelHandler)
        elif room != CacheLimits():
            raise OptionError(
                "max_models_per_worker_hint and max_model_bytes_per_worker are for several models: give "
                "KeyedModelHandler a list of KeyModelMapping."
            )
        super().__init__(unkeyed)

    @property
    def mappings(self) -> list[KeyModelMapping[Any, Any, Any, Any]]:
        """Which keys have which handler; none where there is one for all."""
        return self._unkeyed.mappings if isinstance(self._unkeyed, PerKeyModelHandler) else []

    @property
    def room(self) -> CacheLimits:
        """How many models a process may hold."""
        return (
            self._unkeyed.room if isinstance(self._unkeyed, PerKeyModelHandler) else CacheLimits()
        )

    def handler_for(self, key: Any) -> KeyedModelHandler:
        """The handler of a key's model, for examples with keys.

        Raises:
            UnknownKeyError: No model is mapped to the key.
            ElementError: The key cannot be looked up, because it can change, such as a list.
        """
        return (
            self._unkeyed.handler_for(key)
            if isinstance(self._unkeyed, PerKeyModelHandler)
            else self
        )

    def handlers_inside(self) -> list[Any]:
        """The handler inside, or those of all keys."""
        return [mapping.mh for mapping in self.mappings] or [self._unkeyed]

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[Any]:
        if isinstance(self._unkeyed, PerKeyModelHandler):
            return self._unkeyed.run_inference(batch, model, inference_args)  # type: ignore[no-any-return]
        if self.gives_whole_results():
            return self._run_whole(batch, model, inference_args)
        for element in batch:
            pair(element)
        return self._run_unkeyed(batch, model, inference_args)

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        if isinstance(self._unkeyed, PerKeyModelHandler):
            return self._unkeyed.get_num_bytes(batch)
        if self.gives_whole_results():
            return super().get_num_bytes(pair(batch)[1])
        return super().get_num_bytes([example for _, example in batch])


class MaybeKeyedModelHandler(_KeyWrapper):
    """Takes examples with keys or without, and gives predictions alike; for examples that are no tuples."""

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[Any]:
        if self.gives_whole_results():
            with_key = isinstance(batch, tuple)
            run: Any = self._run_whole if with_key else partial(run_unsplit, self._unkeyed)
            return run(batch, model, inference_args)  # type: ignore[no-any-return]
        keyed = [isinstance(element, tuple) for element in batch]
        if all(keyed):
            return self._run_unkeyed(batch, model, inference_args)
        if any(keyed):
            raise ElementError(
                f"{sum(keyed)} of {len(batch)} elements of a batch are tuples (key, example), the others have no "
                "key. Give MaybeKeyedModelHandler one kind in one PCollection, for example by a key of None."
            )
        return unbatch(self._unkeyed.run_inference(batch, model, inference_args), len(batch))

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        if self.gives_whole_results():
            return super().get_num_bytes(_example(batch))
        return super().get_num_bytes([_example(element) for element in batch])


def _keyed_parts(keys: list[Any], parts: list[Part]) -> list[Part]:
    """The parts of a batch whose elements have keys."""
    left = iter(keys)
    keyed = []
    for part in parts:
        own = list(islice(left, part.size))
        results = None if part.results is None else list(zip(own, part.results, strict=True))
        keyed.append(part._replace(results=results))
    return keyed


_PER_EXAMPLE = ("element_size_fn", "length_fn")


class _of_example:  # noqa: N801 - reads as a function
    """A function of an example, as a function of ``(key, example)``."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, element: Any) -> Any:
        return self._function(_example(element))


def _example(element: Any) -> Any:
    return element[1] if isinstance(element, tuple) and len(element) == 2 else element
