"""Check that the leading dimension of a model's output is the batch, and not another one of the same length."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from runinference.collate.memory import copy_value
from runinference.collate.pytree import Path, children
from runinference.collate.rows import get_shape
from runinference.collate.unbatch import ListOutput, is_record, unbatch
from runinference.errors import ResultMismatchError

#: For each part of a model's output: None if it follows the batch; otherwise the size of another batch, and the
#: part's length in the output for that batch.
AxisCache = dict[Path, tuple[int, int] | None]


@dataclass(frozen=True)
class BatchAxis:
    """Splits the outputs of a model, and checks that no part is as long as the batch only by chance.

    The states of an LSTM, for example, have the shape (layers, batch, features). To find such parts, the model is
    called again, with a batch of two or three elements, for each new part of an output. A single array is only
    checked if two of its dimensions are as long as the batch.

    Attributes:
        model: The model, which owns what is known about its outputs.
        function: What was called: the outputs of other functions of the model have other parts.
        list_output: What a list in the output is.
        call: Calls the model with a batch of another size, and returns its output.
    """

    model: Any
    function: Hashable
    list_output: ListOutput | None
    call: Callable[[int], Any]

    def unbatch(self, output: Any, size: int) -> list[Any]:
        """Split the output for a batch of ``size`` elements like the function ``unbatch``, and check it.

        Raises:
            ResultMismatchError: A part of the output has another length than the batch, can be read in two ways,
                or does not follow the size of the batch.
        """
        list_output = self.list_output
        has_records = isinstance(output, list) and all(map(is_record, output))
        if has_records and self._known is not None:
            # The check shows whether there is one for each element.
            list_output = list_output or "per_element"
        rows = unbatch(output, size, list_output)
        replace(self, list_output=list_output).check(output, size)
        return rows

    def check(self, output: Any, size: int) -> None:
        """Raise `ResultMismatchError` if a part of an output is as long as the batch only by chance."""
        known, shape = self._known, get_shape(output)
        if known is None or (shape is not None and size not in shape[1:]):
            return
        parts = {path: n for path, n, _ in _iter_lengths(output, self.list_output) if n == size}
        if any(path not in known for path in parts):
            known.update(self._compare_sizes(parts, size))
        for path in parts:
            if (other := known.get(path)) is not None:
                raise _wrong_axis(output, path, size, other, self.list_output)

    @property
    def _known(self) -> AxisCache | None:
        """What is known about the outputs of the function, or None if the model can't have a cache."""
        try:
            return _CACHES.setdefault(self.model, {}).setdefault(self.function, {})
        except TypeError:  # the model does not support weak references, or is not hashable
            return None

    def _compare_sizes(self, parts: dict[Path, int], size: int) -> AxisCache:
        # Not 1, because some models remove the batch dimension of a single element.
        other = 3 if size == 2 else 2
        try:
            output = self.call(other)
        except ResultMismatchError:
            raise
        except Exception:  # a model for batches of one size
            return dict.fromkeys(parts)
        found = {path: length for path, length, _ in _iter_lengths(output, self.list_output)}
        lengths = {path: found.get(path, other) for path in parts}
        return {path: None if n == other else (other, n) for path, n in lengths.items()}


_CACHES: WeakKeyDictionary[Any, dict[Hashable, AxisCache]] = WeakKeyDictionary()


def repeat_first(batch: Any, size: int) -> Any:
    """Return a batch that has a copy of the first element ``size`` times: a list, a table, or arrays by name.

    >>> repeat_first([1, 2], 3)
    [1, 1, 1]
    """
    if isinstance(batch, Mapping):
        return {name: array[[0] * size] for name, array in batch.items()}
    if hasattr(batch, "iloc"):
        return batch.iloc[[0] * size]
    if hasattr(batch, "shape"):
        return batch[[0] * size]
    return [copy_value(batch[0]) for _ in range(size)]


def _iter_lengths(
    value: Any, list_output: ListOutput | None, path: Path = ()
) -> Iterator[tuple[Path, int, Any]]:
    """Yield the path, length and value of each array, and of each list that has an item per element."""
    shape = get_shape(value)
    if shape:
        yield path, int(shape[0]), value
    elif isinstance(value, list) and list_output != "multi_output":
        yield path, len(value), value
    elif shape is None:
        for name, part in (children(value) or {}).items():
            yield from _iter_lengths(part, list_output, (*path, name))


def _wrong_axis(
    output: Any, path: Path, size: int, other: tuple[int, int], list_output: ListOutput | None
) -> ResultMismatchError:
    where = "the output" + "".join(f"[{name!r}]" for name in path)
    part = next(value for known, _, value in _iter_lengths(output, list_output) if known == path)
    shape = get_shape(part)
    found = f"a list of {size}" if shape is None else f"{type(part).__name__} of shape {shape}"
    other_size, length = other
    return ResultMismatchError(
        f"The model returned {found} as {where} for a batch of {size}, but its length is {length} for a batch of "
        f"{other_size}. It cannot be split by element, because its first dimension is not the batch. To fix this, "
        "move the batch to the front, for example state.transpose(0, 1), or leave this part out of the output."
    )
