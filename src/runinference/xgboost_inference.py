"""Handlers for XGBoost models, on NumPy arrays, pandas DataFrames or SciPy sparse matrices."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from runinference.checks import check_callable, check_path
from runinference.collate.class_output import ClassPredictions
from runinference.collate.frames import is_dataframe
from runinference.collate.row_inputs import ArrayInput, FrameInput, RowInput
from runinference.collate.tables import check_columns, check_unique_columns
from runinference.errors import ModelLoadError, OptionError
from runinference.extras import need
from runinference.frameworks.boosting import (
    BoostingModelHandler,
    label_classes,
    predict_tables,
    to_matrix,
)
from runinference.handlers.model_handler import ExampleT, ModelT, PredictionT
from runinference.handlers.model_signature import ModelSignature
from runinference.handlers.options import HandlerOptions, accepts
from runinference.model_file import read_model
from runinference.results import PredictionResult

if TYPE_CHECKING:
    import xgboost
else:
    xgboost = need("xgboost", extra="xgboost")

__all__ = [
    "XGBoostInferenceFn",
    "XGBoostModelHandler",
    "XGBoostModelHandlerDatatable",
    "XGBoostModelHandlerNumpy",
    "XGBoostModelHandlerPandas",
    "XGBoostModelHandlerSciPy",
    "default_xgboost_inference_fn",
]

XGBoostInferenceFn = Callable[
    [Sequence[Any], Any, "dict[str, Any] | None"], Iterable[PredictionResult]
]
"""An ``inference_fn``: ``(batch, model, inference_args)`` to one result per example."""


def default_xgboost_inference_fn(
    batch: Sequence[Any],
    model: xgboost.Booster | xgboost.XGBModel,
    inference_args: dict[str, Any] | None = None,
) -> Iterable[PredictionResult]:
    """Concatenate the rows of all examples to one table, and call the model's ``predict`` once.

    Args:
        batch: The examples: arrays or lists, DataFrames, or sparse matrices.
        model: The model.
        inference_args: Keyword arguments for the model's ``predict``, or None.

    Returns:
        One result per example: one prediction for a row of shape ``(features,)``, and an array of predictions
        for a table of shape ``(rows, features)``.

    Raises:
        BatchShapeError: The examples differ in type or columns, or don't have the model's columns.
        ElementError: The model rejects the values of the examples.
        ResultMismatchError: The number of predictions isn't the number of rows.
    """
    return _predict(batch, model, inference_args, _call_predict)


def _call_predict(table: Any, model: Any, arguments: Mapping[str, Any]) -> Any:
    return model.predict(_to_input(table, model), **arguments)


def _call_predict_proba(table: Any, model: Any, arguments: Mapping[str, Any]) -> Any:
    """Return an array of shape (rows, classes)."""
    if hasattr(model, "predict_proba"):
        return model.predict_proba(table, **arguments)
    return to_matrix(_call_predict(table, model, arguments))


def _predict(
    batch: Sequence[Any],
    model: Any,
    inference_args: dict[str, Any] | None,
    call: Callable[[Any, Any, Mapping[str, Any]], Any],
) -> list[PredictionResult]:
    arguments = inference_args or {}

    def check(tables: Sequence[Any]) -> None:
        check_unique_columns(tables)
        booster = _get_booster(model)
        if booster is not None and arguments.get("validate_features", True):
            check_columns(tables, booster.num_features(), booster.feature_names)

    return predict_tables(batch, check, lambda table: call(table, model, arguments))


class XGBoostLoadError(ModelLoadError, xgboost.core.XGBoostError):
    """A model file cannot be loaded by XGBoost."""


class XGBoostModelHandler(BoostingModelHandler[ExampleT, PredictionT, ModelT]):
    """The base class of all XGBoost handlers."""

    _metrics_namespace = "BeamML_XGBoost"
    _path_attribute = "_model_state"
    _has_native_model = True
    _default_inference_fn = staticmethod(default_xgboost_inference_fn)
    _row_input: RowInput = ArrayInput()

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_class: Callable[..., ModelT],
        model_state: str | os.PathLike[str],
        inference_fn: XGBoostInferenceFn = default_xgboost_inference_fn,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Configure the model file and the class that loads it.

        Args:
            model_class: The class of the model, such as ``xgboost.Booster`` or ``xgboost.XGBClassifier``, or a
                function that returns an empty model.
            model_state: The path of a JSON or UBJ file written by ``save_model``, on any file system that Beam
                supports. Loading such a file runs no code.
            inference_fn: A function ``(batch, model, inference_args)`` that calls the model and returns one result
                per example.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: ``model_class`` isn't callable, or has no ``load_model`` or ``predict``, or another option
                is invalid.
        """
        super().__init__(**options)
        _check_model_class(model_class)
        check_callable("inference_fn", inference_fn)
        self._model_class = model_class
        self._model_state = check_path("model_state", model_state)
        self._inference_fn = inference_fn

    def load_model(self) -> ModelT:
        """Load the file into a new model of the class.

        Raises:
            ModelNotFoundError: The file doesn't exist.
            ModelLoadError: The file is empty, truncated, in another format, or of another class.
        """
        model: Any = self._model_class()
        if missing := _find_missing_method(model):
            raise ModelLoadError(
                f"model_class returned a {type(model).__name__}, which has no {missing}(). It must return an "
                "xgboost.Booster, or a model such as xgboost.XGBClassifier."
            )
        state = read_model(self._model_state, "model_state")
        _check_complete(state, self._model_state)
        try:
            model.load_model(bytearray(state))
        except Exception as error:
            raise _cannot_load(self._model_state, self._model_class, state, error) from error
        return model  # type: ignore[no-any-return]

    def predict_classes(
        self, batch: Any, model: ModelT, inference_args: dict[str, Any] | None = None
    ) -> ClassPredictions:
        self._check_class_args(inference_args)
        [result] = _predict([batch], model, inference_args, _call_predict_proba)
        return label_classes(result.inference)

    def get_model_signature(self, model: Any) -> ModelSignature:
        booster = _get_booster(model)
        if booster is None:
            return ModelSignature()
        names, types = booster.feature_names, booster.feature_types or ()
        kinds = [*map(_get_feature_type, types)] or [float] * booster.num_features()
        is_default = self._inference_fn is self._default_inference_fn
        return ModelSignature(
            features=None if names is None else dict(zip(names, kinds, strict=True)),
            types=kinds,
            n_features=booster.num_features(),
            output=_get_output_type(model, booster) if is_default else Any,
            classes=_get_classes(model, booster) if is_default else None,
        )


class XGBoostModelHandlerNumpy(XGBoostModelHandler[Any, PredictionResult, Any]):
    """Run an XGBoost model on NumPy arrays.

    An array of shape ``(features,)`` is one row and gets one prediction. An array of shape ``(rows, features)``
    gets an array with one prediction per row. The model is called once per batch.

    >>> import os, tempfile, xgboost
    >>> from sklearn.datasets import load_iris
    >>> rows, kinds = load_iris(return_X_y=True)
    >>> path = os.path.join(tempfile.mkdtemp(), "iris.json")
    >>> xgboost.XGBClassifier(n_estimators=5).fit(rows, kinds).save_model(path)
    >>> handler = XGBoostModelHandlerNumpy(xgboost.XGBClassifier, path)
    >>> [int(result.inference) for result in handler.predict(rows[[0, 75, 149]])]
    [0, 1, 2]
    """


class XGBoostModelHandlerPandas(XGBoostModelHandler[Any, PredictionResult, Any]):
    """Run an XGBoost model on pandas DataFrames. Each frame gets an array with one prediction per row.

    All frames need the columns of the training data, in the same order. The model is called once per batch.
    """

    _row_input = FrameInput(lambda model: _get_categories(_get_booster(model)))


class XGBoostModelHandlerSciPy(XGBoostModelHandler[Any, PredictionResult, Any]):
    """Run an XGBoost model on SciPy sparse matrices. Each matrix gets an array with one prediction per row.

    XGBoost treats values that a sparse matrix doesn't store as missing, not as zeros. The model is called once
    per batch.
    """


class XGBoostModelHandlerDatatable(XGBoostModelHandler[Any, PredictionResult, Any]):
    """Run an XGBoost model on frames of the datatable package, for existing pipelines that use it.

    XGBoost no longer supports these frames, so they're converted with ``to_numpy``. The last release of
    datatable, 1.1.0 from 2023, doesn't support Python 3.13 and later. Use pandas in new pipelines.
    """


def _get_booster(model: Any) -> Any:
    if isinstance(model, xgboost.Booster):
        return model
    return model.get_booster() if hasattr(model, "get_booster") else None


def _get_feature_type(kind: str) -> Any:
    return Any if kind == "c" else float  # categories are of any type


def _get_categories(booster: Any) -> Sequence[Any]:
    """Return the categories of each feature, which models of XGBoost 3.1 and later contain."""
    has_categories = "c" in (getattr(booster, "feature_types", None) or ())
    if not has_categories or not hasattr(booster, "get_categories"):
        return ()
    found = booster.get_categories(export_to_arrow=True).to_arrow()
    return [None if values is None else values.to_pylist() for _, values in found]


def _get_output_type(model: Any, booster: Any) -> Any:
    """Return the type of a prediction for one row."""
    if isinstance(model, xgboost.XGBClassifier):
        return int
    learner = json.loads(booster.save_config())["learner"]
    sizes = learner["learner_model_param"]
    has_classes = learner["objective"]["name"] == "multi:softprob"
    is_vector = has_classes or int(sizes.get("num_target", 1)) > 1
    return Sequence[float] if is_vector else float


def _get_classes(model: Any, booster: Any) -> range | None:
    """Return the numbers of the classes; None if the model predicts no probabilities of them."""
    if hasattr(model, "get_booster") and not hasattr(model, "predict_proba"):
        return None
    learner = json.loads(booster.save_config())["learner"]
    objective, sizes = learner["objective"]["name"], learner["learner_model_param"]
    if int(sizes.get("num_target", 1)) > 1:
        return None
    n_classes = {"binary:logistic": 2, "multi:softprob": int(sizes["num_class"])}.get(objective)
    return None if n_classes is None else range(n_classes)


def _to_input(table: Any, model: Any) -> Any:
    """Convert a table for the model's ``predict``. Arrays get the model's column names."""
    if not isinstance(model, xgboost.Booster):
        return table
    if is_dataframe(table):
        return xgboost.DMatrix(table, enable_categorical=True)
    return xgboost.DMatrix(table, feature_names=model.feature_names)


def _find_missing_method(model: Any) -> str | None:
    return next((name for name in ("load_model", "predict") if not hasattr(model, name)), None)


def _check_model_class(model_class: Any) -> None:
    expected = "model_class must be a class such as xgboost.Booster or xgboost.XGBClassifier"
    name = type(model_class).__name__
    if not callable(model_class):
        hint = f" Pass the class: {name}." if _find_missing_method(model_class) is None else ""
        raise OptionError(f"{expected}, but is an object of type {name}.{hint}")
    if isinstance(model_class, type) and (missing := _find_missing_method(model_class)):
        raise OptionError(f"{expected}, but {model_class.__name__} has no {missing}().")


def _check_complete(state: bytes, path: str) -> None:
    """Raise `ModelLoadError` for a truncated JSON or UBJ file, which would crash XGBoost."""
    if not state:
        raise XGBoostLoadError(f"The file {path!r} (model_state) is empty.")
    if state.startswith(b"{") and not state.rstrip().endswith(b"}"):
        raise XGBoostLoadError(
            f"The file {path!r} (model_state) is truncated: it starts like an XGBoost model, but does not end "
            "like one. Copy it again."
        )


def _cannot_load(path: str, make: Any, state: bytes, error: Exception) -> XGBoostLoadError:
    message = re.sub(r"^\[[\d:]+\]\s+\S+:\d+:\s*", "", str(error).partition("\n")[0])[:200]
    name = getattr(make, "__name__", repr(make))
    if isinstance(error, TypeError):
        hint = "Pass the class that saved it as model_class."
    elif state.startswith(b"{"):
        hint = "It may be damaged, written by a later version of XGBoost, or another kind of JSON."
    else:
        hint = (
            f"It starts with {state[:8]!r}: it is neither JSON nor UBJ as written by XGBoost. Write it with "
            'model.save_model("model.ubj").'
        )
    return XGBoostLoadError(
        f"The file {path!r} (model_state) cannot be loaded by {name} ({message}). {hint}"
    )
