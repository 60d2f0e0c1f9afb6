"""Examples of several lengths become one batch, padded to its longest; results are cut back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from runinference.collate.pytree import Path, leaves_with_path, map_with_path
from runinference.collate.unbatch import unbatch
from runinference.errors import BatchShapeError, OptionError

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Padding"]


class Stack(Protocol):
    """Makes one array of arrays of one shape; ``what`` and ``cure`` are for the message when they have several."""

    def __call__(
        self, batch: Sequence[Any], what: str = ..., cure: Callable[[int], str] | None = ...
    ) -> Any: ...


@dataclass(frozen=True)
class Padding:
    """How ragged examples become one batch: each is padded to the longest.

    For arrays, tensors, and dictionaries of them. ``example`` in a result stays as it was. The length of an
    example is its size in dimension ``dim``; for a dictionary it is that of its arrays, or, when ``value``
    names keys, that of the first one named.

    A part of a result is cut back to its example's own length if, in dimension ``dim``, it is as long as the
    padded batch and follows the length of the input. Whether it follows is asked of the model once for each
    part: it is called with a shorter example of the batch alone, twice over, and must give that one's length.
    So ten scores of ten classes stay ten, also in a batch padded to ten.

    >>> from runinference.collate.stack import stack_arrays
    >>> padding = Padding(value=-1, mask="real")
    >>> padding.join_keys([{"ids": np.array([7, 8, 9])}, {"ids": np.array([7])}], stack_arrays)
    {'ids': array([[ 7,  8,  9],
           [ 7, -1, -1]]), 'real': array([[1, 1, 1],
           [1, 0, 0]])}

    Attributes:
        value: What to pad with: one for all, or, for dictionaries, one for each key that is padded; the
            tensors of a key that is not named must have one shape.
        mask: The name under which the model gets the mask, int64 of shape (batch, longest): 1 for what an
            example holds, 0 for padding. In a dictionary it is a further key, unless the examples have it
            already: then theirs is padded with 0. For arrays and tensors it is a keyword of the model's call.
        dim: The dimension of an example in which lengths differ; the others must be equal.
        side: Where the padding goes; models that continue a text want it on the left.
        unpad: Whether results are cut back.

    Raises:
        OptionError: ``value`` or ``dim`` is of another kind.
    """

    value: float | Mapping[str, float] = 0
    mask: str | None = None
    dim: int = 0
    side: Literal["right", "left"] = "right"
    unpad: bool = True

    def __post_init__(self) -> None:
        values = list(self.value.values()) if isinstance(self.value, Mapping) else [self.value]
        if not values or not all(isinstance(value, (int, float)) for value in values):
            raise OptionError(
                "The value of Padding must be a number, or a dictionary with a number for each key to pad, "
                f"and is {self.value!r}."
            )
        if not isinstance(self.dim, int) or self.dim < 0:
            raise OptionError(
                f"The dim of Padding is a dimension of one example, 0 or greater, and is {self.dim!r}."
            )
        if self.side not in ("right", "left"):
            raise OptionError(
                f"The side of Padding must be 'right' or 'left', and is {self.side!r}."
            )

    def length(self, example: Any) -> int:
        """The length of an example before padding; fit to be a ``batch_length_fn``.

        Raises:
            BatchShapeError: The example has no such dimension or key, or several lengths.
        """
        if not isinstance(example, Mapping):
            return self._extent(example)
        if isinstance(self.value, Mapping):
            key = next(iter(self.value))
            if key not in example:
                raise BatchShapeError(
                    f"Padding names the key {key!r}, and an example has the keys {sorted(example)}. Give all "
                    "examples that key, or name another first."
                )
            return self._extent(example[key])
        lengths = {k: _shape(v)[self.dim] for k, v in example.items() if len(_shape(v)) > self.dim}
        if len(set(lengths.values())) != 1:
            raise BatchShapeError(
                f"An example has the lengths {lengths} in dimension {self.dim}. Say which keys to pad, the one "
                "that has the example's length first: Padding(value={'input_ids': 0})."
            )
        return next(iter(lengths.values()))

    def join(self, batch: Sequence[Any], stack: Stack) -> Any:
        """Arrays as one, of shape (batch, …), padded.

        Raises:
            BatchShapeError: Their shapes differ in another dimension.
        """
        return self._join(batch, self.value, stack)

    def join_keys(self, batch: Sequence[Mapping[str, Any]], stack: Stack) -> dict[str, Any]:
        """The arrays of each key as one, of shape (batch, …), padded; and the mask, if it has a name.

        Raises:
            BatchShapeError: Shapes differ in another dimension, or under a key that is not padded.
        """
        joined = {key: self._join_key(key, [x[key] for x in batch], stack) for key in batch[0]}
        return joined | {
            name: mask for name, mask in self.masks(batch).items() if name not in joined
        }

    def masks(self, batch: Sequence[Any]) -> dict[str, npt.NDArray[np.int64]]:
        """The mask of a batch under its name; nothing if it has none."""
        if self.mask is None:
            return {}
        lengths = [self.length(example) for example in batch]
        mask = np.zeros((len(batch), max(lengths)), np.int64)
        for row, length in zip(mask, lengths, strict=True):
            row[self._place(length, max(lengths))] = 1
        return {self.mask: mask}

    def rows(
        self, batch: Sequence[Any], call: Callable[[Sequence[Any]], Any], known: dict[Path, bool]
    ) -> list[Any]:
        """The model's output for each example, cut back to its length where it follows the length.

        Args:
            batch: The examples as they came.
            call: Joins examples, and calls the model.
            known: Which parts of an output follow the length; added to, for the next batch of the same model.
        """
        rows = unbatch(call(batch), len(batch))
        lengths = [self.length(example) for example in batch]
        longest = max(lengths)
        shorter = max((n for n in lengths if n < longest), default=0)
        if not self.unpad or not shorter:
            return rows
        unknown = [
            p
            for p, part in leaves_with_path(rows[0])
            if self._has(part, longest) and p not in known
        ]
        if unknown:
            alone = batch[lengths.index(shorter)]
            answer = dict(leaves_with_path(unbatch(call([alone, alone]), 2)[0]))
            known.update({path: self._has(answer.get(path), shorter) for path in unknown})

        def cut(length: int, path: Path, part: Any) -> Any:
            follows = known.get(path, False) and self._has(part, longest)
            return self._cut(part, length, longest) if follows and length < longest else part

        return [map_with_path(row, partial(cut, n)) for n, row in zip(lengths, rows, strict=True)]

    def _cut(self, part: Any, length: int, longest: int) -> Any:
        own = part[self._place(length, longest, self.dim)]
        return own.clone() if hasattr(own, "clone") else own.copy()

    def _has(self, part: Any, length: int) -> bool:
        shape = getattr(part, "shape", ())
        return len(shape) > self.dim and int(shape[self.dim]) == length

    def _extent(self, example: Any) -> int:
        shape = _shape(example)
        if len(shape) <= self.dim:
            raise BatchShapeError(
                f"An example of shape {shape} has no dimension {self.dim} to pad."
            )
        return int(shape[self.dim])

    def _join_key(self, key: str, arrays: Sequence[Any], stack: Stack) -> Any:
        what = f"the batch's {key!r}"
        value: Any = 0 if key == self.mask else self.value
        if isinstance(value, Mapping):
            value = value.get(key)
        elif all(len(_shape(array)) <= self.dim for array in arrays):
            value = None  # a number for each example: nothing to pad
        if value is None:
            return stack(arrays, what, lambda dim: f"name {key!r} in the value of Padding")
        return self._join(arrays, value, stack, what)

    def _join(
        self, arrays: Sequence[Any], value: Any, stack: Stack, what: str = "the batch"
    ) -> Any:
        if hasattr(arrays, "shape"):
            return stack(arrays, what)
        longest = max(map(self._extent, arrays))
        self._check_others(arrays, what)
        return stack([self._pad(array, value, longest) for array in arrays], what)

    def _check_others(self, arrays: Sequence[Any], what: str) -> None:
        """Raises unless the shapes are equal but for the padded dimension."""
        first = _shape(arrays[0])
        for index, array in enumerate(arrays):
            shape = _shape(array)
            if _without(shape, self.dim) != _without(first, self.dim):
                raise BatchShapeError(
                    f"Element {index} of {what} has shape {shape}, and element 0 has {first}. Padding makes "
                    f"dimension {self.dim} equal, and all others must be so already: pad another dimension "
                    "with Padding(dim=…), or resize before, with_preprocess_fn."
                )

    def _pad(self, array: Any, value: Any, longest: int) -> Any:
        array = array if hasattr(array, "shape") else np.asarray(array)
        length = self._extent(array)
        if length == longest:
            return array
        shape = list(array.shape)
        shape[self.dim] = longest
        new_full = getattr(array, "new_full", None)  # of a tensor
        padded = new_full(shape, value) if new_full else np.full(shape, value, array.dtype)
        padded[self._place(length, longest, self.dim)] = array
        return padded

    def _place(self, length: int, longest: int, dim: int = 0) -> tuple[slice, ...]:
        """Where an array of this length stands in one as long as the longest."""
        start = 0 if self.side == "right" else longest - length
        return (*[slice(None)] * dim, slice(start, start + length))


class NoPadding:
    """What handlers do without padding, by the names of its methods: stack, and cut nothing."""

    def join(self, batch: Sequence[Any], stack: Stack) -> Any:
        return stack(batch)

    def join_keys(self, batch: Sequence[Mapping[str, Any]], stack: Stack) -> dict[str, Any]:
        return {key: stack([x[key] for x in batch], f"the batch's {key!r}") for key in batch[0]}

    def masks(self, batch: Sequence[Any]) -> dict[str, Any]:
        return {}

    def rows(
        self, batch: Sequence[Any], call: Callable[[Sequence[Any]], Any], known: dict[Path, bool]
    ) -> list[Any]:
        return unbatch(call(batch), len(batch))


class Unsplit(NoPadding):
    """For a batch that is one element: what is joined stays so, and the output stays whole."""

    def join_keys(self, batch: Any, stack: Stack) -> dict[str, Any]:
        """Tensors of all rows under each key, as they are; or a list of dictionaries, joined."""
        if not isinstance(batch, Mapping):
            return super().join_keys(batch, stack)
        return {key: stack(array, f"the batch's {key!r}") for key, array in batch.items()}

    def rows(self, batch: Any, call: Callable[[Any], Any], known: dict[Path, bool]) -> Any:
        return call(batch)


def _shape(value: Any) -> tuple[int, ...]:
    shape = getattr(value, "shape", None)
    return tuple(shape) if shape is not None else np.shape(value)


def _without(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return (*shape[:dim], *shape[dim + 1 :])
