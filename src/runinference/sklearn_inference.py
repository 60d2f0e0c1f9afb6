"""Handlers for scikit-learn estimators and pipelines, on NumPy arrays or pandas data frames."""

from __future__ import annotations

import enum
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO

from typing_extensions import Unpack

from runinference.collate.frames import is_dataframe, split_examples
from runinference.collate.stack import stack_arrays
from runinference.collate.unbatch import unbatch
from runinference.errors import BatchShapeError, ModelLoadError, OptionError
from runinference.extras import need
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.options import HandlerOptions, accepts
from runinference.model_file import open_model
from runinference.results import PredictionResult

__all__ = ["ModelFileType", "SklearnModelHandlerNumpy", "SklearnModelHandlerPandas"]


class ModelFileType(enum.Enum):
    """How the estimator was written to its file.

    Loading a pickle or joblib file runs whatever code it holds: load only files you trust, and pin them with
    ``model_sha256``. A skops file runs none: it holds types, and only those that you trust are built.

    Attributes:
        PICKLE: ``pickle.dump`` wrote it; the default.
        JOBLIB: ``joblib.dump`` wrote it.
        SKOPS: ``skops.io.dump`` wrote it.
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
    return model.predict(frame, **(inference_args or {})), [
        frame.iloc[[i]] for i in range(len(frame))
    ]


class _SklearnModelHandler(ModelHandler[Any, PredictionResult, Any]):
    """What both handlers have in common: the file, and how it is loaded."""

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
        """Names the estimator's file and how to call it.

        Args:
            model_uri: The path of the file, on any file system that Beam reads.
            model_file_type: How the file was written.
            inference_fn: Calls the estimator, in place of the default described above; gets the estimator,
                the list of examples and the inference arguments.
            trusted_types: For skops files: the types that may be built, beyond those of scikit-learn, NumPy
                and Python that skops trusts itself.
            model_sha256: The SHA-256 digest that the file must have, in hexadecimal digits; checked before
                anything is unpickled.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: Options contradict each other.
        """
        super().__init__(**options)
        if not isinstance(model_file_type, ModelFileType):
            names = ", ".join(str(kind) for kind in ModelFileType)
            raise OptionError(
                f"model_file_type must be one of {names}, and is {model_file_type!r}."
            )
        if trusted_types is not None and model_file_type is not ModelFileType.SKOPS:
            raise OptionError("trusted_types is for model_file_type=ModelFileType.SKOPS alone.")
        self._model_uri = model_uri
        self._model_file_type = model_file_type
        self._model_inference_fn = inference_fn or type(self)._default_inference_fn
        self._trusted_types = trusted_types
        self._model_sha256 = model_sha256

    def load_model(self) -> Any:
        """The estimator in the file.

        Raises:
            ModelNotFoundError: There is no such file.
            ModelLoadError: The file is not of this type, has another digest, or holds no estimator.
        """
        need("sklearn", extra="sklearn")
        sha256 = getattr(self, "_model_sha256", None)
        with open_model(self._model_uri, "model_uri", sha256) as file:
            model = _READERS[self._model_file_type](
                file, self._model_uri, getattr(self, "_trusted_types", None)
            )
        if self._model_inference_fn is type(self)._default_inference_fn and not hasattr(
            model, "predict"
        ):
            raise ModelLoadError(
                f"The file {self._model_uri!r} holds a {type(model).__name__}, which has no predict(). Save a "
                "fitted estimator, or say with inference_fn how this object is called."
            )
        return model

    def update_model_path(self, model_path: str | None = None) -> None:
        self._model_uri = model_path or self._model_uri

    def may_join_threads(self) -> bool:
        return True

    def get_metrics_namespace(self) -> str:
        return "BeamML_Sklearn"


class SklearnModelHandlerNumpy(_SklearnModelHandler):
    """Runs a scikit-learn estimator on NumPy arrays, one array an example.

    By default the arrays of a batch, which must have one shape, are stacked along a new first axis and given to
    the estimator's ``predict``.

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
        """Predictions for a batch of arrays of one shape.

        Raises:
            BatchShapeError: An array has another shape than the others.
            ResultMismatchError: The estimator gave more or fewer predictions than there are arrays.
        """
        predictions = self._model_inference_fn(model, batch, inference_args)
        return self.results_of(batch, predictions, self._model_uri)


class SklearnModelHandlerPandas(_SklearnModelHandler):
    """Runs a scikit-learn estimator on pandas data frames, a frame of one row an example.

    By default the frames of a batch, which must have the same columns, are concatenated and given to the
    estimator's ``predict``. An ``inference_fn`` returns the predictions and the list of rows they belong to.

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
        """Predictions for a batch of frames of one row each, with the same columns; or for the rows of a frame.

        Raises:
            BatchShapeError: A frame has not one row, or has other columns than the first.
            ResultMismatchError: The estimator gave more or fewer predictions than there are frames.
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
                f"Element {index} of the batch is a frame of shape {frame.shape}: only dataframes with single "
                "rows are supported. Emit one frame a row, for example (df.iloc[[i]] for i in range(len(df)))."
            )
        if not frame.columns.equals(columns):
            raise BatchShapeError(
                f"Element {index} of the batch has the columns {list(frame.columns)}, and element 0 has "
                f"{list(columns)}. Select the same columns in the same order before RunInference."
            )


def _read_pickle(file: BinaryIO, path: str, trusted_types: Sequence[str] | None) -> Any:
    try:
        return pickle.load(file)
    except ImportError:
        raise
    except Exception as error:
        raise _wrong_type(file, path, ModelFileType.PICKLE) from error


def _read_joblib(file: BinaryIO, path: str, trusted_types: Sequence[str] | None) -> Any:
    import joblib

    try:
        return joblib.load(file)
    except ImportError:
        raise
    except Exception as error:
        raise _wrong_type(file, path, ModelFileType.JOBLIB) from error


def _read_skops(file: BinaryIO, path: str, trusted_types: Sequence[str] | None) -> Any:
    skops_io = need("skops.io", extra="sklearn")
    data = file.read()
    try:
        unknown = skops_io.get_untrusted_types(data=data)
    except Exception as error:
        raise _wrong_type(file, path, ModelFileType.SKOPS) from error
    if missing := sorted(set(unknown) - set(trusted_types or ())):
        raise ModelLoadError(
            f"The skops file {path!r} holds types that are not trusted: {', '.join(missing)}. If you know "
            f"them and trust them, name them: trusted_types={missing!r}."
        )
    return skops_io.loads(data, trusted=unknown)


_READERS = {
    ModelFileType.PICKLE: _read_pickle,
    ModelFileType.JOBLIB: _read_joblib,
    ModelFileType.SKOPS: _read_skops,
}


def _wrong_type(file: BinaryIO, path: str, said: ModelFileType) -> ModelLoadError:
    file.seek(0)
    head = file.read(64)
    if not head:
        found = "It is empty"
    elif head.startswith(b"PK"):
        found = "It is a zip archive, as skops writes: for skops pass model_file_type=ModelFileType.SKOPS"
    elif said is ModelFileType.PICKLE and head[:1] in (b"\x80", b"\x78", b"\x1f", b"B", b"\xfd"):
        found = "If joblib wrote it, pass model_file_type=ModelFileType.JOBLIB; otherwise it may be truncated"
    elif said is not ModelFileType.PICKLE and head[:1] == b"\x80":
        found = "It starts like a pickle: pass model_file_type=ModelFileType.PICKLE; otherwise it may be truncated"
    else:
        found = f"It begins with {head[:12]!r}"
    return ModelLoadError(f"The file {path!r} cannot be loaded as {said}. {found}.")
