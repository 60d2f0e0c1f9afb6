"""What a model handler is: how to load a model, how to call it, and how its examples travel."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from typing_extensions import Self, Unpack

from runinference.batching.policy import resolve_policy, size_in_bytes
from runinference.collate.unbatch import to_results
from runinference.collate.unsplit import unsplit_result
from runinference.handlers.local_predict import predict
from runinference.handlers.options import HandlerOptions, refuse_unknown, show_signature, spell_out

ExampleT = TypeVar("ExampleT")
PredictionT = TypeVar("PredictionT")
ModelT = TypeVar("ModelT")
PreProcessT = TypeVar("PreProcessT")
PostProcessT = TypeVar("PostProcessT")

# The options that Beam's BatchElements knows, by the name each has there.
_BEAM_BATCHING = {
    "min_batch_size": "min_batch_size",
    "max_batch_size": "max_batch_size",
    "max_batch_duration_secs": "max_batch_duration_secs",
    "max_batch_weight": "max_batch_weight",
    "element_size_fn": "element_size_fn",
    "batch_length_fn": "length_fn",
    "batch_bucket_boundaries": "bucket_boundaries",
}


class ModelHandler(Generic[ExampleT, PredictionT, ModelT]):
    """How to load a model and call it on a batch; subclass it for a model of your own.

    A handler is a value: ``with_…`` methods return a changed copy. Only ``load_model`` and ``run_inference``
    must be written.

    >>> class Doubler(ModelHandler[int, int, object]):
    ...     def load_model(self):
    ...         return lambda numbers: [2 * n for n in numbers]
    ...     def run_inference(self, batch, model, inference_args=None):
    ...         return model(batch)
    >>> Doubler(max_batch_size=2).predict([1, 2, 3])
    [2, 4, 6]
    """

    def __new__(cls, *args: Any, **options: Any) -> Self:
        refuse_unknown(cls, options)
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            spell_out(cls.__init__, super(cls, cls).__init__)
        show_signature(cls)

    def __init__(self, **options: Unpack[HandlerOptions]) -> None:
        """Takes the shared options; see [HandlerOptions][runinference.HandlerOptions].

        Raises:
            UnknownOptionError: An option is not known; the message names the nearest one.
            OptionError: Options contradict each other.
        """
        refuse_unknown(ModelHandler, options)
        given: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
        self._env_vars: Mapping[str, str] = given.get("env_vars", {})
        self._batching_kwargs = {beam: given[k] for k, beam in _BEAM_BATCHING.items() if k in given}
        self._max_batch_bytes: int | None = given.get("max_batch_bytes")
        self._max_padded_size: int | None = given.get("max_padded_size")
        self._large_model: bool = given.get("large_model", False)
        self._model_copies: int | None = given.get("model_copies")
        self._share_across_processes = self._large_model or self._model_copies is not None
        resolve_policy(self)

    def load_model(self) -> ModelT:
        """Loads the model; called once for each process and model."""
        raise NotImplementedError(f"{type(self).__name__} must define load_model().")

    def run_inference(
        self,
        batch: Sequence[ExampleT],
        model: ModelT,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[PredictionT]:
        """Calls the model on a batch; returns one prediction for each example, in order.

        Args:
            batch: The examples; at least one.
            model: What ``load_model`` returned.
            inference_args: Arguments for the model's call, the same for all examples; a copy of this
                batch's own.
        """
        raise NotImplementedError(f"{type(self).__name__} must define run_inference().")

    def predict(
        self, examples: Iterable[Any], inference_args: dict[str, Any] | None = None
    ) -> list[Any]:
        """Predictions for examples without a pipeline, batched and split as the transform does.

        The model is loaded at the first call, and kept as long as this handler lives.

        Args:
            examples: What the pipeline's elements would be.
            inference_args: As for ``RunInference``.

        Returns:
            One result for each example, in their order.
        """
        return predict(self, examples, inference_args)

    def get_num_bytes(self, batch: Sequence[ExampleT]) -> int:
        """The bytes of data in a batch: what arrays and tensors hold, and Python's sizes for the rest."""
        return size_in_bytes(batch)

    def get_metrics_namespace(self) -> str:
        """The namespace of this handler's metrics."""
        return "RunInference"

    def get_resource_hints(self) -> dict[str, Any]:
        """Resource hints for the runner, as in ``with_resource_hints``."""
        return {}

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        """The options for batching, by the names of Beam's ``BatchElements``."""
        return getattr(self, "_batching_kwargs", {})

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        """Raises if the model's call cannot take these arguments."""

    def update_model_path(self, model_path: str | None = None) -> None:
        """Says that the model is at another path from now on; called on a copy of the handler."""

    def update_model_paths(self, model: ModelT, model_paths: Any = None) -> None:
        """Says that the models of several keys are at other paths from now on."""

    def get_preprocess_fns(self) -> list[Callable[[Any], Any]]:
        """What to apply to an element before it is batched, in order."""
        return []

    def get_postprocess_fns(self) -> list[Callable[[Any], Any]]:
        """What to apply to a result, in order."""
        return []

    def should_skip_batching(self) -> bool:
        """Whether elements are batches already."""
        return False

    def gives_whole_results(self) -> bool:
        """Whether elements are batches already, and each gets one result for all of its rows."""
        return False

    def validate_whole_results(self) -> None:
        """Raises if this handler cannot give one result for a whole array of rows."""

    def results_of(self, batch: Any, output: Any, model_id: str | None = None) -> Iterable[Any]:
        """What ``run_inference`` returns for a batch and the model's output for it.

        One ``PredictionResult`` for each example, with its own part of the output; where the handler gives whole
        results, one for the whole batch.

        Raises:
            ResultMismatchError: The output's leading dimension is not the batch's.
        """
        if self.gives_whole_results():
            return unsplit_result(batch, output, model_id)
        return to_results(batch, output, model_id)

    def set_environment_vars(self) -> None:
        """Sets the variables of ``env_vars``; called before the model loads."""
        os.environ.update(getattr(self, "_env_vars", {}))

    def with_preprocess_fn(
        self, fn: Callable[[PreProcessT], ExampleT]
    ) -> ModelHandler[PreProcessT, PredictionT, ModelT]:
        """A copy that applies ``fn`` to each element first, before what this handler applies already."""
        return _but(self, get_preprocess_fns=[fn, *self.get_preprocess_fns()])

    def with_postprocess_fn(
        self, fn: Callable[[PredictionT], PostProcessT]
    ) -> ModelHandler[ExampleT, PostProcessT, ModelT]:
        """A copy that applies ``fn`` to each result, after what this handler applies already."""
        return _but(self, get_postprocess_fns=[*self.get_postprocess_fns(), fn])

    def with_no_batching(
        self, *, whole_results: bool = False
    ) -> ModelHandler[Any, PredictionT, ModelT]:
        """A copy whose elements are batches already: lists of examples, or arrays of rows.

        Functions given to ``with_preprocess_fn`` then take a batch; results are still one for each example.

        >>> from runinference import samples
        >>> from runinference.sklearn_inference import SklearnModelHandlerNumpy
        >>> handler = SklearnModelHandlerNumpy(samples.digits_classifier())
        >>> images, labels = samples.held_out_digits()
        >>> [result] = handler.with_no_batching(whole_results=True).predict([images[:3]])
        >>> result.example.shape, result.inference
        ((3, 64), array([1, 4, 0]))

        Args:
            whole_results: Whether results stay whole, too: one ``PredictionResult`` for each element, of the
                whole array and the model's whole output for it, and nothing is done row by row. Keys then go
                around arrays, ``(key, array)``. A handler that makes its results without ``results_of`` gives
                for each element what its ``run_inference`` returns.

        Raises:
            OptionError: This handler has no whole results.
        """
        if whole_results:
            self.validate_whole_results()
        return _but(self, should_skip_batching=True, gives_whole_results=whole_results)

    def share_model_across_processes(self) -> bool:
        """Whether all processes of a machine share the model."""
        return bool(getattr(self, "_share_across_processes", False))

    def model_copies(self) -> int:
        """How many copies the processes of a machine share."""
        return getattr(self, "_model_copies", None) or 1

    def may_join_threads(self) -> bool:
        """Whether small batches of several threads may share one call of the model.

        For models that compute in this process: their threads would only be in each other's way. Calls that wait
        for something else had better run side by side.
        """
        return False

    def override_metrics(self, metrics_namespace: str = "") -> bool:
        """Whether the handler reports metrics itself."""
        return False

    def should_garbage_collect_on_timeout(self) -> bool:
        """Whether a model that timed out is dropped for a fresh one."""
        return self.share_model_across_processes()


spell_out(ModelHandler.__init__)
show_signature(ModelHandler)


class Answer:
    """A method whose answer is known: ``Answer(5)()`` is 5. Lists are given as copies."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __call__(self) -> Any:
        return list(self._value) if isinstance(self._value, list) else self._value


def _but(handler: ModelHandler[Any, Any, Any], **answers: Any) -> ModelHandler[Any, Any, Any]:
    """A copy of a handler whose methods give these answers, also where its class overrides them."""
    changed = copy.copy(handler)
    vars(changed).update({method: Answer(value) for method, value in answers.items()})
    return changed
