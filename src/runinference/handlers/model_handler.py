"""The base class of all model handlers."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

from typing_extensions import Self, Unpack

from runinference.batching.element_size import batch_size_in_bytes
from runinference.batching.policy import BatchPolicy
from runinference.caching.memory_budget import model_bytes
from runinference.caching.options import CacheOptions
from runinference.checks import check_bool, check_callable, check_env_vars, check_int
from runinference.collate.class_output import ClassPredictions, ProbabilitiesOption
from runinference.collate.row_inputs import ExampleInput, RowInput
from runinference.collate.unbatch import ListOutput, to_results
from runinference.collate.unsplit import unsplit_result
from runinference.handlers.event_loop import iterable_without_await
from runinference.handlers.local_predict import predict_locally
from runinference.handlers.model_signature import ModelSignature, load_signature
from runinference.handlers.model_update import KeyModelPathMapping
from runinference.handlers.options import (
    HandlerOptions,
    KeywordsChecked,
    accepts,
    check_list_output,
    constructor_keywords,
    reject_unknown,
)
from runinference.handlers.row_options import OutputOption, RowOptions
from runinference.model_file import file_bytes
from runinference.results import PredictionResult

ExampleT = TypeVar("ExampleT")
PredictionT = TypeVar("PredictionT")
ModelT = TypeVar("ModelT")
PreProcessT = TypeVar("PreProcessT")
PostProcessT = TypeVar("PostProcessT")

# Options that Beam's BatchElements also has, with Beam's name for each.
_BEAM_BATCHING = {
    "min_batch_size": "min_batch_size",
    "max_batch_size": "max_batch_size",
    "max_batch_duration_secs": "max_batch_duration_secs",
    "max_batch_weight": "max_batch_weight",
    "element_size_fn": "element_size_fn",
    "batch_length_fn": "length_fn",
    "batch_bucket_boundaries": "bucket_boundaries",
}


def _counted(update_model_path: Callable[..., None]) -> Callable[..., None]:
    """Return a method that also counts its calls, so that ``predict`` reloads the model after an override, too."""

    @functools.wraps(update_model_path)
    def update_and_count(self: Any, *args: Any, **kwargs: Any) -> None:
        update_model_path(self, *args, **kwargs)
        object.__setattr__(self, "_n_path_updates", self._n_path_updates + 1)

    return update_and_count


class ModelHandlerLike(Protocol):
    """Any object with the methods of a model handler, such as a subclass of Beam's ``ModelHandler``."""

    def load_model(self) -> Any:
        """Load and return the model."""

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None, /) -> Any:
        """Run the model on a batch, and return one prediction per example."""


class ModelHandler(KeywordsChecked, Generic[ExampleT, PredictionT, ModelT]):
    """Load a model and run it on batches. Subclass this class to use your own model.

    A subclass must define ``load_model`` and ``run_inference``. The ``with_…`` methods don't change a handler.
    They return a modified copy.

    >>> class Doubler(ModelHandler[int, int, object]):
    ...     def load_model(self):
    ...         return lambda numbers: [2 * n for n in numbers]
    ...     def run_inference(self, batch, model, inference_args=None):
    ...         return model(batch)
    >>> Doubler(max_batch_size=2).predict([1, 2, 3])
    [2, 4, 6]
    """

    # Defaults for subclasses that don't call the constructor.
    _batching_kwargs: Mapping[str, Any] = {}
    _env_vars: Mapping[str, str] = {}
    _share_across_processes = False
    _model_copies: int | None = None
    _list_output: ListOutput | None = None
    # Set by the handlers of this library for their framework.
    _metrics_namespace = "RunInference"
    _path_attribute: str | None = None  # holds the path that update_model_path changes
    _supports_dynamic_batching = False
    _row_input: RowInput = ExampleInput()  # what run_inference takes for a batch of rows
    # Wraps a handler so that it takes rows. Set by row_handler.py, which depends on this class.
    _row_wrapper: ClassVar[Callable[[Any, RowOptions], Any]]
    # Wraps a handler with a cache. Set by cached_handler.py, which depends on this class.
    _cache_wrapper: ClassVar[Callable[[Any, CacheOptions], Any]]
    # Attributes that have no effect on results, besides those of this class.
    _without_effect: ClassVar[frozenset[str]] = frozenset(
        {
            "_batching_kwargs",
            "_large_model",
            "_max_batch_bytes",
            "_max_padded_size",
            "_model_copies",
            "_n_path_updates",
            "_postprocess_fns",
            "_preprocess_fns",
            "_share_across_processes",
            "_skips_batching",
            "get_postprocess_fns",
            "get_preprocess_fns",
        }
    )
    _has_native_model = False  # whether the model keeps its weights where Python can't reach them
    # Whether run_inference (or request) never modifies the examples of a list.
    _keeps_examples = False
    # Set on the copies that with_… methods return.
    _preprocess_fns: Sequence[Callable[[Any], Any]] = ()
    _postprocess_fns: Sequence[Callable[[Any], Any]] = ()
    _skips_batching = False
    _whole_results = False
    # Counts the calls of update_model_path.
    _n_path_updates = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if {"run_inference", "request"} & vars(cls).keys() and "_keeps_examples" not in vars(cls):
            cls._keeps_examples = False  # that of a base class is about its own method
        if "run_inference" in vars(cls):
            cls.run_inference = iterable_without_await(cls.run_inference)  # type: ignore[method-assign]
        owner = next(base for base in cls.__mro__ if "update_model_path" in vars(base))
        if owner is cls or not issubclass(owner, ModelHandler):  # a mixin's method isn't counted
            cls.update_model_path = _counted(cls.update_model_path)  # type: ignore[method-assign]

    @accepts(HandlerOptions)
    def __init__(self, **options: Unpack[HandlerOptions]) -> None:
        """Set the options that all handlers share.

        Args:
            **options: The options of every handler, see [HandlerOptions][runinference.HandlerOptions].

        Raises:
            UnknownOptionError: An option is unknown. The message suggests the closest one.
            OptionError: Options conflict with each other, or a value is out of range.
        """
        unknown = [name for name in options if name not in HandlerOptions.__annotations__]
        reject_unknown(type(self), unknown, constructor_keywords(type(self)))
        given: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
        check_env_vars(given.get("env_vars", {}))
        check_bool("large_model", given.get("large_model", False))
        if "model_copies" in given:
            check_int("model_copies", given["model_copies"])
        self._env_vars = given.get("env_vars", {})
        self._batching_kwargs = {beam: given[k] for k, beam in _BEAM_BATCHING.items() if k in given}
        self._max_batch_bytes: int | None = given.get("max_batch_bytes")
        self._max_padded_size: int | None = given.get("max_padded_size")
        self._large_model: bool = given.get("large_model", False)
        self._model_copies = given.get("model_copies")
        self._share_across_processes = self._large_model or self._model_copies is not None
        self._list_output = check_list_output(given.get("list_output"))
        # A subclass may override batch_elements_kwargs(), and set what it needs after this constructor.
        not_in_beam: dict[str, Any] = {
            k: given[k] for k in ("max_batch_bytes", "max_padded_size") if k in given
        }
        BatchPolicy.from_options({**self._batching_kwargs, **not_in_beam})

    def load_model(self) -> ModelT:
        """Load and return the model.

        Called once per worker process and model. A subclass must define it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define load_model().")

    def run_inference(
        self,
        batch: Sequence[ExampleT],
        model: ModelT,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[PredictionT] | Awaitable[Iterable[PredictionT]]:
        """Run the model on a batch.

        A subclass must define it. It may be a coroutine function (``async def``).

        Args:
            batch: The examples; at least one.
            model: The object that ``load_model`` returned.
            inference_args: Keyword arguments for the model call, the same for all examples, or None. Each call
                gets its own copy.

        Returns:
            One prediction per example, in the same order.
        """
        raise NotImplementedError(f"{type(self).__name__} must define run_inference().")

    def predict(
        self,
        examples: Iterable[ExampleT],
        inference_args: dict[str, Any] | None = None,
        *,
        columns: str | Sequence[str] | None = None,
        output: OutputOption | None = None,
        keep: str | Sequence[str] | None = None,
        probabilities: ProbabilitiesOption | None = None,
    ) -> list[PredictionT]:
        """Run inference without a pipeline, with the same batching and results as ``RunInference``.

        The model is loaded on the first call and stays loaded as long as this handler exists.

        Args:
            examples: The elements that a pipeline would pass to ``RunInference``.
            inference_args: Keyword arguments for each model call, or None.
            columns: For rows, the names of the feature columns; see ``RunInference``.
            output: For rows, the name of the prediction column, or the types of several by name.
            keep: For rows, the names of the columns that results have, too.
            probabilities: For rows, the columns with the probabilities of classes; see ``RunInference``.

        Returns:
            One result per example, in the same order. With one of the options for rows, a row or a table with
            the predictions.
        """
        options = RowOptions.create(columns, output, keep, inference_args, probabilities)
        return predict_locally(self, examples, inference_args, options)

    def group_by_model(
        self, examples: Iterable[Any], model: ModelT
    ) -> Iterable[tuple[ModelHandlerLike, Iterable[tuple[int | list[int], Any]]]]:
        """Group the examples of ``predict`` by the model that they use.

        Args:
            examples: The examples, after preprocessing.
            model: The object that ``load_model`` returned.

        Returns:
            For each model, a handler and its examples, each as ``(index, example)``. If an example is a batch with
            rows for several models, each part comes with the list of its row indices.
        """
        return [(self, enumerate(examples))]

    def get_num_bytes(self, batch: Sequence[ExampleT]) -> int:
        """Return the size of a batch in bytes, for the metrics.

        The size of an array or tensor is that of its buffer. The size of any other object is its size in Python.

        Args:
            batch: The examples.
        """
        return batch_size_in_bytes(batch)

    def get_model_bytes(self, model: ModelT) -> int:
        """Return the memory of a loaded model in bytes, for the metrics and the memory limits.

        By default, this is the size of all parameters, arrays and objects that Python can reach. For native
        libraries, the handlers of this library use the size of the model's files if that is larger. Override this
        method if your model keeps its weights elsewhere.

        Args:
            model: The object that ``load_model`` returned.
        """
        path = getattr(self, self._path_attribute) if self._path_attribute else ""
        return max(model_bytes(model), file_bytes(path) if self._has_native_model else 0)

    def get_model_signature(self, model: ModelT) -> ModelSignature:
        """Return what a model declares about its features and its output, to check columns before a pipeline runs.

        Args:
            model: The object that ``load_model`` returned.
        """
        return ModelSignature()

    def read_model_signature(self) -> ModelSignature:
        """Return what the model's files declare. By default, the model is loaded, unless its files are large."""
        if type(self).get_model_signature is ModelHandler.get_model_signature:
            return ModelSignature()
        path = getattr(self, self._path_attribute) if self._path_attribute else ""
        return load_signature(self, path) if path else ModelSignature()

    def predict_classes(
        self, batch: Any, model: ModelT, inference_args: dict[str, Any] | None = None
    ) -> ClassPredictions:
        """Return the labels and the probabilities of classes for a batch of rows, for ``probabilities``.

        Args:
            batch: The features of all rows, in the form for ``run_inference``.
            model: The object that ``load_model`` returned.
            inference_args: Keyword arguments for the model call, or None.
        """
        raise NotImplementedError(f"{type(self).__name__} returns no probabilities of classes.")

    def get_metrics_namespace(self) -> str:
        """Return the namespace of this handler's metrics."""
        return self._metrics_namespace

    def get_resource_hints(self) -> dict[str, Any]:
        """Return the keyword arguments for ``PTransform.with_resource_hints``, which the runner gets as hints."""
        return {}

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        """Return the batching options under the names of Beam's ``BatchElements``."""
        return self._batching_kwargs

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        """Raise an error if the model call doesn't accept these arguments. By default, all are accepted.

        Args:
            inference_args: Keyword arguments for the model call, or None.
        """

    @_counted
    def update_model_path(self, model_path: str | None = None) -> None:
        """Set the path that the model is loaded from. Model updates call this method on a copy of the handler.

        The next ``predict`` loads the model again.

        Args:
            model_path: The new path. If None or empty, the path stays the same.
        """
        if model_path and self._path_attribute:
            setattr(self, self._path_attribute, model_path)

    def count_path_updates(self) -> int:
        """Return how often the path of this handler, or of one that it wraps, was updated."""
        return self._n_path_updates

    def update_model_paths(
        self, model: ModelT, model_paths: Sequence[KeyModelPathMapping[Any]] | None = None
    ) -> None:
        """Set the paths of per-key models. Only handlers with per-key models support it.

        Args:
            model: The object that ``load_model`` returned.
            model_paths: The new path for each key.
        """

    def get_preprocess_fns(self) -> list[Callable[[Any], Any]]:
        """Return the functions to apply to each element before batching, in order."""
        return list(self._preprocess_fns)

    def get_postprocess_fns(self) -> list[Callable[[Any], Any]]:
        """Return the functions to apply to each result, in order."""
        return list(self._postprocess_fns)

    def should_skip_batching(self) -> bool:
        """Return whether elements are already batches."""
        return self._skips_batching

    def gives_whole_results(self) -> bool:
        """Return whether elements are already batches, and each batch gets one unsplit result."""
        return self._whole_results

    def validate_whole_results(self) -> None:
        """Raise an error if this handler cannot return one unsplit result for a batch."""

    def results_of(
        self, batch: Sequence[Any], output: Any, model_id: str | None = None
    ) -> Iterable[PredictionResult]:
        """Convert a model output to the return value of ``run_inference``.

        Args:
            batch: The examples.
            output: The model output for the batch: a tensor, an array, a list, or a dictionary, tuple or dataclass
                of these. The leading dimension of each is the batch size. A list of arrays needs the option
                ``list_output``.
            model_id: The path or name of the model, for the results.

        Returns:
            One ``PredictionResult`` per example, each with its own part of the output. If the handler returns
            unsplit results, a single ``PredictionResult`` for the whole batch.

        Raises:
            ResultMismatchError: The leading dimension of the output is not the batch size, or a list in the output
                is ambiguous.
        """
        if self.gives_whole_results():
            return cast(Iterable[Any], unsplit_result(batch, output, model_id))
        return to_results(batch, output, model_id, self._list_output)

    def set_environment_vars(self) -> None:
        """Set the environment variables of the option ``env_vars``. Called before the model is loaded."""
        os.environ.update(self._env_vars)

    def with_preprocess_fn(
        self, fn: Callable[[PreProcessT], ExampleT]
    ) -> ModelHandler[PreProcessT, PredictionT, ModelT]:
        """Return a copy that applies a function to each element, before any existing preprocessing functions.

        Args:
            fn: Returns the new element. With exception handling, an element for which it fails becomes a dead
                letter.
        """
        check_callable("fn of with_preprocess_fn", fn)
        functions = (fn, *self.get_preprocess_fns())
        return self._with_functions("preprocess_fns", functions)  # type: ignore[no-any-return]

    def with_postprocess_fn(
        self, fn: Callable[[PredictionT], PostProcessT]
    ) -> ModelHandler[ExampleT, PostProcessT, ModelT]:
        """Return a copy that applies a function to each result, after any existing postprocessing functions.

        Args:
            fn: Returns the new result. With exception handling, a result for which it fails becomes a dead letter.
        """
        check_callable("fn of with_postprocess_fn", fn)
        functions = (*self.get_postprocess_fns(), fn)
        return self._with_functions("postprocess_fns", functions)  # type: ignore[no-any-return]

    def with_no_batching(
        self, *, whole_results: bool = False
    ) -> ModelHandler[Any, PredictionT, ModelT]:
        """Return a copy whose elements are already batches: lists of examples, or arrays of rows.

        Functions given to ``with_preprocess_fn`` then receive a batch. There is still one result per example.

        >>> from runinference import samples
        >>> from runinference.sklearn_inference import SklearnModelHandlerNumpy
        >>> handler = SklearnModelHandlerNumpy(samples.digits_classifier())
        >>> images, labels = samples.held_out_digits()
        >>> [result] = handler.with_no_batching(whole_results=True).predict([images[:3]])
        >>> result.example.shape, result.inference
        ((3, 64), array([1, 4, 0]))

        Args:
            whole_results: Whether to keep results unsplit: one ``PredictionResult`` per element, with the whole
                batch and the complete model output. With keys, elements are ``(key, batch)``. If a handler doesn't
                use ``results_of``, the result of an element is what ``run_inference`` returns for it.

        Raises:
            OptionError: This handler does not support unsplit results.
        """
        check_bool("whole_results", whole_results)
        if whole_results:
            self.validate_whole_results()
        return self._replace(_skips_batching=True, _whole_results=whole_results)

    def with_cache(
        self,
        location: str | os.PathLike[str] | None = None,
        *,
        version: str | None = None,
        max_bytes: int | None = None,
        max_age_secs: float | None = None,
        password_env: str | None = None,
        trusted_types: Sequence[type] = (),
        claim_secs: float = 15,
    ) -> ModelHandler[ExampleT, PredictionT, Any]:
        """Return a copy that stores results, so that equal elements call the model only once.

        A result is stored under a hash of the element, the inference arguments, the options of the handler, and
        the model: the digest of its files, or ``version``. Later calls, in any process that uses the same store,
        read it from there. Only successful results are stored. If the store fails, the model is called.

        >>> import tempfile
        >>> from runinference.openai_inference import OpenAIChatModelHandler
        >>> from runinference.samples import servers
        >>> with servers.llm() as base_url:
        ...     handler = OpenAIChatModelHandler(base_url, "shout", None).with_cache(tempfile.mkdtemp())
        ...     first = handler.predict(["Hello"])
        >>> [result] = handler.predict(["Hello"])  # without the server
        >>> result.inference.text
        'HELLO'

        Args:
            location: A folder on a local disk, which the processes of a machine share, or the URL of a Redis
                server, such as ``"redis://host:6379/0"``, which several machines share. By default, a folder in
                the user's cache directory.
            version: The version of the model and of the handler's code. Change it to invalidate all results.
                Required if the model has no files. By default, the digest of the model's files and the code of
                the handler's class are used.
            max_bytes: Maximum size of the folder in bytes, by default 1 GiB. The oldest results are removed
                first. For Redis, set ``maxmemory`` of the server instead.
            max_age_secs: Maximum age of results in seconds. By default, there is no limit.
            password_env: Name of the environment variable that contains the password of Redis on the workers.
                The handler doesn't store the password.
            trusted_types: Additional classes that results may contain. By default, results contain numbers, text,
                containers, arrays, tensors, and the handler's own types.
            claim_secs: Time in seconds after which another worker repeats a call if the first worker died.

        Raises:
            OptionError: The model has no files and ``version`` is None, the handler returns unsplit results or
                already has a cache, the URL contains a password, or another value is invalid.
            ImportError: diskcache or redis isn't installed.
        """
        options = CacheOptions.create(
            location, version, max_bytes, max_age_secs, password_env, trusted_types, claim_secs
        )
        return self._cache_wrapper(options)  # type: ignore[no-any-return]

    def get_result_options(self) -> dict[str, Any]:
        """Return the options that results depend on, by name. They are part of the hash of a cached result.

        By default, these are all attributes, except options of this library that don't affect results, such as
        the batch size or the number of concurrent requests. Override this method to leave out other options.
        """
        without_effect = frozenset[str]().union(
            *(vars(kind).get("_without_effect", ()) for kind in type(self).__mro__)
        )
        return {
            name: value
            for name, value in vars(self).items()
            if name not in without_effect and not name.startswith("_runinference")
        }

    def get_model_files(self) -> Sequence[str] | None:
        """Return the paths of the files and folders that the model is loaded from; None if they are unknown."""
        path = getattr(self, self._path_attribute) if self._path_attribute else None
        return [path] if path else None

    def get_result_types(self) -> Sequence[type | str]:
        """Return the classes that results contain, besides numbers, text, containers, arrays and tensors.

        A string that ends with a dot is the name of a package that contains such classes.
        """
        return ()

    def share_model_across_processes(self) -> bool:
        """Return whether all worker processes of a machine share the model."""
        return self._share_across_processes

    def model_copies(self) -> int:
        """Return how many copies of the model the worker processes of a machine share."""
        return self._model_copies or 1

    def may_modify_examples(self) -> bool:
        """Return whether ``run_inference`` may modify examples in place.

        If it returns ``True``, which is the default for your own handlers and inference functions, a copy of the
        examples is kept during each call, for a retry if the call fails. If ``run_inference`` never modifies its
        examples, override this method and return ``False`` to avoid the copies.
        """
        return not self._keeps_examples

    def may_join_threads(self) -> bool:
        """Return whether dynamic batching may merge small batches of several threads into one model call.

        Override this method and return ``True`` for models that compute in the worker process, where concurrent
        calls slow each other down. Calls that mostly wait, such as requests to an endpoint, should run
        concurrently.
        """
        return self._supports_dynamic_batching

    def override_metrics(self, metrics_namespace: str = "") -> bool:
        """Return whether the handler reports metrics itself, so that ``RunInference`` reports none for it.

        Args:
            metrics_namespace: The namespace of the metrics.
        """
        return False

    def should_garbage_collect_on_timeout(self) -> bool:
        """Return whether the model is reloaded after a call times out. In a subprocess, it always is."""
        return True

    def _replace(self, **attributes: Any) -> Self:
        """Return a copy with other values of some attributes."""
        changed = copy.copy(self)
        vars(changed).update(attributes)
        return changed

    def _with_functions(self, name: str, functions: Sequence[Callable[[Any], Any]]) -> Any:
        """Return a copy with other preprocessing or postprocessing functions.

        As in Beam, a subclass may override the method that returns them. The copy then needs its own method.
        """
        changed = self._replace(**{f"_{name}": functions})
        getter = f"get_{name}"
        if getattr(type(self), getter) is not getattr(ModelHandler, getter):
            setattr(changed, getter, functools.partial(list, functions))
        return changed
