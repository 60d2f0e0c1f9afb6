"""Handlers for TensorFlow and Keras models, on NumPy arrays or tensors, or on dictionaries of them."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from runinference.checks import check_callable, check_mapping, check_path
from runinference.collate.row_inputs import NamedInput
from runinference.collate.unbatch import to_results
from runinference.errors import ModelLoadError, OptionError
from runinference.frameworks.tensorflow.calling import (
    call_model,
    get_inputs,
    get_output,
    get_signature,
)
from runinference.frameworks.tensorflow.loading import load_keras_or_saved_model, load_weights
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.model_signature import ModelSignature, make_signature
from runinference.handlers.options import HandlerOptions, accepts
from runinference.results import PredictionResult

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = [
    "ModelType",
    "TFModelHandlerNumpy",
    "TFModelHandlerTensor",
    "TensorInferenceFn",
    "default_numpy_inference_fn",
    "default_tensor_inference_fn",
]

TensorInferenceFn = Callable[
    [Any, Sequence[Any], "dict[str, Any]", "str | None"], Iterable[PredictionResult]
]
"""An ``inference_fn``: ``(model, batch, inference_args, model_id)`` to one result per example."""


class ModelType(enum.Enum):
    """The kind of a model file.

    Attributes:
        SAVED_MODEL: A complete model: the directory of a SavedModel, a ``.keras`` file, or an HDF5 file.
        SAVED_WEIGHTS: Only weights, for a model that ``create_model_fn`` builds.
    """

    SAVED_MODEL = 1
    SAVED_WEIGHTS = 2


def default_numpy_inference_fn(
    model: Any, batch: Sequence[Any], inference_args: dict[str, Any], model_id: str | None = None
) -> Iterable[PredictionResult]:
    """Stack the arrays of a batch, call the model once, and split its output by example.

    Args:
        model: A Keras model, a SavedModel, or another callable. Of a SavedModel, the signature ``serving_default``
            is called, or the only signature.
        batch: Arrays of the same shape for the model's first input, or dictionaries of such arrays by input name.
        inference_args: Keyword arguments for the model's call, such as ``training``. For a signature, additional
            inputs by name, the same for all examples.
        model_id: The path of the model, for the results.

    Returns:
        One result per example. Inferences are tensors. If the model has several outputs, they are dictionaries or
        tuples of tensors.

    Raises:
        BatchShapeError: The arrays differ in shape, or don't have the shape that the model expects.
        ElementError: An input is missing, unknown, or has a dtype that the model doesn't accept.
        ResultMismatchError: An output doesn't have one row per example.
    """
    return to_results(batch, call_model(model, batch, inference_args or {}), model_id)


def default_tensor_inference_fn(
    model: Any, batch: Sequence[Any], inference_args: dict[str, Any], model_id: str | None = None
) -> Iterable[PredictionResult]:
    """Stack the tensors of a batch, call the model once, and split its output by example.

    Args:
        model: A Keras model, a SavedModel, or another callable. Of a SavedModel, the signature ``serving_default``
            is called, or the only signature.
        batch: Tensors of the same shape for the model's first input, or dictionaries of such tensors by input
            name.
        inference_args: Keyword arguments for the model's call, such as ``training``. For a signature, additional
            inputs by name, the same for all examples.
        model_id: The path of the model, for the results.

    Returns:
        One result per example. Inferences are tensors. If the model has several outputs, they are dictionaries or
        tuples of tensors.

    Raises:
        BatchShapeError: The tensors differ in shape, or don't have the shape that the model expects.
        ElementError: An input is missing, unknown, or has a dtype that the model doesn't accept.
        ResultMismatchError: An output doesn't have one row per example.
    """
    return default_numpy_inference_fn(model, batch, inference_args, model_id)


class _TFModelHandler(ModelHandler[Any, PredictionResult, Any]):
    """The base class of both handlers."""

    _path_attribute = "_model_uri"
    _has_native_model = True
    _keeps_examples = True
    _supports_dynamic_batching = True
    _default_inference_fn: TensorInferenceFn
    _row_input = NamedInput(lambda model: {spec.name: spec for spec in get_inputs(model)})

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_uri: str | os.PathLike[str],
        model_type: ModelType = ModelType.SAVED_MODEL,
        create_model_fn: Callable[[], tf.keras.Model] | None = None,
        *,
        load_model_args: dict[str, Any] | None = None,
        custom_weights: str | os.PathLike[str] = "",
        inference_fn: TensorInferenceFn | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Configure the model file, and how the model is loaded and called.

        Args:
            model_uri: The path of a SavedModel's directory, of a ``.keras`` or HDF5 file, or of a weights file, on
                any file system that Beam supports. If Keras or TensorFlow can't read it there, it's copied to a
                temporary file.
            model_type: Whether the file contains a complete model or only weights.
            create_model_fn: For ``SAVED_WEIGHTS``, a function that builds the model.
            load_model_args: Keyword arguments for ``keras.models.load_model``, such as ``custom_objects``, or
                for ``tf.saved_model.load``, such as ``tags``. By default, Keras files with Python code are
                rejected (``safe_mode=True``), and training state isn't loaded (``compile=False``).
            custom_weights: The path of a weights file, whose weights replace those of the Keras model.
            inference_fn: A function ``(model, batch, inference_args, model_id)`` that calls the model and returns
                one result per example. By default, ``default_numpy_inference_fn`` or
                ``default_tensor_inference_fn``.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: Options conflict with ``model_type``, or a value is invalid.
        """
        super().__init__(**options)
        if inference_fn is not None:
            check_callable("inference_fn", inference_fn)
        if load_model_args is not None:
            check_mapping("load_model_args", load_model_args)
        weights_path = check_path("custom_weights", custom_weights) if custom_weights else ""
        _check_model_type(model_type, create_model_fn, load_model_args or weights_path)
        self._model_uri = check_path("model_uri", model_uri)
        self._model_type = model_type
        self._inference_fn = inference_fn or type(self)._default_inference_fn
        self._create_model_fn = create_model_fn
        self._load_model_args = load_model_args or {}
        self._custom_weights = weights_path

    def get_model_files(self) -> Sequence[str] | None:
        return [path for path in (self._model_uri, self._custom_weights) if path]

    def load_model(self) -> Any:
        """Load a Keras model, or a SavedModel with ``tf.saved_model.load``.

        Raises:
            ModelNotFoundError: The file doesn't exist.
            ModelLoadError: The file has another format, is truncated, needs a later version, would run its own
                code, or has weights for another architecture.
        """
        if self._model_type is ModelType.SAVED_WEIGHTS:
            return load_weights(self._create_model_fn(), self._model_uri, "model_uri")  # type: ignore[misc]
        model = load_keras_or_saved_model(self._model_uri, self._load_model_args)
        if self._custom_weights:
            load_weights(model, self._custom_weights, "custom_weights")
        if self._inference_fn is type(self)._default_inference_fn:
            _check_callable(model, self._model_uri)
        return model

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Run the model on a batch. The results contain tensors.

        Raises:
            BatchShapeError: The elements differ in shape, or don't have the shape that the model expects.
            ElementError: An input is missing, unknown, or has a dtype that the model doesn't accept.
            ResultMismatchError: An output doesn't have one row per example.
        """
        args = inference_args or {}
        if self._inference_fn in (default_numpy_inference_fn, default_tensor_inference_fn):
            return self.results_of(batch, call_model(model, batch, args), self._model_uri)
        return self._inference_fn(model, batch, args, self._model_uri)

    def get_model_signature(self, model: Any) -> ModelSignature:
        is_default = self._inference_fn is type(self)._default_inference_fn
        return make_signature(get_inputs(model), get_output(model) if is_default else None)

    def may_modify_examples(self) -> bool:
        is_default = self._inference_fn in (default_numpy_inference_fn, default_tensor_inference_fn)
        return not is_default or super().may_modify_examples()


class TFModelHandlerNumpy(_TFModelHandler):
    """Run a TensorFlow or Keras model on NumPy arrays, or on dictionaries of arrays by input name.

    The arrays of a batch are stacked along a new first axis. They must have the same shape. Results contain
    tensors: ``result.inference.numpy()`` is an array.

    >>> import os, tempfile, keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
    >>> path = os.path.join(tempfile.mkdtemp(), "sum.keras")
    >>> model.save(path)
    >>> handler = TFModelHandlerNumpy(path)
    >>> [float(result.inference[0]) for result in handler.predict([np.array([1, 2]), np.array([3, 4])])]
    [3.0, 7.0]
    """

    _metrics_namespace = "BeamML_TF_Numpy"
    _default_inference_fn = staticmethod(default_numpy_inference_fn)


class TFModelHandlerTensor(_TFModelHandler):
    """Run a TensorFlow or Keras model on tensors, or on dictionaries of tensors by input name.

    The tensors of a batch are stacked along a new first axis. They must have the same shape.

    >>> import os, tempfile, keras, tensorflow as tf
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
    >>> path = os.path.join(tempfile.mkdtemp(), "sum.keras")
    >>> model.save(path)
    >>> handler = TFModelHandlerTensor(path)
    >>> [float(result.inference[0]) for result in handler.predict([tf.constant([1.0, 2.0])])]
    [3.0]
    """

    _metrics_namespace = "BeamML_TF_Tensor"
    _default_inference_fn = staticmethod(default_tensor_inference_fn)


def _check_model_type(model_type: Any, create_model_fn: Any, model_options: Any) -> None:
    if not isinstance(model_type, ModelType):
        raise OptionError(
            f"model_type must be ModelType.SAVED_MODEL or ModelType.SAVED_WEIGHTS, but is {model_type!r}."
        )
    if model_type is ModelType.SAVED_MODEL and create_model_fn is not None:
        raise OptionError(
            "create_model_fn is for a file with weights only: add model_type=ModelType.SAVED_WEIGHTS."
        )
    if model_type is ModelType.SAVED_WEIGHTS and not callable(create_model_fn):
        raise OptionError(
            "ModelType.SAVED_WEIGHTS needs create_model_fn, a function that builds the model for the weights."
        )
    if model_type is ModelType.SAVED_WEIGHTS and model_options:
        raise OptionError(
            "load_model_args and custom_weights are for ModelType.SAVED_MODEL: a model built by create_model_fn "
            "gets the weights in model_uri, and no others."
        )


def _check_callable(model: Any, path: str) -> None:
    if get_signature(model) is not None or callable(model):
        return
    names = sorted(getattr(model, "signatures", ()))
    found = f"the signatures {', '.join(names)}, and none of them is" if names else "no signature"
    raise ModelLoadError(
        f"The SavedModel {path!r} has {found} serving_default. Pass an inference_fn that calls one, for example "
        "lambda model, batch, args, path: to_results(batch, model.signatures['name'](x=batch)['y'], path)."
    )
