"""The checks of the conformance kit. Each one runs a handler, and raises an exception if a promise is broken."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from apache_beam.internal import pickler

from runinference.collate.pytree import leaves_with_path
from runinference.handlers.call import call_model, run_batch
from runinference.handlers.error_policy import DeadLetterPolicy, Failure
from runinference.testing.compare import format_error, format_value, retained_bytes, same


class CheckFailed(Exception):  # noqa: N818 - control flow of the kit
    """A broken promise. The arguments are the fault and its fix."""


class CheckSkipped(Exception):  # noqa: N818 - control flow of the kit
    """A check that needs an argument that was not passed."""


class CheckContext:
    """A handler under test, with its model, its examples, and their results."""

    def __init__(
        self,
        handler: Any,
        examples: list[Any],
        inference_args: dict[str, Any] | None,
        same: Callable[[Any, Any], bool],
        bad_example: Any,
        updated_path: str | None,
    ) -> None:
        self.handler, self.examples, self.inference_args = handler, examples, inference_args
        self.same, self.bad_example, self.updated_path = same, bad_example, updated_path
        self.original_examples = copy.deepcopy(examples)
        self.attributes = {k: (v, _copy_container(v)) for k, v in vars(handler).items()}
        self.model: Any = None
        self.single_results: list[Any] = []
        self.batch_results: list[Any] = []

    def run(self, batch: Sequence[Any], handler: Any = None, model: Any = None) -> list[Any]:
        """Return the results of a batch, split as the transform splits them."""
        handler, model = (self.handler, self.model) if handler is None else (handler, model)
        return run_batch(handler, list(batch), model, copy.deepcopy(self.inference_args))

    def all_same(self, found: Sequence[Any], expected: Sequence[Any]) -> bool:
        return len(found) == len(expected) and all(map(self.same, found, expected))

    def is_permutation(self, found: Sequence[Any], expected: Sequence[Any]) -> bool:
        remaining = list(expected)
        for result in found:
            index = next((i for i, one in enumerate(remaining) if self.same(result, one)), None)
            if index is None:
                return False
            del remaining[index]
        return True


def _check_loading(context: CheckContext) -> None:
    getattr(context.handler, "set_environment_vars", lambda: None)()
    context.model = context.handler.load_model()
    if context.model is None:
        raise CheckFailed("load_model() returned None.", "Return the model for run_inference.")


def _check_splitting(context: CheckContext) -> None:
    fix = "Return one result for each element of the batch, or an array with one row for each."
    try:
        context.single_results = [context.run([example])[0] for example in context.examples]
        context.batch_results = context.run(context.examples)
    except ValueError as error:
        raise CheckFailed(format_error(error), fix) from error


def _check_batching(context: CheckContext) -> None:
    for size in (2, 3, len(context.examples)):
        for start in range(0, len(context.examples) - size + 1, size):
            found = context.run(context.examples[start : start + size])
            expected = context.single_results[start : start + size]
            if not (context.all_same(found, expected) or context.is_permutation(found, expected)):
                raise CheckFailed(
                    f"Results in a batch of {size} differ from the results of single elements: "
                    f"{format_value(found)}, not {format_value(expected)}.",
                    "Make results independent of the other elements of the batch: no mean over the batch, and no "
                    "padding without a mask. If the difference does not matter, pass same=…",
                )


def _check_order(context: CheckContext) -> None:
    first, *others = context.single_results
    if all(context.same(first, result) for result in others):
        raise CheckSkipped("needs examples with different results")
    for step in (1, -1):
        found, expected = context.run(context.examples[::step]), context.single_results[::step]
        if not context.all_same(found, expected) and context.is_permutation(found, expected):
            raise CheckFailed(
                "The results are not in the order of the elements: "
                f"{format_value(found)}, not {format_value(expected)}.",
                "Return the results in the order of the batch. If you sort, restore the order.",
            )


def _check_memory(context: CheckContext) -> None:
    for result in context.batch_results:
        for path, part in leaves_with_path(result):
            size = getattr(part, "nbytes", 0)
            if "example" not in path and retained_bytes(part) > size:
                raise CheckFailed(
                    f"A result of {size} bytes is a view that keeps {retained_bytes(part)} bytes alive.",
                    "Return the output of the whole batch, which is then split, or copies: row.copy(), or "
                    "row.clone() in PyTorch.",
                )


def _check_examples(context: CheckContext) -> None:
    if not same(context.examples, context.original_examples):
        raise CheckFailed(
            "run_inference changes the examples.",
            "Change a copy: other steps of the pipeline may hold the same objects.",
        )


def _check_inference_args(context: CheckContext) -> None:
    arguments = copy.deepcopy(context.inference_args) or {}
    list(call_model(context.handler, context.examples, context.model, arguments))
    if not same(arguments, context.inference_args or {}):
        raise CheckFailed(
            "run_inference changes inference_args.",
            "Change a copy, {**inference_args, …}: all batches may get the same dictionary.",
        )


def _check_metrics(context: CheckContext) -> None:
    size = context.handler.get_num_bytes(context.examples)
    namespace = context.handler.get_metrics_namespace()
    if not isinstance(size, int) or size < 0 or not isinstance(namespace, str):
        raise CheckFailed(
            f"get_num_bytes() returned {size!r}, and get_metrics_namespace() {namespace!r}.",
            "Return the number of bytes of a batch, and a string, or define neither.",
        )


def _check_handler_state(context: CheckContext) -> None:
    after, before = vars(context.handler), context.attributes
    changed = after.keys() ^ before.keys()
    for name in after.keys() & before.keys():
        original, copied = before[name]
        if after[name] is not original or not same(after[name], copied):
            changed.add(name)
    if changed:
        raise CheckFailed(
            f"The handler changes its attributes: {', '.join(sorted(changed))}.",
            "Handlers are shared by threads. Keep loaded objects in the return value of load_model(), and don't "
            "set attributes on self after __init__.",
        )


def _check_pickling(context: CheckContext) -> None:
    try:
        unpickled = pickler.loads(pickler.dumps(context.handler))
    except Exception as error:
        attributes = vars(context.handler).items()
        names = ", ".join(name for name, value in attributes if not _is_picklable(value))
        raise CheckFailed(
            f"The handler cannot be sent to workers ({format_error(error)}){names and f': {names}'}.",
            "Keep paths and settings in the handler, and create objects that cannot be pickled in load_model().",
        ) from error
    results = context.run(context.examples, unpickled, unpickled.load_model())
    if not context.all_same(results, context.batch_results):
        raise CheckFailed(
            "After pickling, the handler returns other results.",
            "Keep all settings in attributes that are pickled. Check __getstate__ and __reduce__.",
        )


def _check_updates(context: CheckContext) -> None:
    path = context.updated_path
    if path is None:
        raise CheckSkipped("needs updated_path")
    updated = pickler.loads(pickler.dumps(context.handler))
    updated.update_model_path(path)
    results = context.run(context.examples, updated, updated.load_model())
    if context.all_same(results, context.batch_results):
        raise CheckFailed(
            f"After update_model_path({path!r}), the results still come from the old model.",
            "Store the path in update_model_path(), and load it in load_model().",
        )
    names = {part.model_id for result in results for part in _get_predictions(result)}
    if names - {path}:
        raise CheckFailed(
            f"After the update, model_id is {', '.join(map(repr, names))}, not {path!r}.",
            "Set model_id of each PredictionResult to the path, so that results name the model they are from.",
        )


def _check_errors(context: CheckContext) -> None:
    if context.bad_example is ...:
        raise CheckSkipped("needs bad_example")
    policy = DeadLetterPolicy(Exception, sleep=lambda seconds: None)
    for index in (0, len(context.examples) // 2, len(context.examples)):
        batch = [*context.examples[:index], context.bad_example, *context.examples[index:]]
        found = policy.attempt(context.run, batch)
        if not isinstance(found.pop(index), Failure):
            raise CheckFailed(
                "bad_example was expected to fail, but returned a result.",
                "Raise an error for an example that the model cannot process. It becomes a dead letter.",
            )
        if not context.all_same(found, context.single_results):
            raise CheckFailed(
                "The bad example changes the results of others: "
                f"{format_value(found)}, not {format_value(context.single_results)}.",
                "Call the model independently for each batch, and keep nothing of a batch that failed.",
            )


#: The checks by name. The first two create the model and the results that the others use.
CHECKS: dict[str, Callable[[CheckContext], None]] = {
    "loading": _check_loading,
    "splitting": _check_splitting,
    "batching": _check_batching,
    "order": _check_order,
    "memory": _check_memory,
    "examples": _check_examples,
    "arguments": _check_inference_args,
    "metrics": _check_metrics,
    "errors": _check_errors,
    "handler": _check_handler_state,
    "pickling": _check_pickling,
    "updates": _check_updates,
}


def _get_predictions(result: Any) -> list[Any]:
    """Return the predictions in a result or in a pair of a key and a result."""
    parts = (result, *(result if type(result) is tuple else ()))
    return [part for part in parts if hasattr(part, "model_id")]


def _is_picklable(value: Any) -> bool:
    try:
        pickler.dumps(value)
    except Exception:
        return False
    return True


def _copy_container(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, (dict, list, set)) else value
