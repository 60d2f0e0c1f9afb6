"""The checks of the conformance kit. Each one runs a handler, and raises an exception if a promise is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import Any

from apache_beam.internal import pickler

from runinference.collate.unbatch import get_list_output, unbatch_results
from runinference.handlers.call import call_model, run_batch
from runinference.handlers.error_policy import DeadLetterPolicy, Failure
from runinference.testing.compare import (
    arrays_in,
    copy_value,
    format_error,
    format_value,
    retained_bytes,
    share_memory,
    unchanged,
)

#: At most this many examples are tried in each pair.
_MAX_PAIRED = 4
_VARYING = (
    "needs results that do not vary from call to call; to compare them otherwise, pass same=…"
)


class CheckFailed(Exception):  # noqa: N818 - control flow of the kit
    """A broken promise. The arguments are the fault and its fix."""


class CheckSkipped(Exception):  # noqa: N818 - control flow of the kit
    """A check that needs an argument that was not passed."""


class _ChangedExamples(BaseException):
    """The examples of a batch that failed have changed. It isn't an ``Exception``, so it is not a dead letter."""


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
        self.attributes = {k: (v, _copy_data(v)) for k, v in _attributes(handler).items()}
        self.model: Any = None
        self.single_results: list[Any] = []
        self.batch_results: list[Any] = []
        self.varies = False

    def run(self, batch: Sequence[Any], handler: Any = None, model: Any = None) -> list[Any]:
        """Return the results of copies of a batch, split as the transform splits them."""
        return self.run_on(_copy_each(batch), handler, model)

    def run_on(self, batch: list[Any], handler: Any = None, model: Any = None) -> list[Any]:
        """Return the results of a batch itself, which the handler may change."""
        handler, model = (self.handler, self.model) if handler is None else (handler, model)
        return run_batch(handler, batch, model, copy_value(self.inference_args))

    def run_singly(self, handler: Any = None, model: Any = None) -> list[Any]:
        """Return a copy of the result of each example, because the next call may change it."""
        return [copy_value(self.run([example], handler, model)[0]) for example in self.examples]

    def need_stable_results(self) -> None:
        if self.varies:
            raise CheckSkipped(_VARYING)

    def run_without_copies(self, batch: list[Any]) -> list[Any]:
        """Return the results of a batch themselves. The transform copies them, and Beam's RunInference doesn't."""
        args = copy_value(self.inference_args)
        output = call_model(self.handler, batch, self.model, args)
        if isinstance(output, (list, Iterator)):
            return list(output)
        return unbatch_results(output, len(batch), get_list_output(self.handler))

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
        context.single_results = context.run_singly()
        context.batch_results = copy_value(context.run(context.examples))
    except ValueError as error:
        raise CheckFailed(format_error(error), fix) from error


def _check_batching(context: CheckContext) -> None:
    if not context.all_same(context.run_singly(), context.single_results):
        context.varies = True
        _check_history(context)
    context.need_stable_results()
    for indices in _choose_batches(len(context.examples)):
        found = context.run([context.examples[index] for index in indices])
        expected = [context.single_results[index] for index in indices]
        if not (context.all_same(found, expected) or context.is_permutation(found, expected)):
            raise CheckFailed(
                f"Results in a batch of {len(indices)} differ from the results of single elements: "
                f"{format_value(found)}, not {format_value(expected)}.",
                "Make results independent of the other elements of the batch: no mean over the batch, and no "
                "padding without a mask. If the difference does not matter, pass same=…",
            )


def _check_history(context: CheckContext) -> None:
    """Fail if results vary because the handler keeps something of earlier calls, and not at random."""
    runs = []
    for _ in range(2):
        handler = copy_value(context.handler)
        model = handler.load_model()
        runs.append([*context.run_singly(handler, model), *context.run_singly(handler, model)])
    if context.all_same(*runs):
        raise CheckFailed(
            f"The results of the same elements change from call to call: {format_value(runs[0])}.",
            "Make results independent of earlier calls: keep nothing of a batch in the handler or the model.",
        )


def _choose_batches(size: int) -> list[list[int]]:
    """Return the indices of the examples of several batches: parts, pairs in both orders, and repetitions."""
    indices = list(range(size))
    parts = [indices[i : i + n] for n in (2, 3, size) for i in range(0, size - n + 1, n)]
    few = indices[:_MAX_PAIRED]
    pairs = [[i, j] for i in few for j in few if i != j]
    return [*parts, *pairs, indices[::-1], indices[1:] + indices[:1], indices * 2]


def _check_order(context: CheckContext) -> None:
    context.need_stable_results()
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
    fix = (
        "Return the output of the whole batch, which is then split, or copies: row.copy(), or row.clone() in "
        "PyTorch."
    )
    examples = _copy_each(context.examples)
    results = context.run_without_copies(examples)
    arrays = [list(arrays_in(result)) for result in results]
    inputs = [part for example in examples for part in arrays_in(example)]
    for part in (part for parts in arrays for part in parts):
        is_input = any(share_memory(part, other) for other in inputs)
        if retained_bytes(part) > part.nbytes and not is_input:
            raise CheckFailed(
                f"A result of {part.nbytes} bytes is a view that keeps {retained_bytes(part)} bytes alive.",
                fix,
            )
    _check_shared_memory(arrays, "Two results of a batch", fix)
    before = copy_value(results)
    backwards = context.run_without_copies(_copy_each(context.examples[::-1]))
    later = [list(arrays_in(result)) for result in backwards]
    fix = "Return a copy, or a new output for each call: later steps of the pipeline hold the results."
    if not unchanged(results, before):
        raise CheckFailed(
            "The results of a batch change when the handler runs the next batch.", fix
        )
    parts = [[part for parts in each for part in parts] for each in (arrays, later)]
    _check_shared_memory(parts, "Results of two batches", fix)


def _check_shared_memory(groups: list[list[Any]], what: str, fix: str) -> None:
    for number, group in enumerate(groups):
        for other in groups[number + 1 :]:
            if any(share_memory(one, two) for one in group for two in other):
                raise CheckFailed(
                    f"{what} share memory, so a later step that changes one changes the other.",
                    fix,
                )


def _check_examples(context: CheckContext) -> None:
    for batch in (*([example] for example in context.examples), context.examples):
        copies = _copy_each(batch)
        context.run_on(copies)
        if not unchanged(copies, batch):
            raise CheckFailed(
                "run_inference changes the examples.",
                "Change a copy: other steps of the pipeline may hold the same objects.",
            )


def _check_inference_args(context: CheckContext) -> None:
    arguments = copy_value(context.inference_args) or {}
    examples = _copy_each(context.examples)
    list(call_model(context.handler, examples, context.model, arguments))
    if not unchanged(arguments, context.inference_args or {}):
        raise CheckFailed(
            "run_inference changes inference_args.",
            "Change a copy, {**inference_args, …}: all batches may get the same dictionary.",
        )


def _check_metrics(context: CheckContext) -> None:
    size = context.handler.get_num_bytes(context.examples)
    namespace = context.handler.get_metrics_namespace()
    if not isinstance(size, Integral) or size < 0 or not isinstance(namespace, str):
        raise CheckFailed(
            f"get_num_bytes() returned {size!r}, and get_metrics_namespace() {namespace!r}.",
            "Return the number of bytes of a batch, and a string, or define neither.",
        )


def _check_handler_state(context: CheckContext) -> None:
    after, before = _attributes(context.handler), context.attributes
    changed = after.keys() ^ before.keys()
    for name in after.keys() & before.keys():
        original, copied = before[name]
        if after[name] is not original or not unchanged(after[name], copied):
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
        attributes = _attributes(context.handler).items()
        names = ", ".join(name for name, value in attributes if not _is_picklable(value))
        raise CheckFailed(
            f"The handler cannot be sent to workers ({format_error(error)}){names and f': {names}'}.",
            "Keep paths and settings in the handler, and create objects that cannot be pickled in load_model().",
        ) from error
    results = context.run(context.examples, unpickled, unpickled.load_model())
    context.need_stable_results()
    if not context.all_same(results, context.batch_results):
        raise CheckFailed(
            "After pickling, the handler returns other results.",
            "Keep all settings in attributes that are pickled. Check __getstate__ and __reduce__.",
        )


def _check_updates(context: CheckContext) -> None:
    path = context.updated_path
    if path is None:
        raise CheckSkipped("needs updated_path")
    context.need_stable_results()
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
    context.need_stable_results()
    policy = DeadLetterPolicy(Exception, sleep=lambda seconds: None)

    def run(batch: Sequence[Any]) -> list[Any]:
        copies = _copy_each(batch)
        try:
            return context.run_on(copies)
        except Exception:
            if not unchanged(copies, list(batch)):
                raise _ChangedExamples from None
            raise

    for index in (0, len(context.examples) // 2, len(context.examples)):
        batch = [*context.examples[:index], context.bad_example, *context.examples[index:]]
        try:
            found = policy.attempt(run, batch)
        except _ChangedExamples:
            raise CheckFailed(
                "run_inference changes the examples of a batch that fails.",
                "Change a copy: the good examples are predicted again without the bad one.",
            ) from None
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


def _attributes(handler: Any) -> dict[str, Any]:
    return getattr(handler, "__dict__", {})  # a handler can have slots


def _copy_each(batch: Sequence[Any]) -> list[Any]:
    """Copy elements independently, so that an element that occurs twice becomes two objects."""
    return [copy_value(element) for element in batch]


def _copy_data(value: Any) -> Any:
    """Copy containers, arrays and tensors. Other objects, such as locks and counters, may change."""
    if type(value) is dict:
        return {name: _copy_data(item) for name, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(map(_copy_data, value))
    return copy_value(value) if hasattr(value, "shape") and hasattr(value, "dtype") else value
