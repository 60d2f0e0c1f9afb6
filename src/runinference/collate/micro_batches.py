"""Divide a batch into micro-batches of similar length, which need little padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class MicroBatchLimits:
    """The limits of a micro-batch. A single example can exceed them.

    Attributes:
        max_padded_size: Maximum padded size, the longest length times the number of examples.
        max_padding: Maximum padding, the padded size minus the sum of the lengths.
    """

    max_padded_size: float = inf
    max_padding: float = inf


def divide_by_length(lengths: Sequence[int], limits: MicroBatchLimits) -> list[list[int]]:
    """Divide examples of these lengths into micro-batches, the longest examples first.

    >>> divide_by_length([9, 2, 8, 1], MicroBatchLimits(max_padded_size=20, max_padding=2))
    [[0, 2], [1, 3]]

    Returns:
        The indices of the examples of each micro-batch, ascending.
    """
    groups: list[list[int]] = []
    longest = padding = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        padding += longest - lengths[index]
        is_full = groups and longest * (len(groups[-1]) + 1) > limits.max_padded_size
        if not groups or is_full or padding > limits.max_padding:
            groups.append([])
            longest, padding = lengths[index], 0
        groups[-1].append(index)
    return [sorted(group) for group in groups]
