"""Drive the inference DoFn without a runner: bundles, windows, threads, state and timers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from apache_beam.internal import pickler
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import WindowedValue

from pipelines.buffered_driver import BufferedDriver
from pipelines.case import Case, TimestampedElement
from pipelines.outcome import Outcome
from runinference.transforms.buffered_dofn import BufferedInferDoFn


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
    state = None
    if isinstance(do_fn, BufferedInferDoFn):
        state = BufferedDriver(do_fn, case.handler(), keep_windows=case.window_fn == "sessions")
    for bundle in bundles:
        do_fn.start_bundle()
        for element in bundle:
            side_input = element.side_inputs(case)
            for windowed in _explode_windows(case, element):
                if state is not None:
                    yield from state.process(windowed, **side_input)
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
    """Return an element once per window, as `ExplodeWindows` does."""
    return [
        WindowedValue(
            copy.deepcopy(element.value) if index else element.value, element.timestamp, (window,)
        )
        for index, window in enumerate(case.assign_windows(element))
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
