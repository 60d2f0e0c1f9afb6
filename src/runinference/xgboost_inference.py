"""Handlers for XGBoost models, on NumPy arrays, pandas data frames or SciPy's sparse matrices."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from typing_extensions import Unpack

from runinference.collate.frames import (
    check_columns,
    concat_tables,
    is_dataframe,
    sparse_bytes,
    split_examples,
    split_predictions,
    to_tables,
)
from runinference.errors import ModelLoadError, OptionError
from runinference.extras import need
from runinference.handlers.model_handler import ExampleT, ModelHandler, ModelT, PredictionT
from runinference.handlers.options import HandlerOptions, accepts
from runinference.model_file import open_model
from runinference.results import PredictionResult, with_model_id

xgboost = need("xgboost", extra="xgboost")

__all__ = [
    "XGBoostModelHandler",
    "XGBoostModelHandlerDatatable",
    "XGBoostModelHandlerNumpy",
    "XGBoostModelHandlerPandas",
    "XGBoostModelHandlerSciPy",
]

XGBoostInferenceFn = Callable[
    [Sequence[Any], Any, "dict[str, Any] | None"], Iterable[PredictionResult]
]


def default_xgboost_inference_fn(
    batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
) -> Iterable[PredictionResult]:
    """Joins the rows of all examples to one table, and calls the model's ``predict`` once.

    An example of two dimensions is a table of rows and gets an array of as many predictions; an example of one
    dimension is a row and gets its prediction.

    Args:
        batch: Arrays or lists, data frames, or sparse matrices.
        model: An ``xgboost.Booster`` or ``xgboost.XGBModel``.
        inference_args: Keywords for the model's ``predict``.

    Raises:
        BatchShapeError: An example is of another kind or has other columns than the model or the other
            examples.
        ResultMismatchError: The model gave more or fewer predictions than there are rows.
    """
    arguments = inference_args or {}
    examples = split_examples(batch)
    tables = to_tables(examples)
    if arguments.get("validate_features", True):
        _check(tables, model)
    predictions = model.predict(_input(concat_tables(tables), model), **arguments)
    return [
        PredictionResult(example, prediction)
        for example, prediction in zip(
            examples, split_predictions(predictions, examples, tables), strict=True
        )
    ]


class XGBoostModelHandler(ModelHandler[ExampleT, PredictionT, ModelT]):
    """What the handlers have in common: the file, its class, and how they are called."""

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_class: Callable[..., Any],
        model_state: str,
        inference_fn: XGBoostInferenceFn = default_xgboost_inference_fn,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Names the model's file and the class that loads it.

        Args:
            model_class: Makes the empty model: ``xgboost.Booster``, ``xgboost.XGBClassifier``, another class of
                XGBoost's, or a function that returns such a model.
            model_state: The path of the file that ``save_model`` wrote, as JSON or UBJ, on any file system that
                Beam reads. Such a file runs no code.
            inference_fn: Calls the model, in place of the default; gets the examples, the model and the
                inference arguments, and returns the results.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: The class cannot load a model.
        """
        super().__init__(**options)
        _check_class(model_class)
        self._model_class = model_class
        self._model_state = model_state
        self._inference_fn = inference_fn

    def load_model(self) -> ModelT:
        """The model in the file.

        Raises:
            ModelNotFoundError: There is no such file.
            ModelLoadError: The file is empty, truncated, of another format, or of another class.
        """
        model = self._model_class()
        if missing := _missing_methods(model):
            raise ModelLoadError(
                f"model_class made a {type(model).__name__}, which has no {missing}(). It must make an "
                "xgboost.Booster, or a model such as xgboost.XGBClassifier."
            )
        with open_model(self._model_state, "model_state") as file:
            state = file.read()
        _check_whole(state, self._model_state)
        try:
            model.load_model(bytearray(state))
        except Exception as error:
            raise _cannot_load(self._model_state, self._model_class, state, error) from error
        return model  # type: ignore[no-any-return]

    def update_model_path(self, model_path: str | None = None) -> None:
        self._model_state = model_path or self._model_state

    def run_inference(
        self,
        batch: Sequence[ExampleT],
        model: ModelT,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[PredictionT]:
        """Results for a batch; ``inference_args`` are keywords of the model's ``predict``.

        Raises:
            BatchShapeError: An example is of another kind or has other columns than the model or the other
                examples.
        """
        if self.gives_whole_results() and self._inference_fn is default_xgboost_inference_fn:
            [result] = default_xgboost_inference_fn(
                [batch], model, inference_args
            )  # a table is an example
            return self.results_of(batch, result.inference, self._model_state)
        results: Any = self._inference_fn(batch, model, inference_args)
        if not isinstance(results, (list, Iterator)):
            return results  # type: ignore[no-any-return]
        return [with_model_id(result, self._model_state) for result in results]

    def may_join_threads(self) -> bool:
        return True

    def get_metrics_namespace(self) -> str:
        return "BeamML_XGBoost"


class XGBoostModelHandlerNumpy(XGBoostModelHandler[Any, PredictionResult, Any]):
    """Runs an XGBoost model on NumPy arrays.

    An array of shape ``(features,)`` is one row, and gets its prediction. An array of shape ``(rows, features)``
    gets an array of predictions, one for each of its rows. The model is called once for a whole batch.

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
    """Runs an XGBoost model on pandas data frames, and gives each an array of predictions, one a row.

    All frames have the columns of the frame that the model was trained on. The model is called once for a whole
    batch.
    """


class XGBoostModelHandlerSciPy(XGBoostModelHandler[Any, PredictionResult, Any]):
    """Runs an XGBoost model on SciPy's sparse matrices, and gives each an array of predictions, one a row.

    What a sparse matrix does not store is a missing value to XGBoost, not a zero. The model is called once for a
    whole batch.
    """

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """The bytes of the values stored in a batch, and of the indices that say where they stand."""
        if hasattr(batch, "tocsr"):
            return sparse_bytes(batch)
        return sum(sparse_bytes(example) for example in batch)


class XGBoostModelHandlerDatatable(XGBoostModelHandler[Any, PredictionResult, Any]):
    """Runs an XGBoost model on frames of the package datatable, for programs that have such.

    XGBoost itself no longer knows them: they are converted with their ``to_numpy``. The last release of
    that package, 1.1.0 of 2023, is not built for Python 3.13 and later; new programs take pandas.
    """


def _check(tables: Sequence[Any], model: Any) -> None:
    """What cannot be told of a model is left to it."""
    if (booster := _booster(model)) is not None:
        check_columns(tables, booster.num_features(), booster.feature_names)


def _booster(model: Any) -> Any:
    if isinstance(model, xgboost.Booster):
        return model
    return model.get_booster() if hasattr(model, "get_booster") else None


def _input(table: Any, model: Any) -> Any:
    """What the model's ``predict`` takes. Arrays have no names: they get those of the model."""
    if not isinstance(model, xgboost.Booster):
        return table
    if is_dataframe(table):
        return xgboost.DMatrix(table, enable_categorical=True)
    return xgboost.DMatrix(table, feature_names=model.feature_names)


def _missing_methods(model: Any) -> str | None:
    return next((name for name in ("load_model", "predict") if not hasattr(model, name)), None)


def _check_class(model_class: Any) -> None:
    name = type(model_class).__name__
    if not callable(model_class):
        cure = f"Pass the class: {name}." if _missing_methods(model_class) is None else ""
        raise OptionError(
            "model_class must be a class such as xgboost.Booster or xgboost.XGBClassifier, and is an object of "
            f"type {name}. {cure}".rstrip()
        )
    if isinstance(model_class, type) and (missing := _missing_methods(model_class)):
        raise OptionError(
            f"model_class must be a class such as xgboost.Booster or xgboost.XGBClassifier, and "
            f"{model_class.__name__} has no {missing}()."
        )


def _check_whole(state: bytes, path: str) -> None:
    """Refuses what would end the process: XGBoost reads beyond the end of a file that was cut off.

    JSON and UBJ both begin with a brace, and end with the brace that closes it.
    """
    if not state:
        raise ModelLoadError(f"The file {path!r} (model_state) is empty.")
    if state.startswith(b"{") and not state.rstrip().endswith(b"}"):
        raise ModelLoadError(
            f"The file {path!r} (model_state) is truncated: it begins like a model of XGBoost's, and does not end "
            "like one. Copy it again."
        )


def _cannot_load(path: str, make: Any, state: bytes, error: Exception) -> ModelLoadError:
    said = re.sub(r"^\[[\d:]+\]\s+\S+:\d+:\s*", "", str(error).partition("\n")[0])[:200]
    name = getattr(make, "__name__", repr(make))
    if isinstance(error, TypeError):
        cure = "Pass the class that saved it as model_class."
    elif state.startswith(b"{"):
        cure = "It may be damaged, of a later version of XGBoost, or JSON of another kind."
    else:
        cure = (
            f"It begins with {state[:8]!r}: it is neither JSON nor UBJ as XGBoost writes them. Write it with "
            'model.save_model("model.ubj").'
        )
    return ModelLoadError(
        f"The file {path!r} (model_state) cannot be loaded by {name} ({said}). {cure}"
    )
