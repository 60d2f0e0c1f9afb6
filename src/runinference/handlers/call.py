"""Call a handler on a batch, and check that there is one result per element."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain
from typing import Any

from apache_beam.utils.retry import with_exponential_backoff

from runinference.collate.unbatch import batch_length, get_list_output, unbatch_results
from runinference.collate.unsplit import returns_unsplit_results, run_unsplit
from runinference.errors import PartialBatchError, PartialResult, UnknownOptionError
from runinference.handlers.event_loop import resolve
from runinference.handlers.repeatable_batch import SingleBatch

#: Called with the index of the first element of a part in its batch, and the outcome of the part.
OnPart = Callable[[int, PartialResult], None]


class RunsInParts(ABC):
    """A handler that sends a batch to its model in parts, each of which may fail by itself."""

    @property
    def runs_in_parts(self) -> bool:
        """Whether this object sends batches in parts; a wrapper depends on the handler that it wraps."""
        return True

    @abstractmethod
    def run_in_parts(
        self,
        batch: Any,
        model: Any,
        inference_args: dict[str, Any] | None,
        on_part: OnPart | None = None,
    ) -> list[PartialResult]:
        """Run the model on a batch. Return the results or the error of each part, in order.

        Args:
            batch: The examples.
            model: The object that ``load_model`` returned.
            inference_args: Keyword arguments for the model call, or None.
            on_part: Called with the index of the first element of each part, and its outcome, as soon as the part
                is complete, possibly in another thread.
        """


def run_parts(
    handler: RunsInParts,
    batch: Any,
    model: Any,
    inference_args: dict[str, Any] | None,
    on_part: OnPart | None,
    finish: Callable[[int, PartialResult], PartialResult],
) -> list[PartialResult]:
    """Run a handler in parts, and return ``finish(start, part)`` for each part, once."""
    finished: dict[int, PartialResult] = {}

    def finish_early(start: int, part: PartialResult) -> None:
        finished[start] = finish(start, part)
        if on_part is not None:
            on_part(start, finished[start])

    early = () if on_part is None else (finish_early,)
    parts = handler.run_in_parts(batch, model, inference_args, *early)
    starts = accumulate((part.size for part in parts), initial=0)
    return [
        finished[start] if start in finished else finish(start, part)
        for start, part in zip(starts, parts, strict=False)
    ]


def run_batch(
    handler: Any, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None
) -> list[Any]:
    """Run a handler on a batch and return one result per element; one for the batch if results are unsplit."""
    try:
        return run_batch_in_parts(handler, batch, model, inference_args)
    except PartialBatchError as error:
        failed = error.first_error
    raise failed  # outside of the except clause, which would set its context


def run_batch_in_parts(
    handler: Any, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None
) -> list[Any]:
    """Run a handler like `run_batch`, but raise `PartialBatchError` if some parts of the batch succeeded."""
    inference_args = inference_args and copy_containers(dict(inference_args))
    if returns_unsplit_results(handler):
        return [run_unsplit(partial(call_model, handler), batch, model, inference_args)]
    if runs_in_parts(handler):
        parts = handler.run_in_parts(batch, model, inference_args)
        if any(part.error is not None for part in parts):
            raise PartialBatchError(parts)
        output: Any = [result for part in parts for result in part.results]
    else:
        output = call_model(handler, batch, model, inference_args)
    size = batch_length(batch)
    return list(output) if size is None else unbatch_results(output, size, get_list_output(handler))


def call_model(handler: Any, batch: Any, model: Any, inference_args: dict[str, Any] | None) -> Any:
    """Return ``handler.run_inference(…)``, which may be a coroutine function.

    Beam's ``RemoteModelHandler`` retries errors that the call raises, but not those of its coroutine. These are
    retried here, according to the same options.
    """
    retry_filter = getattr(handler, "retry_filter", None)
    if not callable(retry_filter):
        try:
            return resolve(handler.run_inference(batch, model, inference_args))
        except TypeError as error:
            _reject_unknown_arguments(error, inference_args or {})
            raise
    repeatable = SingleBatch(batch)

    def run() -> Any:
        return handler.run_inference(repeatable.take(), model, copy_containers(inference_args))

    output = run()
    if not inspect.isawaitable(output):
        return resolve(output)
    attempts = chain([output], iter(run, None))
    retry = with_exponential_backoff(
        num_retries=getattr(handler, "num_retries", 0), retry_filter=retry_filter
    )
    return retry(lambda: resolve(next(attempts)))()


def _reject_unknown_arguments(error: TypeError, inference_args: Mapping[str, Any]) -> None:
    """Raise `UnknownOptionError` if an error is about a keyword that came from ``inference_args``."""
    if isinstance(error, UnknownOptionError):  # of a wrapped handler
        return
    for name in inference_args:
        if f"unexpected keyword argument '{name}'" in str(error):
            raise UnknownOptionError(
                f"The call of the model has no argument {name!r} ({error}). To fix this, remove it from "
                "inference_args."
            ) from error


def copy_containers(value: Any) -> Any:
    """Copy dictionaries and lists, which a call may modify, and keep all else: a call's arguments may be large.

    >>> arguments = {"stop": ["."]}
    >>> copied = copy_containers(arguments)
    >>> copied == arguments, copied["stop"] is arguments["stop"]
    (True, False)
    """
    if type(value) is dict:
        return {key: copy_containers(part) for key, part in value.items()}
    return [*map(copy_containers, value)] if type(value) is list else value


def may_modify_examples(handler: Any, batch: Any) -> bool:
    """Return whether a handler may modify the examples of a batch in place.

    A handler that stacks a list of examples passes an array on as it is, so its model may modify the array.
    """
    return not isinstance(batch, list) or bool(
        getattr(handler, "may_modify_examples", lambda: True)()
    )


def runs_in_parts(handler: Any) -> bool:
    """Return whether a handler reports the outcome of each part of a batch."""
    return isinstance(handler, RunsInParts) and handler.runs_in_parts
