"""Keep the elements of a batch as they came, for calls that follow a failed one."""

from __future__ import annotations

import copy
import operator
import pickle
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any

import numpy as np

from runinference.collate.rows import get_row, select_rows, slice_rows
from runinference.collate.stack import are_arrays_of_one_dtype, are_rows_of_one_shape, stack_rows
from runinference.errors import UnrepeatableBatchError, describe


class RepeatableBatch:
    """A batch whose elements each call gets as they came, even if an earlier call modified them.

    The first call gets the elements themselves, and a copy of those that can be modified is kept. Later calls, on
    the whole batch or a slice of it, get a copy of that copy.

    >>> batch = RepeatableBatch([[1], [2]])
    >>> batch.take()[0].append("changed")
    >>> batch[:1].take(), batch.elements
    ([[1]], [[1, 'changed'], [2]])

    Args:
        elements: The elements: a list, an array or a table.
        copies: Whether a call may be repeated. If not, no copy is kept.
    """

    _as_one = False

    def __init__(self, elements: Any, copies: bool = True) -> None:
        self.elements = elements
        self._copies = copies
        self._kept: _Kept | None = None

    def __len__(self) -> int:
        return len(self.elements)

    def __getitem__(self, index: slice) -> RepeatableBatch:
        part = RepeatableBatch(slice_rows(self.elements, index), self._copies)
        part._kept = self._kept and self._kept[index]
        return part

    def select(self, indices: Sequence[int]) -> RepeatableBatch:
        """Return a batch of some elements."""
        part = RepeatableBatch(select_rows(self.elements, indices), self._copies)
        part._kept = self._kept and self._kept.select(indices)
        return part

    def take(self, may_modify: bool = True) -> Any:
        """Return the elements for a call: themselves for the first call, and copies for later ones.

        Args:
            may_modify: Whether the call may modify elements in place.

        Raises:
            UnrepeatableBatchError: The elements of an earlier call cannot be copied.
        """
        if self._kept is None:
            keep = may_modify and self._copies
            self._kept = _keep(self.elements, self._as_one) if keep else _Same(self.elements)
            return self.elements
        return self._kept.restore()

    def unrepeatable_error(self, error: BaseException) -> UnrepeatableBatchError | None:
        """Return the error of elements that a call may have modified, or None if calls can be repeated."""
        if isinstance(self._kept, _Copy):
            self._kept = self._kept.checked()
        return self._kept.error(error) if isinstance(self._kept, _Unknown) else None

    def original(self, index: int) -> Any:
        """Return an element as it came, or as it is now if no copy was kept."""
        if isinstance(self._kept, (_Copy, _RowsCopy, _TableCopy)):
            with suppress(Exception):  # it can be pickled, but not unpickled
                return get_row(self._kept[index : index + 1].restore(), 0)
        return get_row(self.elements, index)


class SingleBatch(RepeatableBatch):
    """A batch that calls get as a whole, and that counts as one element."""

    _as_one = True

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: slice) -> SingleBatch:
        return self

    def select(self, indices: Sequence[int]) -> SingleBatch:
        return self

    def original(self, index: int) -> Any:
        if isinstance(self._kept, _Copy):
            with suppress(Exception):
                return self._kept.restore()
        return self.elements


class CombinedBatch(RepeatableBatch):
    """Several batches in one call."""

    def __init__(self, batches: Sequence[RepeatableBatch]) -> None:
        super().__init__([element for batch in batches for element in batch.elements])
        self._batches = batches

    def take(self, may_modify: bool = True) -> Any:
        return [element for batch in self._batches for element in batch.take(may_modify)]


def combine_batches(batches: Sequence[Any]) -> Any:
    """Return the elements of several batches as one batch."""
    if all(isinstance(batch, RepeatableBatch) for batch in batches):
        return CombinedBatch(batches)
    return [element for batch in batches for element in batch]


def take_elements(batch: Any, may_modify: bool) -> Any:
    """Return the elements of a batch for a call; see `RepeatableBatch.take`."""
    return batch.take(may_modify) if isinstance(batch, RepeatableBatch) else batch


def unrepeatable_error(batch: Any, error: BaseException) -> UnrepeatableBatchError | None:
    """Return the error of a batch whose call can't be repeated; see `RepeatableBatch.unrepeatable_error`."""
    return batch.unrepeatable_error(error) if isinstance(batch, RepeatableBatch) else None


def get_elements(batch: Any) -> Any:
    """Return the elements of a batch as they are now."""
    return batch.elements if isinstance(batch, RepeatableBatch) else batch


def select_elements(batch: Any, indices: Sequence[int]) -> Any:
    """Return a batch of some elements of another one."""
    is_repeatable = isinstance(batch, RepeatableBatch)
    return batch.select(indices) if is_repeatable else select_rows(batch, indices)


class _Kept:
    """What is known of the elements of a batch before its first call."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __getitem__(self, index: slice) -> _Kept:
        return self._part(slice_rows(self._value, index))

    def select(self, indices: Sequence[int]) -> _Kept:
        return self._part(select_rows(self._value, indices))

    def _part(self, value: Any) -> _Kept:
        return type(self)(value)

    def restore(self) -> Any:
        """Return the elements as they came."""
        raise NotImplementedError


class _Same(_Kept):
    """Elements that calls do not modify."""

    def restore(self) -> Any:
        return self._value


class _Copy(_Kept):
    """Copies of elements, in the form that `_copy` returns."""

    _is_checked = False

    def _part(self, value: Any) -> _Kept:
        part = _Copy(value)
        part._is_checked = self._is_checked
        return part

    def checked(self) -> _Kept:
        """Return this object, or the error if an element can be pickled but not unpickled."""
        if not self._is_checked:
            try:
                for part in self._value if type(self._value) in (list, tuple) else [self._value]:
                    _restore(part)
            except Exception as error:
                return _Unknown(error)
            self._is_checked = True
        return self

    def restore(self) -> Any:
        return _restore(self._value)


class _RowsCopy(_Kept):
    """A stacked copy of rows of one length, which takes a fifth of the time of separate copies."""

    def restore(self) -> Any:
        return [row.copy() for row in self._value]


class _TableCopy(_Kept):
    """A copy of an array or a table, which can be sliced."""

    def restore(self) -> Any:
        return _copy_table(self._value)


class _Unknown(_Kept):
    """Elements that may be modified and cannot be copied. The value is the error."""

    def __getitem__(self, index: slice) -> _Kept:
        return self

    def select(self, indices: Sequence[int]) -> _Kept:
        return self

    def restore(self) -> Any:
        raise self.error(self._value)

    def error(self, error: BaseException) -> UnrepeatableBatchError:
        """Return the error of a call that would be repeated after another error."""
        unrepeatable = UnrepeatableBatchError(
            f"A call failed ({describe(error, 300)}), and cannot be repeated: it may have modified its elements, "
            f"and they cannot be copied ({describe(self._value, 300)}). To fix this, make them picklable, or "
            "define may_modify_examples() in the handler, and return False if run_inference never modifies them."
        )
        unrepeatable.__cause__ = error
        return unrepeatable


def _keep(elements: Any, as_one: bool) -> _Kept:
    kind = type(elements)
    try:
        if kind is list and not as_one and _are_modifiable_rows(elements):
            return _RowsCopy(stack_rows(elements))
        if as_one or kind is list or kind is tuple:
            kept = _copy(elements)
            is_same = kept is elements if as_one else all(map(operator.is_, kept, elements))
            return _Same(elements) if is_same else _Copy(kept)
        return _TableCopy(_copy_table(elements))
    except Exception as error:
        return _Unknown(error)


_is_writeable = operator.attrgetter("flags.writeable")


def _are_modifiable_rows(elements: list[Any]) -> bool:
    return (
        are_arrays_of_one_dtype(elements)
        and are_rows_of_one_shape(elements)
        and not elements[0].dtype.hasobject
        and all(map(_is_writeable, elements))
    )


def _copy_table(value: Any) -> Any:
    """Copy an array, a tensor or a table of rows."""
    if hasattr(value, "iloc"):  # a deep copy of a pandas object shares the Python objects in it
        return _Pickled(value).restore()
    copied = _copy(value) if isinstance(value, np.ndarray) or hasattr(value, "clone") else None
    return copy.deepcopy(value) if copied is None or type(copied) is not type(value) else copied


class _Pickled:
    """A pickled copy of an object."""

    __slots__ = ("_data",)

    def __init__(self, value: Any) -> None:
        self._data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)

    def restore(self) -> Any:
        return pickle.loads(self._data)


class _DeepCopied:
    """A deep copy of an object that cannot be pickled."""

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        if hasattr(value, "iloc"):
            raise TypeError(f"a {type(value).__name__} contains objects that cannot be pickled")
        self._value = copy.deepcopy(value)

    def restore(self) -> Any:
        return copy.deepcopy(self._value)


def duplicate(value: Any) -> Any:
    """Return a copy of a value that calls may modify, or the value if it cannot be modified."""
    return _restore(_copy(value))


_Copier = Callable[[Any], Any]

_IMMUTABLE = frozenset(
    {type(None), bool, int, float, complex, str, bytes, range, Fraction, type(Ellipsis)}
)


def _copy(value: Any) -> Any:
    """Return a copy of a value, in the form that `_restore` takes, or the value if it cannot be modified."""
    kind = type(value)
    copier = _COPIERS.get(kind)
    if copier is None:
        if len(_COPIERS) > _MAX_COPIERS:  # the classes of a program that creates many
            return _find_copier(kind)(value)
        copier = _COPIERS[kind] = _find_copier(kind)
    return copier(value)


def _find_copier(kind: Any) -> _Copier:
    torch = sys.modules.get("torch")
    if issubclass(kind, np.void):
        # A structured row can be modified, but NumPy ignores changes of an unpickled one.
        return copy.deepcopy
    if issubclass(kind, np.generic):
        return _return_same
    if torch is not None and kind is torch.Tensor:
        return _copy_tensor
    if kind.__module__.partition(".")[0] == "tensorflow" and kind.__name__ == "EagerTensor":
        return _return_same
    return _copy_object


def _return_same(value: Any) -> Any:
    return value


def _copy_array(value: np.ndarray[Any, Any]) -> Any:
    if value.dtype.hasobject:
        return _copy_object(value)
    return value.copy("K") if value.flags.writeable else value


def _copy_tensor(value: Any) -> Any:
    return value.detach().clone().requires_grad_() if value.requires_grad else value.clone()


def _copy_list(value: list[Any]) -> Any:
    return [*value] if _IMMUTABLE.issuperset(map(type, value)) else [*map(_copy, value)]


def _copy_tuple(value: tuple[Any, ...]) -> Any:
    return value if _IMMUTABLE.issuperset(map(type, value)) else (*map(_copy, value),)


def _copy_dict(value: dict[Any, Any]) -> Any:
    return {key: _copy(part) for key, part in value.items()}


def _copy_object(value: Any) -> Any:
    try:
        return _Pickled(value)
    except Exception:
        return _DeepCopied(value)


#: The copiers of known types; those of others are added when they are first seen.
_MAX_COPIERS = 256
_COPIERS: dict[type, _Copier] = {
    **dict.fromkeys(_IMMUTABLE, _return_same),
    np.ndarray: _copy_array,
    list: _copy_list,
    tuple: _copy_tuple,
    dict: _copy_dict,
    bytearray: bytearray,
}


def _restore(kept: Any) -> Any:
    """Return a new copy of what `_copy` returned."""
    kind = type(kept)
    if kind is _Pickled or kind is _DeepCopied:
        return kept.restore()
    if kind is list:
        return [*map(_restore, kept)]
    if kind is tuple:
        return kept if _IMMUTABLE.issuperset(map(type, kept)) else (*map(_restore, kept),)
    if kind is dict:
        return {key: _restore(part) for key, part in kept.items()}
    return _copy(kept)
