"""Drives the DoFn of a step as a runner does: bundles, windows, threads, state and timers, without a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from apache_beam.internal import pickler
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms import window
from apache_beam.transforms.window import WindowedValue

from pipelines.case import WINDOWS, Case, Outcome, name
from pipelines.rows import told
from runinference.transforms.buffered_dofn import AssignShardKey, BufferedInferDoFn


def run(case: Case) -> Outcome:
    """What comes out.

    Raises:
        Exception: What the step raises, where errors are not set aside.
    """
    step = case.transform()
    do_fn = pickler.dumps(step._make_dofn())

    def work(bundles: Any) -> list[Any]:
        return list(_worker(case, pickler.loads(do_fn), bundles))

    with ThreadPoolExecutor(len(case.elements)) as threads:
        outputs = [output for part in threads.map(work, case.elements) for output in part]
    return counted(case, outputs)


def _worker(case: Case, do_fn: Any, bundles: Any) -> Iterator[Any]:
    do_fn.setup()
    state = _States(case, do_fn) if isinstance(do_fn, BufferedInferDoFn) else None
    for bundle in bundles:
        do_fn.start_bundle()
        for timed in bundle:
            extra = {"update": timed.update} if case.refreshed else {}
            for origin in _windowed(case, timed):
                if state is not None:
                    yield from state.process(origin, extra)
                else:
                    yield from do_fn.process(origin.value, origin, **extra) or ()
        if state is not None and len(bundle) % 2:
            yield from state.fire("max_wait")
        yield from do_fn.finish_bundle() or ()
    if state is not None:
        do_fn.start_bundle()
        yield from state.fire("window_end")
        yield from do_fn.finish_bundle() or ()
    do_fn.teardown()


def _windowed(case: Case, timed: Any) -> Iterable[WindowedValue]:
    """An element once in each of its windows, as ``ExplodeWindows`` emits it."""
    spans = WINDOWS[case.windows].assign(window.WindowFn.AssignContext(timed.at, timed.value))
    return [WindowedValue(timed.value, timed.at, (span,)) for span in spans]


def counted(case: Case, outputs: Iterable[Any]) -> Outcome:
    """The outputs of a DoFn, as they are compared."""
    outcome = Outcome()
    for output in outputs:
        failed = isinstance(output, TaggedOutput)
        windowed = output.value if failed else output
        [span] = windowed.windows
        add(case, outcome, failed, windowed.value, windowed.timestamp, span)
    return outcome


def add(case: Case, outcome: Outcome, failed: bool, value: Any, timestamp: Any, span: Any) -> None:
    """Counts one result or dead letter."""
    at = int(timestamp)
    ends = None if case.windows == "sessions" else span.end.micros
    if failed:
        element, (kind, _, _) = value
        outcome.bad[(name(element), kind.__name__), at, ends] += 1
        return
    keyed = isinstance(value, tuple) and isinstance(value[1], (tuple, dict))
    key, result = value if keyed else (None, value)
    outcome.good[(key, *told(result)), at, ends] += 1


class _States:
    """State and timers of a stateful DoFn, for each key and window."""

    def __init__(self, case: Case, do_fn: BufferedInferDoFn) -> None:
        self._do_fn = do_fn
        self._shard = AssignShardKey(case.handler())
        self._shard.setup()
        self._cells: dict[Any, dict[str, _Cell]] = {}

    def process(self, origin: WindowedValue, extra: dict[str, Any]) -> Iterator[Any]:
        [(key, element)] = self._shard.process(origin.value)
        [span] = origin.windows
        fresh = {
            name: _Cell() for name in ("totals", "buffered_arguments", "max_wait", "window_end")
        }
        cells = self._cells.setdefault((key, span), {"buffer": _Bag(), **fresh})
        yield from self._do_fn.process(
            (key, element), origin.with_value((key, element)), span, **cells, **extra
        )

    def fire(self, timer: str) -> Iterator[Any]:
        for (_, span), cells in self._cells.items():
            if cells[timer].read() is not None:
                cells[timer].clear()
                states = {n: cells[n] for n in ("buffer", "totals", "buffered_arguments")}
                yield from self._do_fn.flush(span, **states)


class _Bag:
    """A state of many values."""

    def __init__(self) -> None:
        self.clear()

    def add(self, value: Any) -> None:
        self._values.append(value)

    def read(self) -> list[Any]:
        return self._values

    def clear(self) -> None:
        self._values: list[Any] = []


class _Cell:
    """A state of one value, or a timer."""

    def __init__(self) -> None:
        self.clear()

    def write(self, value: Any) -> None:
        self._value = value

    set = write

    def read(self) -> Any:
        return self._value

    def clear(self) -> None:
        self._value: Any = None
