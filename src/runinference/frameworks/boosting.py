"""The base of the handlers for gradient boosting libraries, whose models predict on tables of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from runinference.collate import frames
from runinference.handlers.model_handler import ExampleT, ModelHandler, ModelT, PredictionT
from runinference.results import PredictionResult, with_model_id


class BoostingModelHandler(ModelHandler[ExampleT, PredictionT, ModelT]):
    """Call an inference function and add the model's path to its results."""

    _supports_dynamic_batching = True
    _default_inference_fn: Callable[..., Iterable[Any]]
    _inference_fn: Callable[..., Iterable[Any]]

    def run_inference(
        self,
        batch: Sequence[ExampleT],
        model: ModelT,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[PredictionT]:
        """Run the model on a batch. ``inference_args`` are keyword arguments for the model's ``predict``.

        Raises:
            BatchShapeError: The examples differ in type or columns, or don't have the model's columns.
        """
        path = getattr(self, str(self._path_attribute))
        if self.gives_whole_results() and self._inference_fn is self._default_inference_fn:
            [result] = self._inference_fn([batch], model, inference_args)  # one table, one example
            return self.results_of(batch, result.inference, path)
        results: Any = self._inference_fn(batch, model, inference_args)
        if not isinstance(results, (list, Iterator)):
            return results  # type: ignore[no-any-return]
        return [with_model_id(result, path) for result in results]


def predict_tables(
    batch: Sequence[Any], check: Callable[[list[Any]], None], predict: Callable[[Any], Any]
) -> list[PredictionResult]:
    """Join the rows of all examples to one table, predict once, and split the predictions by example."""
    examples = frames.split_examples(batch)
    tables = frames.to_tables(examples)
    check(tables)
    table = frames.concat_tables(tables)
    predictions = frames.split_predictions(predict(table), examples, tables)
    return [PredictionResult(x, y) for x, y in zip(examples, predictions, strict=True)]


def table_bytes(batch: Any) -> int:
    """Return the size in bytes of a sparse matrix, or of a batch of them."""
    return sum(map(frames.sparse_bytes, [batch] if hasattr(batch, "tocsr") else batch))
