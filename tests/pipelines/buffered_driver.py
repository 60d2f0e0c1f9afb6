"""Drive a `BufferedInferDoFn` without a runner: keys, windows, state and timers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from apache_beam.transforms.window import GlobalWindow, WindowedValue

from runinference.transforms.buffered_dofn import BufferedInferDoFn
from runinference.transforms.shard_key import AssignShardKey

_STATES = ("buffer", "totals", "buffered_side_inputs")


class BufferedDriver:
    """The state and timers of a DoFn for each key and window.

    Attributes:
        holds: The timestamp of the element that set the timer of each key and window last, in seconds.
    """

    def __init__(self, do_fn: BufferedInferDoFn, handler: Any, keep_windows: bool = False) -> None:
        self.holds: dict[Any, int] = {}
        self._do_fn = do_fn
        self._keep_windows = keep_windows
        self._assign_key = AssignShardKey(handler, keep_windows)
        self._assign_key.setup()
        self._cells: dict[Any, dict[str, _ValueState | _BagState]] = {}

    def process(self, windowed: WindowedValue, **side_inputs: Any) -> Iterator[Any]:
        """Process an element in its window."""
        [window] = windowed.windows
        given = side_inputs if self._keep_windows else {}
        [(key, element)] = self._assign_key.process(windowed.value, window, **given)
        if self._keep_windows:
            window, side_inputs = GlobalWindow(), {}
        names = ("totals", "buffered_side_inputs", "max_wait", "window_end")
        cells = self._cells.setdefault(
            (key, window), {"buffer": _BagState(), **{name: _ValueState() for name in names}}
        )
        before = cells["max_wait"].n_set
        origin = WindowedValue((key, element), windowed.timestamp, (window,))
        yield from self._do_fn.process((key, element), origin, window, **cells, **side_inputs)
        if cells["max_wait"].n_set > before:
            self.holds[key, window] = int(windowed.timestamp)

    def fire(self, timer: str) -> Iterator[Any]:
        """Clear a timer of each key and window where it is set, and flush the buffer."""
        for (_, window), cells in self._cells.items():
            if cells[timer].read() is not None:
                cells[timer].clear()
                states = {name: cells[name] for name in _STATES}
                if timer == "max_wait":
                    yield from self._do_fn.flush(window, **states)
                else:
                    max_wait = cells["max_wait"]
                    yield from self._do_fn.flush_early(window, **states, max_wait=max_wait)

    def n_timers(self, timer: str) -> int:
        """Return for how many keys and windows a timer is set."""
        return sum(cells[timer].read() is not None for cells in self._cells.values())


class _BagState:
    """A bag state."""

    def __init__(self) -> None:
        self.clear()

    def add(self, value: Any) -> None:
        self._values.append(value)

    def read(self) -> list[Any]:
        return self._values

    def clear(self) -> None:
        self._values: list[Any] = []


class _ValueState:
    """A read-modify-write state or a timer.

    Attributes:
        n_set: How often it was set.
    """

    def __init__(self) -> None:
        self.n_set = 0
        self.clear()

    def write(self, value: Any) -> None:
        self._value = value
        self.n_set += 1

    set = write

    def read(self) -> Any:
        return self._value

    def clear(self) -> None:
        self._value: Any = None
