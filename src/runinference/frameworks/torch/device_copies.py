"""Copies of a model on several devices."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

from runinference.errors import describe, is_out_of_memory

_T = TypeVar("_T")
_LOGGER = logging.getLogger(__name__)


class DeviceCopies:
    """Copies of a model, whose calls are spread over their devices.

    >>> copies = DeviceCopies(["first", "second"])
    >>> [copies.call(str.upper) for _ in range(3)]
    ['FIRST', 'SECOND', 'FIRST']

    Args:
        copies: The model on each device.
    """

    def __init__(self, copies: Sequence[Any]) -> None:
        self.copies = copies
        self._n_running = [0] * len(copies)
        self._last_used = [0] * len(copies)
        self._n_calls = 0
        self._lock = threading.Lock()

    def call(self, function: Callable[[Any], _T], retry: bool = True) -> _T:
        """Call a function with the copy that has the fewest running calls.

        If several copies have equally few, the least recently used one is chosen.

        Args:
            function: Takes a copy of the model.
            retry: Whether to try the other copies, one after the other, if the function runs out of memory.
        """
        tried: set[int] = set()
        while True:
            index = self._acquire(tried)
            tried.add(index)
            try:
                return function(self.copies[index])
            except Exception as error:
                if not (retry and is_out_of_memory(error)) or len(tried) == len(self.copies):
                    raise
            finally:
                with self._lock:
                    self._n_running[index] -= 1

    def _acquire(self, excluded: Collection[int]) -> int:
        with self._lock:
            index = min(
                (i for i in range(len(self.copies)) if i not in excluded),
                key=lambda i: (self._n_running[i], self._last_used[i]),
            )
            self._n_calls += 1
            self._last_used[index] = self._n_calls
            self._n_running[index] += 1
            return index


def load_on_devices(devices: Iterable[Any], load: Callable[[Any], Any]) -> Any:
    """Load a model on each device, and return its `DeviceCopies`, or the model itself if there is one copy.

    A device without enough memory is skipped, with a warning.

    Args:
        devices: At least one device.
        load: Returns the model on a device.

    Raises:
        Exception: No device has enough memory, or loading fails for another reason.
    """
    copies, failed = [], None
    for device in devices:
        try:
            copies.append(load(device))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failed = error
            _LOGGER.warning("The model doesn't fit on the device %s: %s", device, describe(error))
    if failed is not None and not copies:
        raise failed
    return copies[0] if len(copies) == 1 else DeviceCopies(copies)


def call_copy(model: Any, function: Callable[[Any], _T], retry: bool = True) -> _T:
    """Call a function with a model, or with one of its copies."""
    return model.call(function, retry) if isinstance(model, DeviceCopies) else function(model)
