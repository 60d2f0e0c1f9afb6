"""Run a handler without a pipeline, with the same batching and results as the transform."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterable
from typing import Any

from runinference.batching.adaptive_size import AdaptiveSize
from runinference.batching.batcher import Batcher
from runinference.batching.policy import resolve_policy
from runinference.handlers.call import run_batch


def predict_locally(
    handler: Any, examples: Iterable[Any], inference_args: dict[str, Any] | None
) -> list[Any]:
    """Return one result per example, in the same order; see ``ModelHandler.predict``."""
    handler.validate_inference_args(inference_args)
    model = _get_model(handler)
    for function in handler.get_preprocess_fns():
        examples = map(function, examples)
    if handler.should_skip_batching():
        results = [
            result
            for batch in examples
            for result in run_batch(handler, batch, model, inference_args)
        ]
    else:
        results = _predict_in_batches(handler, examples, model, inference_args)
    for function in handler.get_postprocess_fns():
        results = [function(result) for result in results]
    return results


def _predict_in_batches(
    handler: Any, examples: Iterable[Any], model: Any, inference_args: dict[str, Any] | None
) -> list[Any]:
    policy = resolve_policy(handler)
    size = AdaptiveSize(policy)
    batcher: Batcher[tuple[int, Any]] = Batcher(policy, size)
    results: dict[int, Any] = {}

    def run(numbered: list[tuple[int, Any]]) -> None:
        indices, batch = zip(*numbered, strict=True)
        start = time.perf_counter()
        output = run_batch(handler, list(batch), model, inference_args)
        results.update(zip(indices, output, strict=True))
        size.record(len(batch), time.perf_counter() - start)

    for index, example in enumerate(examples):
        for batch in batcher.add(example, (index, example)):
            run(batch)
    for batch in batcher.flush():
        run(batch)
    return [results[index] for index in range(len(results))]


def _get_model(handler: Any) -> Any:
    """Return the model of a handler, which is loaded once and freed with the handler."""
    with _lock:
        if id(handler) not in _models:
            handler.set_environment_vars()
            _models[id(handler)] = handler.load_model()
            weakref.finalize(handler, _models.pop, id(handler), None)
        return _models[id(handler)]


_models: dict[int, Any] = {}
_lock = threading.Lock()
