"""Handlers for examples that carry a key: the key goes around the model and comes back with the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from runinference.errors import OptionError
from runinference.handler import ModelHandler
from runinference.splitting import split

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
    def unkeyed(self) -> Any:
        """The handler inside."""
        return self._unkeyed

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

    def set_environment_vars(self) -> None:
        self._unkeyed.set_environment_vars()

    def share_model_across_processes(self) -> bool:
        return bool(self._unkeyed.share_model_across_processes())

    def model_copies(self) -> int:
        return int(self._unkeyed.model_copies())

    def override_metrics(self, metrics_namespace: str = "") -> bool:
        return bool(self._unkeyed.override_metrics(metrics_namespace))

    def should_garbage_collect_on_timeout(self) -> bool:
        return bool(self._unkeyed.should_garbage_collect_on_timeout())

    def _run_unkeyed(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None
    ) -> list[tuple[Any, Any]]:
        keys = [key for key, _ in batch]
        output = self._unkeyed.run_inference(
            [example for _, example in batch], model, inference_args
        )
        return list(zip(keys, split(output, len(keys)), strict=True))


class KeyedModelHandler(_Around):
    """Takes ``(key, example)`` and gives ``(key, prediction)``, with one model for all keys.

    >>> from runinference import samples
    >>> from runinference.sklearn_inference import SklearnModelHandlerNumpy
    >>> keyed = KeyedModelHandler(SklearnModelHandlerNumpy(model_uri=samples.digits_classifier()))
    >>> images, labels = samples.held_out_digits()
    >>> [(key, result.inference)] = keyed.predict([("first", images[0])])
    >>> key
    'first'
    """

    keeps_keys = True

    def __init__(self, unkeyed: Any) -> None:
        """Wraps a handler for examples without keys.

        Raises:
            OptionError: The handler inside has preprocessing or postprocessing functions.
        """
        super().__init__(unkeyed)

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[Any]:
        for element in batch:
            if not (isinstance(element, tuple) and len(element) == 2):
                raise _no_key(element)
        return self._run_unkeyed(batch, model, inference_args)

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        return super().get_num_bytes([example for _, example in batch])


class MaybeKeyedModelHandler(_Around):
    """Takes examples with keys or without, and gives predictions alike; for examples that are no tuples."""

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[Any]:
        keyed = [isinstance(element, tuple) for element in batch]
        if all(keyed):
            return self._run_unkeyed(batch, model, inference_args)
        if any(keyed):
            raise ValueError(
                f"{sum(keyed)} of {len(batch)} elements of a batch are tuples (key, example), the others have no "
                "key. Give MaybeKeyedModelHandler one kind in one PCollection, for example by a key of None."
            )
        return split(self._unkeyed.run_inference(batch, model, inference_args), len(batch))

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        return super().get_num_bytes([_example(element) for element in batch])


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


_PER_EXAMPLE = ("element_size_fn", "length_fn")


class _of_example:  # noqa: N801 - reads as a function
    """A function of an example, as a function of ``(key, example)``."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, element: Any) -> Any:
        return self._function(_example(element))


def _example(element: Any) -> Any:
    return element[1] if isinstance(element, tuple) and len(element) == 2 else element


def _no_key(element: Any) -> ValueError:
    return ValueError(
        f"KeyedModelHandler takes (key, example), and got {type(element).__name__} {repr(element)[:60]}. "
        "Add a key, for example with beam.Map(lambda x: (x.name, x)), or use the handler without "
        "KeyedModelHandler."
    )
