"""Handlers for LightGBM models, on NumPy arrays, pandas data frames or SciPy's sparse matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from typing_extensions import Unpack

from runinference.collate.frames import (
    check_columns,
    concat_tables,
    sparse_bytes,
    split_examples,
    split_predictions,
    to_tables,
)
from runinference.errors import ModelLoadError
from runinference.extras import need
from runinference.frameworks.lightgbm.model_text import check_whole
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.options import HandlerOptions, accepts
from runinference.model_file import open_model
from runinference.results import PredictionResult, with_model_id

lightgbm = need("lightgbm", extra="lightgbm")

__all__ = [
    "LightGBMModelHandlerNumpy",
    "LightGBMModelHandlerPandas",
    "LightGBMModelHandlerSciPy",
    "default_lightgbm_inference_fn",
]


def default_lightgbm_inference_fn(
    batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
) -> Iterable[PredictionResult]:
    """Joins the rows of all examples to one table, and calls the model's ``predict`` once.

    An example of two dimensions is a table of rows and gets an array of as many predictions; an example of one
    dimension is a row and gets its prediction.

    Args:
        batch: Arrays or lists, data frames, or sparse matrices.
        model: A ``lightgbm.Booster``.
        inference_args: Keywords for the model's ``predict``, such as ``raw_score``.

    Raises:
        BatchShapeError: An example is of another kind or has other columns than the model or the other
            examples.
        ResultMismatchError: The model gave more or fewer predictions than there are rows.
    """
    examples = split_examples(batch)
    tables = to_tables(examples)
    check_columns(tables, model.num_feature(), _names(model), _spelt)
    predictions = model.predict(concat_tables(tables), **(inference_args or {}))
    parts = split_predictions(predictions, examples, tables)
    return [PredictionResult(x, y) for x, y in zip(examples, parts, strict=True)]


class _LightGBMModelHandler(ModelHandler[Any, PredictionResult, Any]):
    """What the handlers have in common: the file, and how they are called."""

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_uri: str,
        *,
        inference_fn: Callable[..., Iterable[Any]] = default_lightgbm_inference_fn,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Names the model's file.

        Args:
            model_uri: The path of the text file that ``Booster.save_model`` wrote, on any file system that Beam
                reads; of an ``LGBMClassifier`` save its ``booster_``. Such a file runs no code.
            inference_fn: Calls the model, in place of the default; gets the examples, the booster and the
                inference arguments, and returns the results.
            **options: The options of every handler, see ``HandlerOptions``.
        """
        super().__init__(**options)
        self._model_uri = model_uri
        self._inference_fn = inference_fn

    def load_model(self) -> Any:
        """A ``lightgbm.Booster`` of the file.

        Raises:
            ModelNotFoundError: There is no such file.
            ModelLoadError: The file is empty, truncated, damaged or no model of LightGBM's.
        """
        with open_model(self._model_uri, "model_uri") as file:
            state = file.read()
        check_whole(state, self._model_uri)
        try:
            return lightgbm.Booster(model_str=state.decode("utf-8"))
        except Exception as error:
            raise ModelLoadError(
                f"The file {self._model_uri!r} (model_uri) cannot be loaded by LightGBM "
                f"{lightgbm.__version__} ({error}). It may be damaged, or of a later version."
            ) from error

    def update_model_path(self, model_path: str | None = None) -> None:
        self._model_uri = model_path or self._model_uri

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Results for a batch; ``inference_args`` are keywords of the model's ``predict``."""
        if self.gives_whole_results() and self._inference_fn is default_lightgbm_inference_fn:
            [result] = default_lightgbm_inference_fn(
                [batch], model, inference_args
            )  # a table is an example
            return self.results_of(batch, result.inference, self._model_uri)
        results: Any = self._inference_fn(batch, model, inference_args)
        if not isinstance(results, (list, Iterator)):
            return results  # type: ignore[no-any-return]
        return [with_model_id(result, self._model_uri) for result in results]

    def may_join_threads(self) -> bool:
        return True

    def get_metrics_namespace(self) -> str:
        return "BeamML_LightGBM"


class LightGBMModelHandlerNumpy(_LightGBMModelHandler):
    """Runs a LightGBM model on NumPy arrays.

    An array of shape ``(features,)`` is one row, and gets its prediction: of a classifier of several classes, an
    array of their probabilities. An array of shape ``(rows, features)`` gets an array of predictions, one for each
    of its rows. The model is called once for a whole batch.

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
    """Runs a LightGBM model on pandas data frames, and gives each an array of predictions, one a row.

    All frames have the columns of the frame that the model was trained on, in its order.
    """


class LightGBMModelHandlerSciPy(_LightGBMModelHandler):
    """Runs a LightGBM model on SciPy's sparse matrices, and gives each an array of predictions, one a row.

    What a sparse matrix does not store is a zero to LightGBM.
    """

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """The bytes of the values stored in a batch, and of the indices that say where they stand."""
        if hasattr(batch, "tocsr"):
            return sparse_bytes(batch)
        return sum(sparse_bytes(example) for example in batch)


def _names(model: Any) -> list[str] | None:
    """The names of the columns; None of a model that was trained on arrays, which have none."""
    names: list[str] = model.feature_name()
    unnamed = [f"Column_{index}" for index in range(len(names))]
    return None if names == unnamed else names


def _spelt(name: str) -> str:
    return name.replace(" ", "_")  # so does LightGBM
