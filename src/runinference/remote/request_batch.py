"""Split a batch into requests, and copy data that an attempt may modify."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from runinference.collate.rows import slice_rows


def split_batch(batch: Any, max_size: int | None) -> list[Any]:
    """Split a batch into requests of at most ``max_size`` examples. A mapping is never split."""
    if max_size is None or not is_sequence(batch) or len(batch) <= max_size:
        return [batch]
    starts = range(0, len(batch), max_size)
    return [slice_rows(batch, slice(start, start + max_size)) for start in starts]


def is_sequence(batch: Any) -> bool:
    return hasattr(batch, "__len__") and not isinstance(batch, Mapping)


def count_examples(batch: Any) -> int:
    return len(batch) if is_sequence(batch) else 1


def copy_list(batch: Any) -> Any:
    """Copy a batch if it is a list; other batches are shared."""
    return batch[:] if isinstance(batch, list) else batch


def copy_arguments(args: dict[str, Any] | None) -> dict[str, Any] | None:
    """Copy arguments deeply. Values that can't be copied, such as a lock, are shared."""
    return args and {name: _try_deepcopy(value) for name, value in args.items()}


def _try_deepcopy(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:
        return value
