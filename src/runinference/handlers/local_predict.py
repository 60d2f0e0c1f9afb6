"""Run a handler without a pipeline, with the same batching and results as the transform."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from runinference.batching.adaptive_size import AdaptiveSize
from runinference.batching.batcher import Batch, Batcher
from runinference.batching.policy import resolve_policy
from runinference.checks import check_mapping, has_elements
from runinference.collate.unbatch import is_divisible
from runinference.collate.unsplit import returns_unsplit_results
from runinference.errors import ElementError
from runinference.handlers.call import may_modify_examples, run_batch
from runinference.handlers.error_policy import halved_on_out_of_memory
from runinference.handlers.repeatable_batch import RepeatableBatch
from runinference.handlers.row_options import RowOptions


def predict_locally(
    handler: Any,
    examples: Iterable[Any],
    inference_args: dict[str, Any] | None,
    row_options: RowOptions | None = None,
) -> list[Any]:
    """Return one result per example, in the same order; see ``ModelHandler.predict``."""
    _check_arguments(examples, inference_args)
    handler.validate_inference_args(inference_args)
    local = LocalModel.of(handler)
    model = local.get(handler)
    if row_options is not None:
        handler = local.get_row_handler(handler, row_options)
    for function in handler.get_preprocess_fns():
        examples = _apply(function, examples)
    found: dict[int, list[Any]] = {}
    for one, numbered in handler.group_by_model(examples, model):
        if handler.should_skip_batching():
            for index, batch in numbered:
                output = list(_predict_batch(handler, batch, model, inference_args))
                if isinstance(index, list):  # the numbers of the rows
                    found.update(zip(index, ([result] for result in output), strict=True))
                else:
                    found[index] = output
        else:
            found |= _predict_in_batches(handler, one, numbered, model, inference_args)
    results = [result for index in range(len(found)) for result in found[index]]
    for function in handler.get_postprocess_fns():
        results = [function(result) for result in results]
    return results


def _apply(function: Callable[[Any], Any], examples: Iterable[Any]) -> Iterator[Any]:
    # Not map(), which ends without an error where the function raises StopIteration.
    for example in examples:
        yield function(example)


def _check_arguments(examples: Any, inference_args: Any) -> None:
    """Raise an error for a single example, whose characters, keys or columns would be taken for examples."""
    if inference_args is not None:
        check_mapping("inference_args", inference_args)
    if not has_elements(examples):
        raise ElementError(
            f"predict takes a list of examples, but got a {type(examples).__name__}. To fix this, pass a list: "
            "predict([example])."
        )


def _predict_batch(
    handler: Any, batch: Any, model: Any, inference_args: dict[str, Any] | None
) -> list[Any]:
    """Return the results of an element that is a batch. Halve it if memory runs out and it can be sliced."""

    def call(batch: RepeatableBatch) -> list[Any]:
        elements = batch.take(may_modify_examples(handler, batch.elements))
        return run_batch(handler, elements, model, inference_args)

    if returns_unsplit_results(handler) or not is_divisible(batch):
        return run_batch(handler, batch, model, inference_args)
    return halved_on_out_of_memory(call, RepeatableBatch(batch, len(batch) > 1), lambda batch: None)


def _predict_in_batches(
    handler: Any,
    one: Any,
    numbered: Iterable[tuple[int, Any]],
    model: Any,
    inference_args: dict[str, Any] | None,
) -> dict[int, list[Any]]:
    """Return the result of each example by its number, from batches under the options of the handler ``one``."""
    policy = resolve_policy(one)
    size = AdaptiveSize(policy)
    batcher: Batcher[int] = Batcher(policy, size)
    results: dict[int, list[Any]] = {}

    def call(batch: RepeatableBatch) -> list[Any]:
        elements = batch.take(may_modify_examples(handler, batch.elements))
        start = time.perf_counter()
        output = run_batch(handler, elements, model, inference_args)
        size.record(len(batch), time.perf_counter() - start)
        return output

    def record_out_of_memory(batch: RepeatableBatch) -> None:
        size.record_out_of_memory(len(batch), policy.padded_size(batch.elements))

    def run(indices: Batch[int]) -> None:
        repeatable = RepeatableBatch(indices.elements, copies=len(indices) > 1)
        output = halved_on_out_of_memory(call, repeatable, record_out_of_memory)
        results.update(zip(indices, ([result] for result in output), strict=True))

    for index, example in numbered:
        for batch in batcher.add(example, index):
            run(batch)
    for batch in batcher.flush():
        run(batch)
    return results


class LocalModel:
    """The model that ``predict`` loaded for a handler. It is an attribute of the handler, and freed with it.

    A copy of the handler gets another one, and it is not pickled. After ``update_model_path`` of the handler or
    of one that it wraps, the model is loaded again.
    """

    _attribute = "_runinference_local_model"
    _create_lock = threading.Lock()

    def __init__(self, owner: Any) -> None:
        self._owner = weakref.ref(owner)
        self._lock = threading.RLock()
        self._n_path_updates: int | None = None  # when the model was loaded
        self._model: Any = None
        self._row_handlers: dict[RowOptions, Any] = {}

    @classmethod
    def of(cls, handler: Any) -> LocalModel:
        """Return the local model of a handler, loaded or not."""
        with cls._create_lock:
            found: LocalModel | None = vars(handler).get(cls._attribute)
            if found is None or found._owner() is not handler:
                found = cls(handler)
                object.__setattr__(handler, cls._attribute, found)
            return found

    def get(self, handler: Any) -> Any:
        """Return the model, which the first call loads. Other handlers may load theirs at the same time."""
        with self._lock:
            n_updates = handler.count_path_updates()
            if self._n_path_updates != n_updates:
                self._model = None  # free the old model first
                self._row_handlers.clear()
                handler.set_environment_vars()
                self._model = handler.load_model()
                self._n_path_updates = n_updates
            return self._model

    def get_row_handler(self, handler: Any, options: RowOptions) -> Any:
        """Return the handler that takes rows. The first call for some options checks the columns."""
        with self._lock:
            if options not in self._row_handlers:
                self._row_handlers[options] = handler._row_wrapper(options)
            return self._row_handlers[options]

    def __reduce__(self) -> Any:
        return _nothing, ()


def _nothing() -> None:
    """Return what a pickled copy of a handler contains instead of a local model."""
