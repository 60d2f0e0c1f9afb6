"""Unsplit results: one result for a batch that is one element of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from runinference.collate.memory import copy_value
from runinference.collate.pytree import children
from runinference.collate.rows import get_shape
from runinference.collate.unbatch import mismatch_error
from runinference.errors import OutOfMemoryError, is_out_of_memory
from runinference.results import PredictionResult


def returns_unsplit_results(handler: Any) -> bool:
    """Return whether an object with Beam's handler methods returns one unsplit result per element."""
    return bool(getattr(handler, "gives_whole_results", bool)())


def unsplit_result(batch: Any, output: Any, model_id: str | None) -> PredictionResult:
    """Return one result for a batch, without splitting the output. `run_unsplit` copies it.

    >>> unsplit_result(np.zeros((3, 2)), np.array([7, 8, 9]), "model.pkl").inference
    array([7, 8, 9])

    Raises:
        ResultMismatchError: A part of the output has another leading dimension than the batch.
    """
    n_rows = count_rows(batch)
    for where, length, part in _iter_lengths(output, "the output", n_rows):
        if n_rows is not None and length != n_rows:
            hint = " Return several outputs as a tuple or a dictionary."
            raise mismatch_error(length, f"an array of {n_rows} rows", "row", where, part, hint)
    if isinstance(output, Mapping) and get_shape(output) is None:
        output = dict(output)
    return PredictionResult(batch, output, model_id)


def run_unsplit(
    run_inference: Callable[..., Any],
    element: Any,
    model: Any,
    inference_args: dict[str, Any] | None,
) -> Any:
    """Return a copy of ``run_inference(element, …)``, with an iterator as a list."""
    try:
        args = dict(inference_args) if inference_args else inference_args
        output = run_inference(element, model, args)
        return copy_value(list(output) if isinstance(output, Iterator) else output)
    except OutOfMemoryError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise _too_large(element, error) from error


def count_rows(element: Any) -> int | None:
    """Return the leading dimension of an array, table or list, or of the first one in a structure.

    >>> count_rows({"words": np.zeros((3, 2)), "scale": 2.0}), count_rows(("key", np.zeros((3, 2))))
    (3, 3)
    """
    if shape := get_shape(element):
        return int(shape[0])
    return next((length for _, length, _ in _iter_lengths(element, "")), None)


def _iter_lengths(
    value: Any, where: str, n_rows: int | None = None
) -> Iterator[tuple[str, int, Any]]:
    """Yield the name, length and value of each array and list in a structure.

    A list of another length than ``n_rows`` may hold several outputs, whose lengths are yielded instead.
    """
    shape = get_shape(value)
    if shape:
        yield where, int(shape[0]), value
    elif isinstance(value, list) and not _has_other_length(value, n_rows):
        yield where, len(value), value
    elif shape is None and not isinstance(value, PredictionResult):
        for name, part in (children(value) or {}).items():
            yield from _iter_lengths(part, f"{where}[{name!r}]", n_rows)


def _has_other_length(value: list[Any], n_rows: int | None) -> bool:
    return n_rows is not None and len(value) != n_rows and any(map(get_shape, value))


def _too_large(element: Any, error: Exception) -> OutOfMemoryError:
    n_rows = count_rows(element)
    rows = "" if n_rows is None else f" of {n_rows:,} rows"
    return OutOfMemoryError(
        f"Out of memory for an element{rows} ({error}). Elements are not divided with whole_results=True. To fix "
        "this, give the model smaller arrays, or leave whole_results out."
    )
