"""Handlers for scikit-learn estimators and pipelines, on NumPy arrays or pandas DataFrames."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any

from typing_extensions import Unpack

from runinference.checks import check_callable, check_names, check_path, check_sha256
from runinference.collate.batch_axis import BatchAxis, repeat_first
from runinference.collate.class_output import ClassPredictions, to_class_predictions
from runinference.collate.frames import concat_frames, is_dataframe
from runinference.collate.records import is_record, records_to_frame
from runinference.collate.row_inputs import ArrayInput, FrameInput
from runinference.collate.stack import reject_keyed_examples, stack_arrays
from runinference.collate.tables import (
    concat_tables,
    has_only_numbers,
    is_sparse,
    split_examples,
    to_tables,
)
from runinference.collate.unbatch import batch_length, unbatch
from runinference.errors import (
    BatchShapeError,
    ElementError,
    ModelFileTypeError,
    ModelLoadError,
    OptionError,
    RunInferenceError,
)
from runinference.extras import need
from runinference.frameworks.sklearn.loading import ModelFileType, load_pickle, load_skops
from runinference.frameworks.sklearn.signature import get_signature
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.model_signature import ModelSignature
from runinference.handlers.options import HandlerOptions, accepts
from runinference.model_file import open_model
from runinference.results import PredictionResult

__all__ = [
    "ModelFileType",
    "NumpyInferenceFn",
    "PandasInferenceFn",
    "SklearnModelHandlerNumpy",
    "SklearnModelHandlerPandas",
]


NumpyInferenceFn = Callable[[Any, Sequence[Any], "dict[str, Any] | None"], Any]
"""An ``inference_fn`` for arrays: ``(model, batch, inference_args)`` to one prediction per array."""
PandasInferenceFn = Callable[[Any, Sequence[Any], "dict[str, Any] | None"], "tuple[Any, Any]"]
"""An ``inference_fn`` for DataFrames: ``(model, batch, inference_args)`` to the predictions and their frames."""


def _predict_arrays(
    model: Any, batch: Sequence[Any], inference_args: dict[str, Any] | None = None
) -> Any:
    if not hasattr(batch, "shape") and is_sparse(batch[0]):
        rows = concat_tables(to_tables(batch))
        if rows.shape[0] != len(batch):
            raise BatchShapeError(
                f"The {len(batch)} sparse matrices of the batch have {rows.shape[0]} rows. To fix this, emit one "
                "matrix per row, for example (matrix[[i]] for i in range(matrix.shape[0]))."
            )
    else:
        rows = stack_arrays(batch)
    return _predict(model, rows, inference_args)


def _predict_frames(
    model: Any, batch: Sequence[Any], inference_args: dict[str, Any] | None = None
) -> Any:
    if is_dataframe(batch):
        return _predict(model, batch, inference_args), batch
    predictions: list[Any] = [None] * len(batch)
    for group in _group_by_index(batch):
        frame = concat_frames([batch[i] for i in group], ignore_index=False)
        if not frame.index.is_unique:
            frame = frame.reset_index(drop=True)
        output = _predict(model, frame, inference_args)
        if len(group) == len(batch):
            return output, batch
        for i, prediction in zip(group, unbatch(output, len(group)), strict=True):
            predictions[i] = prediction
    return predictions, batch


def _group_by_index(batch: Sequence[Any]) -> list[list[int]]:
    """Return the positions of frames of one row that share a call.

    A frame made from one record has the index 0, which holds no information. Any other index label occurs once in
    a call, because an estimator may join or select rows by the index.
    """
    labels = [frame.index[0] for frame in batch]
    is_numbered = all(type(label) is int or isinstance(label, Integral) for label in labels)
    if is_numbered and batch[0].index.name is None:
        return [[*range(len(batch))]]
    seen: Counter[Any] = Counter()
    groups: list[list[int]] = []
    for position, label in enumerate(labels):
        n_before = seen[label]
        seen[label] += 1
        if n_before == len(groups):
            groups.append([])
        groups[n_before].append(position)
    return groups


def _call_predict(model: Any, rows: Any, **inference_args: Any) -> Any:
    return model.predict(rows, **inference_args)


def _predict(
    model: Any,
    rows: Any,
    inference_args: dict[str, Any] | None,
    call: Callable[..., Any] = _call_predict,
) -> Any:
    """Call the estimator. Explain the errors that name neither the cause in the batch nor how to fix it."""
    try:
        return call(model, rows, **(inference_args or {}))
    except RunInferenceError:
        raise
    except (ValueError, KeyError) as error:
        raise _explain(error, model, rows) from error
    except (TypeError, OverflowError) as error:
        if has_only_numbers(rows) or "keyword argument" in str(error):
            raise
        raise _explain(error, model, rows) from error


def _predict_classes(model: Any, rows: Any, **inference_args: Any) -> ClassPredictions:
    probabilities = model.predict_proba(rows, **inference_args)
    labels = model.predict(rows, **inference_args)  # may depend on a threshold
    return to_class_predictions(probabilities, model.classes_.tolist(), labels)


def _explain(error: Exception, model: Any, rows: Any) -> Exception:
    shape = tuple(rows.shape)
    n_features = getattr(model, "n_features_in_", None)
    name = type(model).__name__
    if len(shape) == 2 and isinstance(n_features, int) and shape[1] != n_features:
        names = f" The error is: {error}" if is_dataframe(rows) else ""
        return BatchShapeError(
            f"The elements of the batch have {shape[1]} features, and the estimator, a {name}, was trained with "
            f"{n_features}. To fix this, select the features of the training data with with_preprocess_fn.{names}"
        )
    if len(shape) != 2:
        return BatchShapeError(
            f"The estimator, a {name}, rejects elements of shape {shape[1:]}. To fix this, convert them to "
            f"arrays of shape (features,) with with_preprocess_fn. The error is: {error}"
        )
    return ElementError(
        f"The estimator, a {name}, rejects the batch. To fix this, convert the elements to the columns and types "
        f"of the training data with with_preprocess_fn. The error is: {error}"
    )


class _SklearnModelHandler(ModelHandler[Any, PredictionResult, Any]):
    """The constructor and ``load_model`` of both handlers."""

    _metrics_namespace = "BeamML_Sklearn"
    _path_attribute = "_model_uri"
    _has_native_model = True
    _supports_dynamic_batching = True
    _default_inference_fn: NumpyInferenceFn | PandasInferenceFn

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_uri: str | os.PathLike[str],
        model_file_type: ModelFileType = ModelFileType.PICKLE,
        *,
        inference_fn: NumpyInferenceFn | PandasInferenceFn | None = None,
        trusted_types: Sequence[str] | None = None,
        model_sha256: str | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Configure the estimator's file and how the estimator is called.

        Args:
            model_uri: The path of the estimator's file, on any file system that Beam supports.
            model_file_type: The format of the file, by default a pickle.
            inference_fn: A function ``(model, batch, inference_args)`` that calls the estimator instead of the
                default described above, and returns one prediction per example.
            trusted_types: For skops files: fully qualified names of types that may be loaded, in addition to those
                of scikit-learn, NumPy and Python that skops trusts by default.
            model_sha256: The expected SHA-256 digest of the file, in hexadecimal. It is checked before the file is
                loaded.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: ``model_file_type`` isn't a ``ModelFileType``, or doesn't support ``trusted_types``, or
                another option is invalid.
        """
        super().__init__(**options)
        if not isinstance(model_file_type, ModelFileType):
            names = ", ".join(map(str, ModelFileType))
            raise ModelFileTypeError(
                f"Unsupported serialization type: model_file_type must be one of {names}, but is "
                f"{model_file_type!r}."
            )
        if trusted_types is not None:
            check_names("trusted_types", trusted_types)
            if model_file_type is not ModelFileType.SKOPS:
                raise OptionError("trusted_types requires model_file_type=ModelFileType.SKOPS.")
        if inference_fn is not None:
            check_callable("inference_fn", inference_fn)
        if model_sha256 is not None:
            check_sha256("model_sha256", model_sha256)
        self._model_uri = check_path("model_uri", model_uri)
        self._model_file_type = model_file_type
        self._model_inference_fn = inference_fn or type(self)._default_inference_fn
        self._trusted_types = trusted_types
        self._model_sha256 = model_sha256

    # Subclasses may skip this constructor.
    _trusted_types: Sequence[str] | None = None
    _model_sha256: str | None = None

    def load_model(self) -> Any:
        """Load the estimator from its file.

        Raises:
            ModelNotFoundError: The file doesn't exist.
            ModelLoadError: The file has another format or another digest, or contains no estimator.
        """
        need("sklearn", extra="sklearn")
        with open_model(self._model_uri, "model_uri", self._model_sha256) as file:
            if self._model_file_type is ModelFileType.SKOPS:
                model = load_skops(file, self._model_uri, self._trusted_types)
            else:
                model = load_pickle(file, self._model_uri, self._model_file_type)
        is_default = self._model_inference_fn is type(self)._default_inference_fn
        if is_default and not hasattr(model, "predict"):
            raise ModelLoadError(
                f"The file {self._model_uri!r} contains a {type(model).__name__}, which has no predict(). Save a "
                "fitted estimator, or pass an inference_fn that calls this object."
            )
        return model

    def _unbatch(self, predictions: Any, batch: Any, model: Any, inference_args: Any) -> list[Any]:
        """Split predictions by example. Several outputs are checked with another call of the estimator."""

        def call_again(size: int) -> Any:
            return self._call_again(repeat_first(batch, size), model, inference_args)

        key = self._model_inference_fn, *(inference_args or ())
        axis = BatchAxis(model, key, self._list_output, call_again)
        return axis.unbatch(predictions, len(batch))

    def _call_again(self, batch: Any, model: Any, inference_args: Any) -> Any:
        return self._model_inference_fn(model, batch, inference_args)

    def may_modify_examples(self) -> bool:
        is_default = self._model_inference_fn is type(self)._default_inference_fn
        return not is_default or super().may_modify_examples()

    def predict_classes(
        self, batch: Any, model: Any, inference_args: dict[str, Any] | None = None
    ) -> ClassPredictions:
        if self._model_inference_fn is not type(self)._default_inference_fn:
            raise OptionError(
                "probabilities doesn't call inference_fn. To fix this, leave one of them out, and return several "
                "fields from inference_fn."
            )
        found: ClassPredictions = _predict(model, batch, inference_args, _predict_classes)
        return found

    def get_model_signature(self, model: Any) -> ModelSignature:
        is_default = self._model_inference_fn is type(self)._default_inference_fn
        return get_signature(model, with_output=is_default)


class SklearnModelHandlerNumpy(_SklearnModelHandler):
    """Run a scikit-learn estimator on NumPy arrays, lists or SciPy sparse matrices, one row per example.

    By default, the arrays of a batch are stacked along a new first axis and passed to the estimator's
    ``predict``. They must have the same shape. Sparse matrices of one row are concatenated.

    >>> from runinference import samples
    >>> handler = SklearnModelHandlerNumpy(model_uri=samples.digits_classifier())
    >>> images, labels = samples.held_out_digits()
    >>> [int(result.inference) for result in handler.predict(images[:3])]
    [1, 4, 0]
    """

    _default_inference_fn = staticmethod(_predict_arrays)
    _row_input = ArrayInput()
    _keeps_examples = True

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Run the estimator on a batch of arrays.

        Args:
            batch: Arrays or lists of the same shape, or sparse matrices of one row.
            model: The estimator that ``load_model`` returned.
            inference_args: Keyword arguments for the estimator's ``predict``, or None.

        Raises:
            BatchShapeError: The arrays differ in shape, or have other features than the training data.
            ElementError: The estimator rejects the values of an array.
            ResultMismatchError: The number of predictions isn't the number of arrays.
        """
        predictions = self._model_inference_fn(model, batch, inference_args)
        if not self.gives_whole_results() and batch_length(batch) is not None:
            predictions = self._unbatch(predictions, batch, model, inference_args)
        return self.results_of(batch, predictions, self._model_uri)


class SklearnModelHandlerPandas(_SklearnModelHandler):
    """Run a scikit-learn estimator on pandas DataFrames, one frame with a single row per example.

    By default, the frames of a batch are concatenated and passed to the estimator's ``predict``. They must have
    the same columns. An example can also be a record with named values: a dictionary, Series, named tuple,
    dataclass or ``beam.Row``. An ``inference_fn`` gets a list of frames, and returns a tuple: the predictions, and
    the list of frames that they belong to.

    >>> from runinference import samples
    >>> handler = SklearnModelHandlerPandas(model_uri=samples.diabetes_regressor())
    >>> patients, progression = samples.held_out_diabetes()
    >>> [result] = handler.predict([patients.iloc[[0]]])
    >>> result.example.shape
    (1, 10)
    """

    _default_inference_fn = staticmethod(_predict_frames)
    _row_input = FrameInput()
    _keeps_examples = True

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Run the estimator on a batch of single-row frames, or on the rows of one frame.

        Args:
            batch: DataFrames of one row with the same columns, records, or one DataFrame.
            model: The estimator that ``load_model`` returned.
            inference_args: Keyword arguments for the estimator's ``predict``, or None.

        Raises:
            BatchShapeError: A frame doesn't have exactly one row, or has other columns than the first.
            ElementError: An example is neither a frame nor a record, or the estimator rejects its values.
            ResultMismatchError: The number of predictions isn't the number of frames.
        """
        if self.gives_whole_results():
            predictions, _ = self._model_inference_fn(model, batch, inference_args)
            return self.results_of(batch, predictions, self._model_uri)
        examples = split_examples(batch)
        rows: Any = _to_frames(examples)
        if self._model_inference_fn is not type(self)._default_inference_fn:
            rows = split_examples(rows)
        predictions, found = self._model_inference_fn(model, rows, inference_args)
        inferences = self._unbatch(predictions, rows, model, inference_args)
        rows = found
        if is_record(examples[0]):
            rows = examples
        return [
            PredictionResult(row, inference, self._model_uri)
            for row, inference in zip(rows, inferences, strict=True)
        ]

    def _call_again(self, batch: Any, model: Any, inference_args: Any) -> Any:
        predictions, _ = self._model_inference_fn(model, batch, inference_args)
        return predictions


def _to_frames(examples: Sequence[Any]) -> Any:
    """Return examples that are frames of one row with the same columns, or a frame made from records."""
    if is_record(examples[0]):
        return records_to_frame(examples)
    for index, frame in enumerate(examples):
        if not is_dataframe(frame):
            reject_keyed_examples(examples)
            raise ElementError(
                f"Element {index} of the batch is a {type(frame).__name__}. This handler takes DataFrames of "
                "one row, or records with named values: dictionaries, Series, named tuples, dataclasses or "
                "beam.Row. To fix this, convert the elements, or use SklearnModelHandlerNumpy for arrays.",
                index=index,
            )
        if frame.shape[0] != 1:
            raise BatchShapeError(
                f"Element {index} of the batch is a frame of shape {frame.shape}, but only dataframes with single "
                "rows are supported. To fix this, pass whole frames to the model with "
                "handler.with_no_batching(whole_results=True), or emit one frame per row, for example "
                "(df.iloc[[i]] for i in range(len(df))).",
                index=index,
            )
        if not frame.columns.equals(examples[0].columns):
            raise BatchShapeError(
                f"Element {index} of the batch has the columns {list(frame.columns)}, but element 0 has "
                f"{list(examples[0].columns)}. Select the same columns in the same order before RunInference.",
                index=index,
            )
    return list(examples)
