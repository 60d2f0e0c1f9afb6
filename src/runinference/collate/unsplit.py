"""One result for a whole array of rows: what the model gave for it, unsplit, checked, and owning its memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from runinference.collate.pytree import children, rebuild
from runinference.collate.rows import get_shape
from runinference.collate.unbatch import describe
from runinference.errors import OutOfMemoryError, ResultMismatchError, is_out_of_memory
from runinference.results import PredictionResult


def returns_unsplit_results(handler: Any) -> bool:
    """Whether each element of a handler, any with Beam's methods, gets one result for all of its rows."""
    return bool(getattr(handler, "gives_whole_results", bool)())


def unsplit_result(batch: Any, output: Any, model_id: str | None) -> PredictionResult:
    """One result for a whole batch; no row is looked at.

    >>> unsplit_result(np.zeros((3, 2)), np.array([7, 8, 9]), "model.pkl").inference
    array([7, 8, 9])

    Args:
        batch: An array, a table, a list of rows, or a dictionary of arrays.
        output: What the model gave for it.
        model_id: Where the model is from.

    Raises:
        ResultMismatchError: A part of the output has another leading dimension than the batch.
    """
    n = count_rows(batch)
    if n is not None:
        for where, found, part in _lengths(output, "the output"):
            if found != n:
                raise _mismatch(n, found, where, part)
    return PredictionResult(batch, _owned(output), model_id)


def run_unsplit(
    handler: Any, element: Any, model: Any, inference_args: dict[str, Any] | None
) -> Any:
    """What a handler's ``run_inference`` makes of one element; as a list if it comes lazily.

    Raises:
        OutOfMemoryError: Memory did not suffice for the element.
    """
    try:
        args = dict(inference_args) if inference_args else inference_args
        output = handler.run_inference(element, model, args)
        return list(output) if isinstance(output, Iterator) else output
    except OutOfMemoryError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise _too_large(element, error) from error


def count_rows(element: Any) -> int | None:
    """The leading dimension of an array, a table or a list; of a structure, that of the first that has one.

    >>> count_rows({"words": np.zeros((3, 2)), "scale": 2.0}), count_rows(("key", np.zeros((3, 2))))
    (3, 3)
    """
    return next((length for _, length, _ in _lengths(element, "")), None)


def _lengths(value: Any, where: str) -> Iterator[tuple[str, int, Any]]:
    """The leading dimensions in a structure: where each stands, how long it is, and of what."""
    shape = get_shape(value)
    if shape is not None:
        if len(shape) > 0:
            yield where, int(shape[0]), value
    elif isinstance(value, list):
        yield where, len(value), value
    elif not isinstance(value, PredictionResult):
        for name, part in (children(value) or {}).items():
            yield from _lengths(part, f"{where}[{name!r}]")


def _owned(value: Any) -> Any:
    """The same without views: a part of a larger array would take that along wherever it goes."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value if value.base is None else value.copy()
    if isinstance(value, list) and not (value and _holds_arrays(value[0])):
        return value
    fields = children(value) if get_shape(value) is None else None
    if fields is None:
        return value
    return rebuild(value, {name: _owned(part) for name, part in fields.items()})


def _holds_arrays(value: Any) -> bool:
    return hasattr(value, "shape") or bool(children(value))


def _mismatch(n: int, found: int, where: str, part: Any) -> ResultMismatchError:
    return ResultMismatchError(
        f"The model returned {found} result{'s' * (found != 1)} for an array of {n} rows ({where} is "
        f"{describe(part)}). Each row needs exactly one: check that the model keeps the leading dimension, and "
        "that inference_fn does not merge, drop or add rows; several outputs are a tuple or a dictionary."
    )


def _too_large(element: Any, error: Exception) -> OutOfMemoryError:
    n = count_rows(element)
    rows = "" if n is None else f" of {n:,} rows"
    return OutOfMemoryError(
        f"Memory did not suffice for an element{rows} ({error}). With whole_results=True it is not divided: give "
        "the model smaller arrays, or leave whole_results out."
    )
