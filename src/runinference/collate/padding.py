"""Pad examples of different lengths to the longest one in the batch, and remove the padding from the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np

from runinference.checks import check_bool, check_text
from runinference.collate.exact import to_array
from runinference.collate.pytree import Path, leaves_with_path, map_with_path
from runinference.collate.rows import get_array_shape
from runinference.collate.unbatch import SplitRows, unbatch
from runinference.errors import BatchShapeError, OptionError

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Padding"]

#: For each leaf of a model's output, whether its length depends on the input length.
UnpadCache = dict[Path, bool]
#: Stacks arrays of one shape. The arguments are those of `runinference.collate.stack.stack_arrays`.
StackFn = Callable[..., Any]


@dataclass(frozen=True)
class Padding:
    """Padding of examples to the length of the longest example in the batch.

    Examples are arrays, tensors, or dictionaries of these. The ``example`` of a result is not padded. The length
    of an example is its size in dimension ``dim``. For a dictionary, it is the length of its arrays, or of the
    first key in ``value`` if ``value`` names keys.

    A part of a result is cut to the length of its example if its size in dimension ``dim`` depends on the
    input length. To determine this, the model is called again with two copies of a shorter example, once for
    each part of an output. Therefore, the scores of ten classes are not cut, even in a batch padded to length ten.

    >>> from runinference import Padding
    >>> padding = Padding(value=-1, mask="real")
    >>> padding.length({"ids": np.array([7, 8, 9])})
    3
    >>> padding.masks([{"ids": np.array([7, 8, 9])}, {"ids": np.array([7])}])
    {'real': array([[1, 1, 1],
           [1, 0, 0]])}

    Attributes:
        value: The padding value, a number that the dtype of the examples can represent. For dictionaries, it can
            also be a dictionary with a value for each key to pad. The tensors of all other keys must have one
            shape.
        mask: The name of the mask, an int64 array of shape (batch, longest): 1 for values of an example, 0 for
            padding. None for no mask. For dictionaries, it is added as a key. If the examples already have this
            key, their mask is padded with 0. For arrays and tensors, it is passed as a keyword argument of the
            model.
        dim: The dimension of an example to pad. Sizes in all other dimensions must be equal.
        side: The side to pad. Models that generate text usually need ``"left"``.
        unpad: Whether to remove the padding from the results.

    Raises:
        OptionError: ``value``, ``dim`` or ``side`` is invalid.
    """

    value: float | Mapping[str, float] = 0
    mask: str | None = None
    dim: int = 0
    side: Literal["right", "left"] = "right"
    unpad: bool = True

    def __post_init__(self) -> None:
        values = [*self.value.values()] if isinstance(self.value, Mapping) else [self.value]
        if not values or not all(isinstance(value, (int, float)) for value in values):
            raise OptionError(
                "The value of Padding must be a number, or a dictionary with a number for each key to pad, "
                f"but is {self.value!r}."
            )
        if isinstance(self.dim, bool) or not isinstance(self.dim, int) or self.dim < 0:
            raise OptionError(
                f"The dim of Padding is a dimension of one example, 0 or greater, but is {self.dim!r}."
            )
        check_bool("The unpad of Padding", self.unpad)
        if self.mask is not None:
            check_text("The mask of Padding", self.mask)
            if isinstance(self.value, Mapping) and self.value.get(self.mask):
                raise OptionError(
                    f"Padding has the value {self.value[self.mask]!r} for its mask {self.mask!r}, which is padded "
                    "with 0. To fix this, leave the mask out of value."
                )
        if not isinstance(self.side, str) or self.side not in ("right", "left"):
            raise OptionError(
                f"The side of Padding must be 'right' or 'left', but is {self.side!r}."
            )

    def length(self, example: Any) -> int:
        """Return the length of an example before padding. You can pass this method as ``batch_length_fn``.

        Args:
            example: An array, a tensor, or a dictionary of these.

        Raises:
            BatchShapeError: The example lacks the dimension or key to pad, or has several lengths.
        """
        if not isinstance(example, Mapping):
            return self._array_length(example)
        if isinstance(self.value, Mapping):
            key = next(iter(self.value))
            if key not in example:
                raise BatchShapeError(
                    f"Padding names the key {key!r}, and an example has the keys {sorted(example)}. To fix this, "
                    "add that key to all examples, or name another key first."
                )
            return self._array_length(example[key])
        shapes = {key: get_array_shape(array) for key, array in example.items()}
        lengths = {key: shape[self.dim] for key, shape in shapes.items() if len(shape) > self.dim}
        if len(set(lengths.values())) != 1:
            raise BatchShapeError(
                f"An example has the lengths {lengths} in dimension {self.dim}. To fix this, list the keys to "
                "pad, starting with the key that determines the length: Padding(value={'input_ids': 0})."
            )
        return next(iter(lengths.values()))

    def join(self, batch: Sequence[Any], stack: StackFn) -> Any:
        """Pad and stack arrays. Return an array of shape (batch, …).

        Raises:
            BatchShapeError: Their shapes differ in another dimension.
            OptionError: Their dtype cannot hold the padding value.
        """
        return self._join(batch, self.value, stack)

    def join_keys(self, batch: Sequence[Mapping[str, Any]], stack: StackFn) -> dict[str, Any]:
        """Pad and stack the arrays of each key. Return arrays of shape (batch, …), and the mask if it has a name.

        Raises:
            BatchShapeError: Shapes differ in another dimension, or in a key that is not padded.
        """
        joined = {key: self._join_key(key, [x[key] for x in batch], stack) for key in batch[0]}
        for name, mask in self.masks(batch).items():
            joined.setdefault(name, mask)
        return joined

    def masks(self, batch: Sequence[Any]) -> dict[str, npt.NDArray[np.int64]]:
        """Return a dictionary with the mask of a batch by its name. Empty if ``mask`` is None.

        Args:
            batch: The examples.
        """
        if self.mask is None:
            return {}
        lengths = [self.length(example) for example in batch]
        mask = np.zeros((len(batch), max(lengths)), np.int64)
        for row, length in zip(mask, lengths, strict=True):
            row[self._slices(length, max(lengths))] = 1
        return {self.mask: mask}

    def rows(
        self, batch: Sequence[Any], call: Callable[[Sequence[Any]], Any], known: UnpadCache
    ) -> list[Any]:
        """Return the output of the model for each example, without padding.

        Args:
            batch: The examples.
            call: Joins examples and calls the model.
            known: Which parts of the output depend on the input length. New parts are added to it.
        """
        rows = unbatch(call(batch), len(batch))
        lengths = [self.length(example) for example in batch]
        longest = max(lengths)
        if not self.unpad or min(lengths) == longest:
            return rows
        leaves = leaves_with_path(rows[0])
        new = [p for p, leaf in leaves if self._has_length(leaf, longest) and p not in known]
        if new:
            example, length = self._find_other_length(batch, lengths)
            output = dict(leaves_with_path(unbatch(call([example, example]), 2)[0]))
            known.update({path: self._has_length(output.get(path), length) for path in new})

        def unpad(length: int, path: Path, leaf: Any) -> Any:
            follows = known.get(path, False) and self._has_length(leaf, longest)
            if not follows or length == longest:
                return leaf
            view = leaf[self._slices(length, longest, self.dim)]
            return view.clone() if hasattr(view, "clone") else view.copy()

        unpadded = zip(lengths, rows, strict=True)
        return SplitRows(map_with_path(row, partial(unpad, n)) for n, row in unpadded)

    def _find_other_length(self, batch: Sequence[Any], lengths: Sequence[int]) -> tuple[Any, int]:
        """Return an example that is shorter than the longest, but not empty, and its length.

        Models may fail on empty examples. If all others are empty, return one that is cut or padded by 1.
        """
        longest = max(lengths)
        shorter = max((n for n in lengths if n < longest), default=0)
        if shorter:
            return batch[lengths.index(shorter)], shorter
        example, length = batch[lengths.index(longest)], longest - 1 or 2
        if not isinstance(example, Mapping):
            return self._resize(example, length), length
        keys = self.value if isinstance(self.value, Mapping) else example
        same = {
            key: self._resize(example[key], length)
            for key in (*keys, *([self.mask] if self.mask in example else []))
            if self._has_length(example[key], longest)
        }
        return {**example, **same}, length

    def _resize(self, array: Any, length: int) -> Any:
        """Cut an array to a length, or repeat it."""
        array = array if hasattr(array, "shape") else np.asarray(array)
        part = slice(length) if length <= array.shape[self.dim] else [0] * length
        index: tuple[Any, ...] = (*[slice(None)] * self.dim, part)
        return array[index]

    def _has_length(self, leaf: Any, length: int) -> bool:
        shape = getattr(leaf, "shape", ())
        return len(shape) > self.dim and int(shape[self.dim]) == length

    def _array_length(self, array: Any) -> int:
        shape = get_array_shape(array)
        if len(shape) <= self.dim:
            raise BatchShapeError(f"An example of shape {shape} has no dimension {self.dim}.")
        return int(shape[self.dim])

    def _join_key(self, key: str, arrays: Sequence[Any], stack: StackFn) -> Any:
        name = f"the batch's {key!r}"
        value: Any = 0 if key == self.mask else self.value
        if isinstance(value, Mapping):
            value = value.get(key)
        elif all(len(get_array_shape(array)) <= self.dim for array in arrays):
            value = None  # one number per example, which has no length
        if value is None:
            return stack(arrays, name, lambda dim: f"name {key!r} in the value of Padding")
        return self._join(arrays, value, stack, name)

    def _join(
        self, arrays: Sequence[Any], value: Any, stack: StackFn, name: str = "the batch"
    ) -> Any:
        if hasattr(arrays, "shape"):
            return stack(arrays, name)
        arrays = [
            array if hasattr(array, "shape") else to_array(array, name, index)
            for index, array in enumerate(arrays)
        ]
        longest = max(map(self._array_length, arrays))
        self._check_other_dimensions(arrays, name)
        filled = [array for array in arrays if 0 not in array.shape] or arrays
        for dtype, array in {array.dtype: array for array in filled}.items():
            _check_value(value, dtype, array, name)
        return stack([self._pad(array, value, longest, filled[0]) for array in arrays], name)

    def _check_other_dimensions(self, arrays: Sequence[Any], name: str) -> None:
        first, dim = get_array_shape(arrays[0]), self.dim
        for index, array in enumerate(arrays):
            shape = get_array_shape(array)
            if shape[:dim] + shape[dim + 1 :] != first[:dim] + first[dim + 1 :]:
                raise BatchShapeError(
                    f"Element {index} of {name} has shape {shape}, but element 0 has {first}. Padding applies to "
                    f"dimension {dim}, and all other dimensions must be equal. To fix this, pad another "
                    "dimension with Padding(dim=…), or resize the examples with with_preprocess_fn.",
                    index=index,
                )

    def _pad(self, array: Any, value: Any, longest: int, filled: Any) -> Any:
        """Pad an array. An empty one has no values, so its dtype is that of ``filled``, another array."""
        length = self._array_length(array)
        if length == longest:
            return array
        source = array if 0 not in array.shape else filled
        shape = list(array.shape)
        shape[self.dim] = longest
        is_torch = hasattr(source, "new_full")
        padded = source.new_full(shape, value) if is_torch else np.full(shape, value, source.dtype)
        padded[self._slices(length, longest, self.dim)] = array
        return padded

    def _slices(self, length: int, longest: int, dim: int = 0) -> tuple[slice, ...]:
        start = 0 if self.side == "right" else longest - length
        return (*[slice(None)] * dim, slice(start, start + length))


def _check_value(value: float, dtype: Any, array: Any, name: str) -> None:
    """Raise `OptionError` if arrays of a dtype cannot hold the padding value."""
    try:
        with np.errstate(all="ignore"):
            is_torch = hasattr(array, "new_full")
            padding = array.new_full((1,), value) if is_torch else np.array([value]).astype(dtype)
        found = padding[0].item()
        is_float = isinstance(found, (float, complex)) and isinstance(value, float)
        is_held = np.isfinite(found) == np.isfinite(value) if is_float else found == value
    except (ValueError, TypeError, RuntimeError, OverflowError, AttributeError):
        is_held = False
    if not is_held:
        raise OptionError(
            f"Padding has the value {value!r}, which {dtype}, the dtype of {name}, cannot hold. To fix this, "
            "choose a value of that dtype, or convert the examples with with_preprocess_fn."
        )


class NoPadding:
    """Stacking of examples of one shape, without cutting the results."""

    def join(self, batch: Sequence[Any], stack: StackFn) -> Any:
        return stack(batch)

    def join_keys(self, batch: Sequence[Mapping[str, Any]], stack: StackFn) -> dict[str, Any]:
        return {key: stack([x[key] for x in batch], f"the batch's {key!r}") for key in batch[0]}

    def masks(self, batch: Sequence[Any]) -> dict[str, Any]:
        return {}

    def rows(
        self, batch: Sequence[Any], call: Callable[[Sequence[Any]], Any], known: UnpadCache
    ) -> list[Any]:
        return unbatch(call(batch), len(batch))


class Unsplit(NoPadding):
    """A batch that is one element of the pipeline, whose output is not split."""

    def join_keys(self, batch: Any, stack: StackFn) -> dict[str, Any]:
        if not isinstance(batch, Mapping):
            return super().join_keys(batch, stack)
        return {key: stack(array, f"the batch's {key!r}") for key, array in batch.items()}

    def rows(self, batch: Any, call: Callable[[Any], Any], known: UnpadCache) -> Any:
        return call(batch)


def get_unpad_cache(model: Any, method: str | None) -> UnpadCache:
    """Return the cache for the output of a method of a model. It lives as long as the model."""
    try:
        return _UNPAD_CACHES.setdefault(model, {}).setdefault(method, {})
    except TypeError:  # the model does not support weak references
        return {}


_UNPAD_CACHES: WeakKeyDictionary[Any, dict[str | None, UnpadCache]] = WeakKeyDictionary()
