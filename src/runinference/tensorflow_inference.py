"""Handlers for models of TensorFlow and Keras, on NumPy arrays or tensors, or on dictionaries of them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from typing_extensions import Unpack

from runinference.collate.unbatch import to_results
from runinference.errors import ModelLoadError, OptionError
from runinference.frameworks.tensorflow.calling import output_of, signature_of
from runinference.frameworks.tensorflow.loading import load_model, load_weights
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.options import HandlerOptions, accepts
from runinference.results import PredictionResult

__all__ = ["ModelType", "TFModelHandlerNumpy", "TFModelHandlerTensor"]

TensorInferenceFn = Callable[
    [Any, Sequence[Any], "dict[str, Any]", "str | None"], Iterable[PredictionResult]
]


class ModelType(enum.Enum):
    """What is in the model's file.

    Attributes:
        SAVED_MODEL: A whole model: the folder of a SavedModel, a ``.keras`` file, or an HDF5 file.
        SAVED_WEIGHTS: Weights alone, for a model that ``create_model_fn`` builds.
    """

    SAVED_MODEL = 1
    SAVED_WEIGHTS = 2


def default_numpy_inference_fn(
    model: Any, batch: Sequence[Any], inference_args: dict[str, Any], model_id: str | None = None
) -> Iterable[PredictionResult]:
    """Stacks the arrays of a batch, calls the model once, and gives each example its part of the output.

    Args:
        model: A Keras model; a SavedModel, of which the signature ``serving_default`` is called, or its only
            one; or anything that can be called.
        batch: Arrays of one shape, for the model's first input; or dictionaries of such arrays by the names of
            inputs.
        inference_args: Keywords of the model's call, such as ``training``; for a signature further inputs by
            name, the same for all examples.
        model_id: Where the model is from, for the results.

    Returns:
        Results with tensors, as TensorFlow gives them. Several outputs are dictionaries or tuples of tensors.

    Raises:
        BatchShapeError: An array has another shape than the others, or than the model takes.
        ElementError: An input is missing, unknown, or of a type that the model does not take.
        ResultMismatchError: An output does not have one row for each example.
    """
    return to_results(batch, output_of(model, batch, inference_args or {}), model_id)


def default_tensor_inference_fn(
    model: Any, batch: Sequence[Any], inference_args: dict[str, Any], model_id: str | None = None
) -> Iterable[PredictionResult]:
    """Does with tensors what ``default_numpy_inference_fn`` does with arrays."""
    return default_numpy_inference_fn(model, batch, inference_args, model_id)


class _TFModelHandler(ModelHandler[Any, PredictionResult, Any]):
    """What both handlers have in common: the model's file, how it is loaded and called."""

    _default_inference_fn: TensorInferenceFn

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_uri: str,
        model_type: ModelType = ModelType.SAVED_MODEL,
        create_model_fn: Callable[[], Any] | None = None,
        *,
        load_model_args: dict[str, Any] | None = None,
        custom_weights: str = "",
        inference_fn: TensorInferenceFn | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Names the model's file, and how it is loaded and called.

        Args:
            model_uri: The path of a SavedModel's folder, of a ``.keras`` or HDF5 file, or of a file of weights;
                on any file system that Beam reads. What Keras or TensorFlow cannot read there is copied.
            model_type: Whether there is a whole model or weights alone.
            create_model_fn: For weights alone: builds the model that they are for.
            load_model_args: Keywords for ``keras.models.load_model``, such as ``custom_objects``; for a
                SavedModel those of ``tf.saved_model.load``, such as ``tags``. If they do not say otherwise,
                Python code in the file is refused (``safe_mode=True``), and what only training needs is not
                loaded (``compile=False``).
            custom_weights: The path of weights that the Keras model gets in place of its own.
            inference_fn: Calls the model, in place of the default; gets the model, the examples, the inference
                arguments and the model's path, and returns the results.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: Options contradict each other.
        """
        super().__init__(**options)
        _check_type(model_type, create_model_fn, load_model_args or custom_weights)
        self._model_uri = model_uri
        self._model_type = model_type
        self._inference_fn = inference_fn or type(self)._default_inference_fn
        self._create_model_fn = create_model_fn
        self._load_model_args = load_model_args or {}
        self._custom_weights = custom_weights

    def load_model(self) -> Any:
        """A Keras model, or what ``tf.saved_model.load`` makes of a SavedModel.

        Raises:
            ModelNotFoundError: There is no such file.
            ModelLoadError: The file is of another kind, is truncated, needs a later version, would run code of
                its own, or has weights of another architecture.
        """
        if self._model_type is ModelType.SAVED_WEIGHTS:
            return load_weights(self._create_model_fn(), self._model_uri, "model_uri")  # type: ignore[misc]
        model = load_model(self._model_uri, self._load_model_args)
        if self._custom_weights:
            load_weights(model, self._custom_weights, "custom_weights")
        if self._inference_fn is type(self)._default_inference_fn:
            _check_callable(model, self._model_uri)
        return model

    def update_model_path(self, model_path: str | None = None) -> None:
        self._model_uri = model_path or self._model_uri

    def run_inference(
        self,
        batch: Sequence[Any],
        model: Any,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[PredictionResult]:
        """Results for a batch, as the handler's inference function gives them; they hold tensors.

        Raises:
            BatchShapeError: An element has another shape than the others, or than the model takes.
            ElementError: An input is missing, unknown, or of a type that the model does not take.
            ResultMismatchError: An output does not have one row for each example.
        """
        args = inference_args or {}
        if self._inference_fn in (default_numpy_inference_fn, default_tensor_inference_fn):
            return self.results_of(batch, output_of(model, batch, args), self._model_uri)
        return self._inference_fn(model, batch, args, self._model_uri)

    def may_join_threads(self) -> bool:
        return True


class TFModelHandlerNumpy(_TFModelHandler):
    """Runs a model of TensorFlow or Keras on NumPy arrays, or on dictionaries of arrays by input name.

    The arrays of a batch, which must have one shape, are stacked along a new first axis. Results hold tensors:
    ``result.inference.numpy()`` is the array.

    >>> import os, tempfile, keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
    >>> path = os.path.join(tempfile.mkdtemp(), "sum.keras")
    >>> model.save(path)
    >>> handler = TFModelHandlerNumpy(path)
    >>> [float(result.inference[0]) for result in handler.predict([np.array([1, 2]), np.array([3, 4])])]
    [3.0, 7.0]
    """

    _default_inference_fn = staticmethod(default_numpy_inference_fn)

    def get_metrics_namespace(self) -> str:
        return "BeamML_TF_Numpy"


class TFModelHandlerTensor(_TFModelHandler):
    """Runs a model of TensorFlow or Keras on tensors, or on dictionaries of tensors by input name.

    >>> import os, tempfile, keras, tensorflow as tf
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
    >>> path = os.path.join(tempfile.mkdtemp(), "sum.keras")
    >>> model.save(path)
    >>> handler = TFModelHandlerTensor(path)
    >>> [float(result.inference[0]) for result in handler.predict([tf.constant([1.0, 2.0])])]
    [3.0]
    """

    _default_inference_fn = staticmethod(default_tensor_inference_fn)

    def get_metrics_namespace(self) -> str:
        return "BeamML_TF_Tensor"


def _check_type(model_type: Any, create_model_fn: Any, of_whole_models: Any) -> None:
    if not isinstance(model_type, ModelType):
        raise OptionError(
            f"model_type must be ModelType.SAVED_MODEL or ModelType.SAVED_WEIGHTS, and is {model_type!r}."
        )
    if model_type is ModelType.SAVED_MODEL and create_model_fn is not None:
        raise OptionError(
            "create_model_fn builds a model for weights alone: add model_type=ModelType.SAVED_WEIGHTS, or leave "
            "it out."
        )
    if model_type is ModelType.SAVED_WEIGHTS and not callable(create_model_fn):
        raise OptionError(
            "ModelType.SAVED_WEIGHTS needs create_model_fn, a function that builds the model that the weights are "
            "for."
        )
    if model_type is ModelType.SAVED_WEIGHTS and of_whole_models:
        raise OptionError(
            "load_model_args and custom_weights are for ModelType.SAVED_MODEL: a model that create_model_fn "
            "builds gets the weights of model_uri, and no others."
        )


def _check_callable(model: Any, path: str) -> None:
    if signature_of(model) is not None or callable(model):
        return
    names = sorted(getattr(model, "signatures", ()))
    has = f"the signatures {', '.join(names)}, and none of them is" if names else "no signature"
    raise ModelLoadError(
        f"The SavedModel {path!r} has {has} serving_default. Say with inference_fn what to call, for example "
        "lambda model, batch, args, path: to_results(batch, model.signatures['name'](x=batch)['y'], path)."
    )
