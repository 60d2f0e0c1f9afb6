"""Handlers for scikit-learn estimators and pipelines, on NumPy arrays or pandas data frames."""

from __future__ import annotations

import enum
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO

from typing_extensions import Unpack

from runinference.checks import check_callable, check_names, check_path, check_sha256
from runinference.collate.frames import is_dataframe, split_examples
from runinference.collate.stack import stack_arrays
from runinference.collate.unbatch import unbatch
from runinference.errors import (
    BatchShapeError,
    ModelFileTypeError,
    ModelLoadError,
    ModelUnpicklingError,
    OptionError,
)
from runinference.extras import need
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.options import HandlerOptions, accepts
from runinference.model_file import open_model
from runinference.results import PredictionResult

__all__ = ["ModelFileType", "SklearnModelHandlerNumpy", "SklearnModelHandlerPandas"]


#: Types of ``inference_fn``: ``(model, batch, inference_args)`` to the predictions; for frames also their rows.
NumpyInferenceFn = Callable[[Any, Sequence[Any], "dict[str, Any] | None"], Any]
PandasInferenceFn = Callable[[Any, Sequence[Any], "dict[str, Any] | None"], Any]


class ModelFileType(enum.Enum):
    """The format of an estimator's file.

    Loading a pickle or joblib file can run arbitrary code. Load only files that you trust, and pin them with
    ``model_sha256``. Loading a skops file runs no code, and builds only types that you trust.

    Attributes:
        PICKLE: Written by ``pickle.dump``; the default.
        JOBLIB: Written by ``joblib.dump``.
        SKOPS: Written by ``skops.io.dump``.
    """

    PICKLE = 1
    JOBLIB = 2
    SKOPS = 3


def _predict_arrays(
    model: Any, batch: Sequence[Any], inference_args: dict[str, Any] | None = None
) -> Any:
    return model.predict(stack_arrays(batch), **(inference_args or {}))


def _predict_frames(
    model: Any, batch: Sequence[Any], inference_args: dict[str, Any] | None = None
) -> Any:
    import pandas as pd

    if is_dataframe(batch):
        return model.predict(batch, **(inference_args or {})), batch
    frame = pd.concat(batch, axis=0)
    return model.predict(frame, **(inference_args or {})), split_examples(frame)


class _SklearnModelHandler(ModelHandler[Any, PredictionResult, Any]):
    """The constructor and ``load_model`` of both handlers."""

    _metrics_namespace = "BeamML_Sklearn"
    _path_attribute = "_model_uri"
    _supports_dynamic_batching = True
    _default_inference_fn: Callable[..., Any]

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_uri: str,
        model_file_type: ModelFileType = ModelFileType.PICKLE,
        *,
        inference_fn: Callable[..., Any] | None = None,
        trusted_types: Sequence[str] | None = None,
        model_sha256: str | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Configure the estimator's file and how the estimator is called.

        Args:
            model_uri: The path of the file, on any file system that Beam reads.
            model_file_type: The format of the file.
            inference_fn: A function ``(model, batch, inference_args)`` that calls the estimator, instead of the
                default described above.
            trusted_types: For skops files: names of types that may be built, in addition to those of
                scikit-learn, NumPy and Python that skops trusts by default.
            model_sha256: The expected SHA-256 digest of the file in hexadecimal, checked before loading.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: ``model_file_type`` isn't a ``ModelFileType``, or doesn't support ``trusted_types``.
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
                model = _load_skops(file, self._model_uri, self._trusted_types)
            else:
                model = _load_pickle(file, self._model_uri, self._model_file_type)
        is_default = self._model_inference_fn is type(self)._default_inference_fn
        if is_default and not hasattr(model, "predict"):
            raise ModelLoadError(
                f"The file {self._model_uri!r} contains a {type(model).__name__}, which has no predict(). Save a "
                "fitted estimator, or pass an inference_fn that calls this object."
            )
        return model


class SklearnModelHandlerNumpy(_SklearnModelHandler):
    """Run a scikit-learn estimator on NumPy arrays, one array per example.

    By default, the arrays of a batch are stacked along a new first axis and passed to the estimator's
    ``predict``. They must have the same shape.

    >>> from runinference import samples
    >>> handler = SklearnModelHandlerNumpy(model_uri=samples.digits_classifier())
    >>> images, labels = samples.held_out_digits()
    >>> [int(result.inference) for result in handler.predict(images[:3])]
    [1, 4, 0]
    """

    _default_inference_fn = staticmethod(_predict_arrays)

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Run the estimator on a batch of arrays.

        Raises:
            BatchShapeError: The arrays differ in shape.
            ResultMismatchError: The number of predictions isn't the number of arrays.
        """
        predictions = self._model_inference_fn(model, batch, inference_args)
        return self.results_of(batch, predictions, self._model_uri)


class SklearnModelHandlerPandas(_SklearnModelHandler):
    """Run a scikit-learn estimator on pandas data frames, one frame with a single row per example.

    By default, the frames of a batch are concatenated and passed to the estimator's ``predict``. They must have
    the same columns. An ``inference_fn`` returns the predictions and the list of rows that they belong to.

    >>> from runinference import samples
    >>> handler = SklearnModelHandlerPandas(model_uri=samples.diabetes_regressor())
    >>> patients, progression = samples.held_out_diabetes()
    >>> [result] = handler.predict([patients.iloc[[0]]])
    >>> result.example.shape
    (1, 10)
    """

    _default_inference_fn = staticmethod(_predict_frames)

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Run the estimator on a batch of single-row frames, or on the rows of one frame.

        Raises:
            BatchShapeError: A frame doesn't have exactly one row, or has other columns than the first.
            ResultMismatchError: The number of predictions isn't the number of frames.
        """
        if self.gives_whole_results():
            predictions, _ = self._model_inference_fn(model, batch, inference_args)
            return self.results_of(batch, predictions, self._model_uri)
        batch = split_examples(batch)
        _check_frames(batch)
        predictions, rows = self._model_inference_fn(model, batch, inference_args)
        inferences = unbatch(predictions, len(batch))
        return [
            PredictionResult(row, inference, self._model_uri)
            for row, inference in zip(rows, inferences, strict=True)
        ]


def _check_frames(batch: Sequence[Any]) -> None:
    columns = batch[0].columns
    for index, frame in enumerate(batch):
        if frame.shape[0] != 1:
            raise BatchShapeError(
                f"Element {index} of the batch is a frame of shape {frame.shape}, but only dataframes with single "
                "rows are supported. Emit one frame per row, for example (df.iloc[[i]] for i in range(len(df)))."
            )
        if not frame.columns.equals(columns):
            raise BatchShapeError(
                f"Element {index} of the batch has the columns {list(frame.columns)}, but element 0 has "
                f"{list(columns)}. Select the same columns in the same order before RunInference."
            )


def _load_pickle(file: BinaryIO, path: str, file_type: ModelFileType) -> Any:
    library = pickle if file_type is ModelFileType.PICKLE else need("joblib", extra="sklearn")
    try:
        return library.load(file)
    except ImportError:
        raise
    except Exception as error:
        raise _wrong_file_type(file, path, file_type) from error


def _load_skops(file: BinaryIO, path: str, trusted_types: Sequence[str] | None) -> Any:
    skops_io = need("skops.io", extra="sklearn")
    data = file.read()
    try:
        unknown = skops_io.get_untrusted_types(data=data)
    except Exception as error:
        raise _wrong_file_type(file, path, ModelFileType.SKOPS) from error
    if missing := sorted(set(unknown) - set(trusted_types or ())):
        raise ModelLoadError(
            f"The skops file {path!r} contains types that are not trusted: {', '.join(missing)}. If you know "
            f"and trust them, pass trusted_types={missing!r}."
        )
    return skops_io.loads(data, trusted=unknown)


def _wrong_file_type(file: BinaryIO, path: str, file_type: ModelFileType) -> ModelUnpicklingError:
    file.seek(0)
    start = file.read(64)
    if not start:
        hint = "It is empty"
    elif start.startswith(b"PK"):
        hint = "It is a zip archive, like a skops file: for skops, pass model_file_type=ModelFileType.SKOPS"
    elif file_type is ModelFileType.PICKLE and start[:1] in b"\x80\x78\x1fB\xfd":
        hint = "If joblib wrote it, pass model_file_type=ModelFileType.JOBLIB; otherwise it may be truncated"
    elif file_type is not ModelFileType.PICKLE and start[:1] == b"\x80":
        hint = "It starts like a pickle: pass model_file_type=ModelFileType.PICKLE; otherwise it may be truncated"
    else:
        hint = f"It starts with {start[:12]!r}"
    return ModelUnpicklingError(f"The file {path!r} cannot be loaded as {file_type}. {hint}.")
