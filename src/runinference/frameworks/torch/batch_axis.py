"""Check that the leading dimension of a model's output is the batch, and not another one of the same length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from runinference.collate.pytree import Path, children
from runinference.collate.rows import get_shape
from runinference.collate.unbatch import ListOutput
from runinference.errors import ResultMismatchError
from runinference.extras import need

torch = need("torch", extra="torch")


class BatchTensors(NamedTuple):
    """The tensors of a model's call. Their first dimension is the batch."""

    args: list[Any]
    kwargs: dict[str, Any]

    def resize(self) -> tuple[BatchTensors, int]:
        """Return the tensors of a batch of another size, 2 or 3, and that size."""
        # Not 1, because some models remove the batch dimension of a single element.
        size = 3 if self.size == 2 else 2

        def repeat_first(tensor: Any) -> Any:
            return torch.cat([tensor[:1]] * size)

        kwargs = {name: repeat_first(tensor) for name, tensor in self.kwargs.items()}
        return BatchTensors([*map(repeat_first, self.args)], kwargs), size

    @property
    def size(self) -> int:
        """The number of elements."""
        return len([*self.args, *self.kwargs.values()][0])


def check_batch_axis(
    output: Any,
    model: Any,
    function: Callable[..., Any],
    tensors: BatchTensors,
    list_output: ListOutput | None,
) -> None:
    """Raise `ResultMismatchError` if a part of an output is as long as the batch only by chance.

    The states of an LSTM, for example, have the shape (layers, batch, features). To find such parts, the model is
    called once more, with a batch of two or three elements, for each new part of an output. A single tensor is
    only checked if it has three or more dimensions, and two of them are as long as the batch.

    Args:
        output: The output of the model.
        model: The model, which owns what is known about its output.
        function: Calls the model again. For a compiled model, it calls ``forward``, which isn't compiled.
        tensors: The tensors of the call.
        list_output: What a list in the output is.
    """
    size = tensors.size
    if isinstance(output, torch.Tensor) and (output.dim() < 3 or size not in output.shape[1:]):
        return
    known = _get_cache(model)
    if known is None:
        return
    parts = {path: n for path, n, _ in _iter_lengths(output, list_output) if n == size}
    if any(path not in known for path in parts):
        known.update(_compare_sizes(parts, function, tensors, list_output))
    for path in parts:
        if (other := known.get(path)) is not None:
            raise _wrong_axis(output, path, size, other, list_output)


def _compare_sizes(
    parts: dict[Path, int],
    function: Callable[..., Any],
    tensors: BatchTensors,
    list_output: ListOutput | None,
) -> dict[Path, tuple[int, int] | None]:
    """Return, for each part that does not follow the batch, the size of another batch and the part's length."""
    try:
        others, size = tensors.resize()
        device = next(iter([*others.args, *others.kwargs.values()])).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            output = function(*others.args, **others.kwargs)
    except Exception:  # a model for batches of one size
        return dict.fromkeys(parts)
    found = {path: length for path, length, _ in _iter_lengths(output, list_output)}
    lengths = {path: found.get(path, size) for path in parts}
    return {path: None if n == size else (size, n) for path, n in lengths.items()}


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


def _get_cache(model: Any) -> dict[Path, tuple[int, int] | None] | None:
    try:
        return _CACHES.setdefault(model, {})
    except TypeError:  # the model does not support weak references
        return None


_CACHES: WeakKeyDictionary[Any, dict[Path, tuple[int, int] | None]] = WeakKeyDictionary()
