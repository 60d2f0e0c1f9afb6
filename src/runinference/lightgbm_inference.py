"""Handlers for LightGBM models, on NumPy arrays, pandas DataFrames or SciPy sparse matrices."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from runinference.checks import check_callable, check_path
from runinference.collate.class_output import ClassPredictions
from runinference.collate.row_inputs import ArrayInput, FrameInput, RowInput
from runinference.collate.tables import check_columns, to_floats
from runinference.errors import ModelLoadError
from runinference.extras import need
from runinference.frameworks.boosting import (
    BoostingModelHandler,
    label_classes,
    predict_tables,
    to_matrix,
)
from runinference.frameworks.lightgbm.model_text import check_model_text
from runinference.handlers.model_signature import ModelSignature
from runinference.handlers.options import HandlerOptions, accepts
from runinference.model_file import read_model
from runinference.results import PredictionResult

if TYPE_CHECKING:
    import lightgbm
else:
    lightgbm = need("lightgbm", extra="lightgbm")

__all__ = [
    "LightGBMInferenceFn",
    "LightGBMModelHandlerNumpy",
    "LightGBMModelHandlerPandas",
    "LightGBMModelHandlerSciPy",
    "default_lightgbm_inference_fn",
]


LightGBMInferenceFn = Callable[[Sequence[Any], Any, "dict[str, Any] | None"], Iterable[Any]]
"""An ``inference_fn``: ``(batch, model, inference_args)`` to one result per example."""


def default_lightgbm_inference_fn(
    batch: Sequence[Any],
    model: lightgbm.Booster,
    inference_args: dict[str, Any] | None = None,
) -> Iterable[PredictionResult]:
    """Concatenate the rows of all examples to one table, and call the model's ``predict`` once.

    Args:
        batch: The examples: arrays or lists, DataFrames, or sparse matrices.
        model: The model.
        inference_args: Keyword arguments for the model's ``predict``, such as ``raw_score``, or None.

    Returns:
        One result per example: one prediction for a row of shape ``(features,)``, and an array of predictions
        for a table of shape ``(rows, features)``.

    Raises:
        BatchShapeError: The examples differ in type or columns, or don't have the model's columns.
        ElementError: The model rejects the values of the examples.
        ResultMismatchError: The number of predictions isn't the number of rows.
    """

    return _predict(batch, model, inference_args, _merge_classes)


def _predict(
    batch: Sequence[Any],
    model: lightgbm.Booster,
    inference_args: dict[str, Any] | None,
    convert: Callable[[Any], Any],
) -> list[PredictionResult]:
    def check(tables: Sequence[Any]) -> None:
        check_columns(tables, model.num_feature(), _get_feature_names(model), _normalize_name)

    return predict_tables(
        batch,
        check,
        lambda table: convert(model.predict(to_floats(table), **(inference_args or {}))),
        (ValueError, lightgbm.basic.LightGBMError),
    )


class _LightGBMModelHandler(BoostingModelHandler[Any, PredictionResult, Any]):
    """The constructor and ``load_model`` of all LightGBM handlers."""

    _metrics_namespace = "BeamML_LightGBM"
    _path_attribute = "_model_uri"
    _has_native_model = True
    _default_inference_fn = staticmethod(default_lightgbm_inference_fn)
    _row_input: RowInput = ArrayInput()

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_uri: str | os.PathLike[str],
        *,
        inference_fn: LightGBMInferenceFn = default_lightgbm_inference_fn,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Configure the model file and how the model is called.

        Args:
            model_uri: The path of a text file written by ``Booster.save_model``, on any file system that Beam
                supports. For an ``LGBMClassifier``, save its ``booster_``. Loading such a file runs no code.
            inference_fn: A function ``(batch, model, inference_args)`` that calls the booster and returns one
                result per example.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: ``model_uri`` isn't a path, ``inference_fn`` isn't a function, or another option is
                invalid.
        """
        super().__init__(**options)
        check_callable("inference_fn", inference_fn)
        self._model_uri = check_path("model_uri", model_uri)
        self._inference_fn = inference_fn

    def load_model(self) -> lightgbm.Booster:
        """Load the file as a ``lightgbm.Booster``.

        Raises:
            ModelNotFoundError: The file doesn't exist.
            ModelLoadError: The file is empty, truncated, damaged or not a LightGBM model.
        """
        text = read_model(self._model_uri, "model_uri")
        check_model_text(text, self._model_uri)
        try:
            return lightgbm.Booster(model_str=text.decode("utf-8"))
        except Exception as error:
            raise ModelLoadError(
                f"The file {self._model_uri!r} (model_uri) cannot be loaded by LightGBM "
                f"{lightgbm.__version__} ({error}). It may be damaged, or written by a later version."
            ) from error

    def predict_classes(
        self, batch: Any, model: lightgbm.Booster, inference_args: dict[str, Any] | None = None
    ) -> ClassPredictions:
        self._check_class_args(inference_args)
        [result] = _predict([batch], model, inference_args, to_matrix)
        return label_classes(result.inference)

    def get_model_signature(self, model: lightgbm.Booster) -> ModelSignature:
        names, types = _get_feature_names(model), _get_feature_types(model)
        is_vector = model.num_model_per_iteration() > 1
        is_default = self._inference_fn is self._default_inference_fn
        return ModelSignature(
            features=dict(zip(names, types, strict=True)) if names else None,
            types=types,
            n_features=model.num_feature(),
            output=(Sequence[float] if is_vector else float) if is_default else Any,
            classes=_get_classes(model) if is_default else None,
            normalize_name=_normalize_name,
        )


class LightGBMModelHandlerNumpy(_LightGBMModelHandler):
    """Run a LightGBM model on NumPy arrays.

    An array of shape ``(features,)`` is one row and gets one prediction. For a multiclass classifier, that is an
    array of class probabilities. An array of shape ``(rows, features)`` gets an array with one prediction per
    row. The model is called once per batch.

    >>> import lightgbm, os, tempfile
    >>> from sklearn.datasets import load_iris
    >>> rows, kinds = load_iris(return_X_y=True)
    >>> path = os.path.join(tempfile.mkdtemp(), "iris.txt")
    >>> model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(rows, kinds)
    >>> _ = model.booster_.save_model(path)
    >>> handler = LightGBMModelHandlerNumpy(path)
    >>> [int(result.inference.argmax()) for result in handler.predict(rows[[0, 75, 149]])]
    [0, 1, 2]
    """


class LightGBMModelHandlerPandas(_LightGBMModelHandler):
    """Run a LightGBM model on pandas DataFrames. Each frame gets an array with one prediction per row.

    All frames need the columns of the training data, in the same order.
    """

    _row_input = FrameInput(lambda model: _get_categories(model))


class LightGBMModelHandlerSciPy(_LightGBMModelHandler):
    """Run a LightGBM model on SciPy sparse matrices. Each matrix gets an array with one prediction per row.

    LightGBM treats values that a sparse matrix doesn't store as zeros.
    """


def _merge_classes(output: Any) -> Any:
    """Join the matrices of all classes, which LightGBM returns for sparse rows, to one, as it does for arrays."""
    if not isinstance(output, list):
        return output
    return need("scipy.sparse", extra="lightgbm").hstack(output, format="csr")


def _get_feature_names(model: Any) -> list[str] | None:
    """Return the names of the columns, or None for a model that was trained on arrays."""
    names: list[str] = model.feature_name()
    placeholders = [f"Column_{index}" for index in range(len(names))]
    return None if names == placeholders else names


def _get_classes(model: Any) -> range | None:
    """Return the numbers of the classes; None if the model isn't a classifier."""
    text: str = model.model_to_string(num_iteration=1)
    objective = text.partition("\nobjective=")[2].partition("\n")[0].split(" ")[0]
    if objective == "binary":
        return range(2)
    is_multiclass = objective in ("multiclass", "multiclassova")
    return range(model.num_model_per_iteration()) if is_multiclass else None


def _get_feature_types(model: Any) -> list[Any]:
    """Return float for each column of numbers, whose range the model's text contains, and Any for categories."""
    text: str = model.model_to_string(num_iteration=1)
    infos = text.partition("\nfeature_infos=")[2].partition("\n")[0].split(" ")
    return [float if info.startswith("[") else Any for info in infos]


def _get_categories(model: Any) -> Sequence[Any]:
    """Return the categories of each feature, if it is known which features have some."""
    if not model.pandas_categorical:
        return ()
    categories, types = iter(model.pandas_categorical), _get_feature_types(model)
    if types.count(Any) != len(model.pandas_categorical):
        return ()
    return [next(categories) if kind is Any else None for kind in types]


def _normalize_name(name: str) -> str:
    return name.replace(" ", "_")  # LightGBM does the same
