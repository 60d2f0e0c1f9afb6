"""Drive the inference DoFn without a runner: bundles, windows, threads, state and timers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from apache_beam.internal import pickler
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import WindowedValue

from pipelines.case import Case, TimestampedElement
from pipelines.outcome import Outcome
from runinference.transforms.buffered_dofn import AssignShardKey, BufferedInferDoFn

_STATES = ("buffer", "totals", "buffered_arguments")


def run(case: Case) -> Outcome:
    """Run a case with one copy of the DoFn per thread and return the outcome.

    Raises:
        Exception: The error of the first failing element, if the case has no dead letters.
    """
    do_fn = pickler.dumps(case.transform()._make_dofn())

    def work(bundles: Any) -> list[Any]:
        return list(_process_bundles(case, pickler.loads(do_fn), bundles))

    with ThreadPoolExecutor(len(case.threads)) as threads:
        outputs = [output for part in threads.map(work, case.threads) for output in part]
    return _collect_outcome(case, outputs)


def _process_bundles(case: Case, do_fn: Any, bundles: Any) -> Iterator[Any]:
    do_fn.setup()
    state = _KeyedState(case, do_fn) if isinstance(do_fn, BufferedInferDoFn) else None
    for bundle in bundles:
        do_fn.start_bundle()
        for element in bundle:
            side_input = {"update": element.model_update} if case.model_updates else {}
            for windowed in _explode_windows(case, element):
                if state is not None:
                    yield from state.process(windowed, side_input)
                else:
                    yield from do_fn.process(windowed.value, windowed, **side_input) or ()
        if state is not None and len(bundle) % 2:
            yield from state.fire("max_wait")
        yield from do_fn.finish_bundle() or ()
    if state is not None:
        do_fn.start_bundle()
        yield from state.fire("window_end")
        yield from do_fn.finish_bundle() or ()
    do_fn.teardown()


def _explode_windows(case: Case, element: TimestampedElement) -> Iterable[WindowedValue]:
    """Return an element once per window, as Beam passes it to a DoFn that observes windows."""
    return [
        WindowedValue(element.value, element.timestamp, (window,))
        for window in case.assign_windows(element)
    ]


def _collect_outcome(case: Case, outputs: Iterable[Any]) -> Outcome:
    outcome = Outcome()
    for output in outputs:
        failed = isinstance(output, TaggedOutput)
        windowed = output.value if failed else output
        [window] = windowed.windows
        add = outcome.add_dead_letter if failed else outcome.add_result
        add(case, windowed.value, windowed.timestamp, window)
    return outcome


class _KeyedState:
    """The state and timers of a `BufferedInferDoFn` for each key and window."""

    def __init__(self, case: Case, do_fn: BufferedInferDoFn) -> None:
        self._do_fn = do_fn
        self._assign_key = AssignShardKey(case.handler())
        self._assign_key.setup()
        self._cells: dict[Any, dict[str, _ValueState | _BagState]] = {}

    def process(self, windowed: WindowedValue, side_input: dict[str, Any]) -> Iterator[Any]:
        [(key, element)] = self._assign_key.process(windowed.value)
        [window] = windowed.windows
        empty = {
            name: _ValueState()
            for name in ("totals", "buffered_arguments", "max_wait", "window_end")
        }
        cells = self._cells.setdefault((key, window), {"buffer": _BagState(), **empty})
        yield from self._do_fn.process(
            (key, element), windowed.with_value((key, element)), window, **cells, **side_input
        )

    def fire(self, timer: str) -> Iterator[Any]:
        """Clear a timer of each key and window where it is set, and flush the buffer."""
        for (_, window), cells in self._cells.items():
            if cells[timer].read() is not None:
                cells[timer].clear()
                yield from self._do_fn.flush(window, **{name: cells[name] for name in _STATES})


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
    """A read-modify-write state or a timer."""

    def __init__(self) -> None:
        self.clear()

    def write(self, value: Any) -> None:
        self._value = value

    set = write

    def read(self) -> Any:
        return self._value

    def clear(self) -> None:
        self._value: Any = None
