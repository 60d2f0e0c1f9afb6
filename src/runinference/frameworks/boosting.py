"""The base of the handlers for gradient boosting libraries, whose models predict on tables of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from runinference.collate.class_output import ClassPredictions, to_class_predictions
from runinference.collate.frames import is_dataframe
from runinference.collate.tables import (
    concat_tables,
    has_only_numbers,
    split_examples,
    split_predictions,
    to_tables,
)
from runinference.collate.unbatch import SplitRows, to_results
from runinference.errors import ElementError, OptionError, RunInferenceError
from runinference.handlers.model_handler import ExampleT, ModelHandler, ModelT, PredictionT
from runinference.results import PredictionResult, with_model_id

#: The arguments with which ``predict`` of XGBoost or LightGBM returns something else.
_NO_PROBABILITIES = {
    *("output_margin", "pred_leaf", "pred_contribs", "approx_contribs", "pred_interactions"),
    *("raw_score", "pred_contrib"),
}


class BoostingModelHandler(ModelHandler[ExampleT, PredictionT, ModelT]):
    """Call an inference function and add the model's path to its results."""

    _supports_dynamic_batching = True
    _keeps_examples = True
    _default_inference_fn: Callable[..., Iterable[Any]]
    _inference_fn: Callable[..., Iterable[Any]]

    def run_inference(
        self,
        batch: Sequence[ExampleT],
        model: ModelT,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[PredictionT]:
        """Run the model on a batch.

        Args:
            batch: The examples: arrays or lists, DataFrames, or sparse matrices.
            model: The object that ``load_model`` returned.
            inference_args: Keyword arguments for the model's ``predict``, or None.

        Raises:
            BatchShapeError: The examples differ in type or columns, or don't have the model's columns.
        """
        path = getattr(self, str(self._path_attribute))
        if self.gives_whole_results() and self._inference_fn is self._default_inference_fn:
            [result] = self._inference_fn([batch], model, inference_args)  # one table, one example
            unsplit: Any = self.results_of(batch, result.inference, path)
            return unsplit  # type: ignore[no-any-return]
        results: Any = self._inference_fn(batch, model, inference_args)
        if not isinstance(results, (list, Iterator)):
            return results  # type: ignore[no-any-return]
        named = (with_model_id(result, path) for result in results)
        return SplitRows(named) if isinstance(results, SplitRows) else list(named)

    def _check_class_args(self, inference_args: dict[str, Any] | None) -> None:
        """Raise `OptionError` unless the model's ``predict`` is called, and returns probabilities."""
        if self._inference_fn is not self._default_inference_fn:
            raise OptionError(
                "probabilities doesn't call inference_fn. To fix this, leave one of them out."
            )
        if found := _NO_PROBABILITIES & (inference_args or {}).keys():
            raise OptionError(
                f"With {min(found)} in inference_args, the model returns no probabilities. To fix this, leave "
                "probabilities out."
            )

    def may_modify_examples(self) -> bool:
        is_default = self._inference_fn is self._default_inference_fn
        return not is_default or super().may_modify_examples()


def predict_tables(
    batch: Sequence[Any],
    check: Callable[[list[Any]], None],
    predict: Callable[[Any], Any],
    errors: tuple[type[Exception], ...] = (ValueError,),
) -> list[PredictionResult]:
    """Concatenate the rows of all examples to one table, predict once, and split the predictions by example.

    Args:
        batch: Arrays or lists, DataFrames, records or sparse matrices.
        check: Raises an error if the tables do not have the columns of the model.
        predict: Returns the predictions for a table.
        errors: The errors of ``predict`` that mean that it rejects the values of the table.

    Raises:
        BatchShapeError: The examples differ in type or columns.
        ElementError: The values of the examples have no common dtype, or ``predict`` rejects them.
    """
    examples = split_examples(batch)
    tables = to_tables(examples)
    check(tables)
    table = concat_tables(tables, examples)
    try:
        output = predict(table)
    except RunInferenceError:
        raise
    except errors as error:
        raise _explain(error, table) from error
    except (TypeError, OverflowError) as error:
        if has_only_numbers(table) or "keyword argument" in str(error):
            raise
        raise _explain(error, table) from error
    predictions = split_predictions(output, examples, tables)
    return to_results(examples, SplitRows(predictions), None)


def to_matrix(probabilities: Any) -> Any:
    """Return an array of shape (rows, classes), also for a binary classifier, which returns that of class 1."""
    if probabilities.ndim == 2:
        return probabilities
    return np.stack([1 - probabilities, probabilities], axis=1)


def label_classes(probabilities: Any) -> ClassPredictions:
    """Return the predictions of a model whose classes are numbers.

    Args:
        probabilities: An array of shape (rows, classes).
    """
    return to_class_predictions(probabilities, range(probabilities.shape[1]))


def _explain(error: Exception, table: Any) -> Exception:
    message = str(error).partition("\nStack trace")[0][:500]
    return ElementError(
        f"The model rejects the batch, {_describe_table(table)}. To fix this, convert the elements to the "
        f"columns and types of the training data with with_preprocess_fn{_suggest_conversion(table)}. The error "
        f"is: {message}"
    )


def _suggest_conversion(table: Any) -> str:
    """Return an example of a conversion, for a column of text or without categories."""
    for name, dtype in _list_columns(table):
        categories = getattr(dtype, "categories", None)
        if categories is not None and not len(categories):
            dtypes = f"{{{name!r}: pandas.CategoricalDtype(categories)}}"
        elif categories is None and getattr(dtype, "kind", "") == "O":
            dtypes = f"{{{name!r}: 'category'}}"
        else:
            continue
        return f", for example lambda frame: frame.astype({dtypes})"
    return ""


def _list_columns(table: Any) -> list[tuple[Any, Any]]:
    is_frame = is_dataframe(table)
    return list(zip(table.columns, table.dtypes, strict=True)) if is_frame else []


def _describe_table(table: Any) -> str:
    """Describe the dtypes of a table for an error message."""
    if not is_dataframe(table):
        return f"a table of {table.dtype}"
    columns = [f"{name}: {dtype}" for name, dtype in _list_columns(table)]
    return f"a table with the columns {', '.join(columns[:10])}" + ", …" * (len(columns) > 10)
