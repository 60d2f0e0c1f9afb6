"""The checks that a handler goes through: each runs it in some way, and says what is wrong and what helps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from apache_beam.internal import pickler

from runinference.collate.pytree import leaves_with_path
from runinference.handlers.call import run_batch
from runinference.handlers.error_policy import DeadLetterPolicy, Failure
from runinference.testing.compare import permuted, retained_bytes, same, short, told


class Wrong(Exception):  # noqa: N818 - no error
    """What is wrong, and the cure."""


class Skipped(Exception):  # noqa: N818 - no error
    """A check that lacks something."""


class Trial:
    """A handler on trial: its model, its examples, and the results that they get one by one."""

    def __init__(
        self,
        handler: Any,
        examples: list[Any],
        arguments: dict[str, Any] | None,
        same: Callable[[Any, Any], bool],
        bad_example: Any,
        updated_path: str | None,
    ) -> None:
        self.handler, self.examples, self.arguments = handler, examples, arguments
        self.same, self.bad_example, self.updated_path = same, bad_example, updated_path
        self.pristine = copy.deepcopy(examples)
        self.state = {name: (value, _snapshot(value)) for name, value in vars(handler).items()}
        self.model: Any = None
        self.singly: list[Any] = []
        self.together: list[Any] = []

    def run(self, batch: Sequence[Any], handler: Any = None, model: Any = None) -> list[Any]:
        """The results of a batch, split as the transform does."""
        handler, model = (self.handler, self.model) if handler is None else (handler, model)
        return run_batch(handler, list(batch), model, copy.deepcopy(self.arguments))

    def all_same(self, found: Sequence[Any], wanted: Sequence[Any]) -> bool:
        return len(found) == len(wanted) and all(map(self.same, found, wanted))

    def differ(self) -> bool:
        """Whether the examples have different results."""
        return not all(self.same(self.singly[0], result) for result in self.singly[1:])


def _loading(trial: Trial) -> None:
    getattr(trial.handler, "set_environment_vars", lambda: None)()
    trial.model = trial.handler.load_model()
    if trial.model is None:
        raise Wrong("load_model() returned None.", "Return the model that run_inference gets.")


def _splitting(trial: Trial) -> None:
    cure = "Return one result for each element of the batch, or an array with one row for each."
    try:
        trial.singly = [trial.run([example])[0] for example in trial.examples]
        trial.together = trial.run(trial.examples)
    except ValueError as error:
        raise Wrong(told(error), cure) from error


def _batching(trial: Trial) -> None:
    for size in (2, 3, len(trial.examples)):
        for start in range(0, len(trial.examples) - size + 1, size):
            found = trial.run(trial.examples[start : start + size])
            wanted = trial.singly[start : start + size]
            if not trial.all_same(found, wanted) and not permuted(trial.same, found, wanted):
                raise Wrong(
                    f"A batch of {size} has other results than its elements have one by one: {short(found)}, "
                    f"not {short(wanted)}.",
                    "Let no element see the others: no mean over the batch, no padding that counts. If the "
                    "difference is of no account, give same=…",
                )


def _order(trial: Trial) -> None:
    if not trial.differ():
        raise Skipped("needs examples with different results")
    for examples, wanted in (
        (trial.examples, trial.singly),
        (trial.examples[::-1], trial.singly[::-1]),
    ):
        found = trial.run(examples)
        if not trial.all_same(found, wanted) and permuted(trial.same, found, wanted):
            raise Wrong(
                f"Results come in another order than the elements: {short(found)}, not {short(wanted)}.",
                "Return them in the order of the batch: put them back in their places if you sort.",
            )


def _memory(trial: Trial) -> None:
    for result in trial.together:
        for path, part in leaves_with_path(result):
            size = getattr(part, "nbytes", 0)
            if "example" not in path and retained_bytes(part) > size:
                raise Wrong(
                    f"A result of {size} bytes is a view that keeps {retained_bytes(part)} bytes alive.",
                    "Return the whole output of the batch, which is then split, or copies: row.copy(), or "
                    "row.clone() in PyTorch.",
                )


def _examples(trial: Trial) -> None:
    if not same(trial.examples, trial.pristine):
        raise Wrong(
            "run_inference changes the examples.",
            "Change a copy: other steps of the pipeline may hold the same objects.",
        )


def _arguments(trial: Trial) -> None:
    arguments = copy.deepcopy(trial.arguments) or {}
    list(trial.handler.run_inference(trial.examples, trial.model, arguments))
    if not same(arguments, trial.arguments or {}):
        raise Wrong(
            "run_inference changes inference_args.",
            "Change a copy, {**inference_args, …}: all batches may get the same dictionary.",
        )


def _metrics(trial: Trial) -> None:
    size, namespace = (
        trial.handler.get_num_bytes(trial.examples),
        trial.handler.get_metrics_namespace(),
    )
    if not isinstance(size, int) or size < 0 or not isinstance(namespace, str):
        raise Wrong(
            f"get_num_bytes() gave {size!r}, and get_metrics_namespace() {namespace!r}.",
            "Return the number of bytes of a batch, and a text; or define neither.",
        )


def _handler(trial: Trial) -> None:
    now, before = vars(trial.handler), trial.state
    changed = {name for name in {*now, *before} if name not in now or name not in before}
    changed |= {
        name
        for name in {*now} - changed
        if now[name] is not before[name][0] or not same(now[name], before[name][1])
    }
    if changed:
        raise Wrong(
            f"The handler changes while it works: {', '.join(sorted(changed))}.",
            "Threads share handlers. Keep what is loaded in what load_model() returns; set nothing on self after "
            "__init__.",
        )


def _pickling(trial: Trial) -> None:
    try:
        sent = pickler.loads(pickler.dumps(trial.handler))
    except Exception as error:
        guilty = ", ".join(
            name for name, value in vars(trial.handler).items() if not _pickles(value)
        )
        raise Wrong(
            f"The handler cannot be sent to workers ({told(error)}){guilty and f': {guilty}'}.",
            "Keep paths and settings in the handler, and make what cannot be pickled in load_model().",
        ) from error
    if not trial.all_same(trial.run(trial.examples, sent, sent.load_model()), trial.together):
        raise Wrong(
            "After pickling, the handler gives other results.",
            "Keep all settings in attributes that are pickled: see __getstate__ and __reduce__.",
        )


def _pickles(value: Any) -> bool:
    try:
        pickler.dumps(value)
    except Exception:
        return False
    return True


def _updates(trial: Trial) -> None:
    if trial.updated_path is None:
        raise Skipped("needs updated_path")
    updated = pickler.loads(pickler.dumps(trial.handler))
    updated.update_model_path(trial.updated_path)
    results = trial.run(trial.examples, updated, updated.load_model())
    if trial.all_same(results, trial.together):
        raise Wrong(
            f"After update_model_path({trial.updated_path!r}) the results are those of the old model.",
            "Store the path in update_model_path(), and load it in load_model().",
        )
    names = {part.model_id for result in results for part in _predictions(result)}
    if names - {trial.updated_path}:
        raise Wrong(
            f"After the update, model_id is {', '.join(map(repr, names))}, not {trial.updated_path!r}.",
            "Give PredictionResult the path as its model_id, so that results say which model made them.",
        )


def _predictions(result: Any) -> list[Any]:
    """The predictions in a result, which may have a key."""
    return [
        part
        for part in (result, *(result if type(result) is tuple else ()))
        if hasattr(part, "model_id")
    ]


def _errors(trial: Trial) -> None:
    if trial.bad_example is ...:
        raise Skipped("needs bad_example")
    aside = DeadLetterPolicy(Exception, sleep=lambda seconds: None)
    for place in (0, len(trial.examples) // 2, len(trial.examples)):
        batch = [*trial.examples[:place], trial.bad_example, *trial.examples[place:]]
        found = aside.attempt(trial.run, batch)
        if not isinstance(found.pop(place), Failure):
            raise Wrong(
                "The bad example does not fail: it has a result.",
                "Raise an error for what the model cannot take; it becomes a dead letter.",
            )
        if not trial.all_same(found, trial.singly):
            raise Wrong(
                f"The bad example spoils others: {short(found)}, not {short(trial.singly)}.",
                "Call the model afresh for each batch: keep nothing of a batch that failed.",
            )


#: The checks by name, in order: the first ones make what the others look at.
CHECKS: dict[str, Callable[[Trial], None]] = {
    "loading": _loading,
    "splitting": _splitting,
    "batching": _batching,
    "order": _order,
    "memory": _memory,
    "examples": _examples,
    "arguments": _arguments,
    "metrics": _metrics,
    "errors": _errors,
    "handler": _handler,
    "pickling": _pickling,
    "updates": _updates,
}


def _snapshot(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, (dict, list, set)) else value
