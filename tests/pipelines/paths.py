"""The paths of an element to its prediction, driven without a runner, to test each rule on all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.metrics.execution import MetricsContainer
from apache_beam.pvalue import TaggedOutput
from apache_beam.runners.worker.statesampler import StateSampler, set_current_tracker
from apache_beam.transforms import window
from apache_beam.utils.counters import CounterFactory

from pipelines.buffered_driver import BufferedDriver
from runinference import KeyedModelHandler, KeyModelMapping, RunInference
from runinference.transforms.buffered_dofn import BufferedInferDoFn

#: The number of examples in an element that is a batch.
PREBATCHED = 4


@dataclass(frozen=True)
class Path:
    """One way from the elements to the results.

    Attributes:
        name: The name of the path.
        wrap: Returns the handler that this path needs around another one.
        add_key: Returns the element for an example.
        options: Options of the handler.
        window_fn: The windowing.
        across_bundles: Whether elements wait in state. Each element is then a bundle of its own.
        prebatched: Whether elements are lists of examples.
        is_local: Whether ``handler.predict`` is called instead of a DoFn.
    """

    name: str
    wrap: Callable[[Any], Any] = lambda handler: handler
    add_key: Callable[[Any], Any] = lambda example: example
    options: dict[str, Any] = field(default_factory=dict)
    window_fn: Any = field(default_factory=window.GlobalWindows)
    across_bundles: bool = False
    prebatched: bool = False
    is_local: bool = False

    def __str__(self) -> str:
        return self.name


def _per_key(handler: Any) -> Any:
    return KeyedModelHandler(
        [KeyModelMapping(["even"], handler), KeyModelMapping(["odd"], handler.copy())]
    )


def _parity(example: Any) -> Any:
    return ("odd" if isinstance(example, int) and example % 2 else "even"), example


_WAITS = {"max_batch_duration_secs": 600}
PATHS = [
    Path("per bundle"),
    Path("across bundles", options=_WAITS, across_bundles=True),
    Path(
        "across bundles in sessions",
        options=_WAITS,
        window_fn=window.Sessions(100),
        across_bundles=True,
    ),
    Path(
        "keyed across bundles", KeyedModelHandler, lambda x: ("key", x), _WAITS, across_bundles=True
    ),
    Path("per window", window_fn=window.SlidingWindows(10, 5)),
    Path("prebatched", lambda handler: handler.with_no_batching(), prebatched=True),
    Path("keyed", KeyedModelHandler, lambda x: ("key", x)),
    Path("model per key", _per_key, _parity),
    Path(
        "prebatched with a model per key",
        lambda handler: _per_key(handler).with_no_batching(),
        _parity,
        prebatched=True,
    ),
    Path("predict", is_local=True),
]


@dataclass
class Outcome:
    """What a path gave.

    Attributes:
        results: ``(prediction, timestamp, window)`` of each result, without its key.
        failed: ``(example, error type)`` of each dead letter, without its key.
        keys: The keys of the results.
        metrics: The values of the metrics, by name: a count, or the data of a distribution.
    """

    results: list[Any] = field(default_factory=list)
    failed: list[Any] = field(default_factory=list)
    keys: list[Any] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def predictions(self) -> list[Any]:
        return [prediction for prediction, _, _ in self.results]


def run(
    path: Path,
    handler: Any,
    examples: Sequence[Any],
    *,
    side_inputs: Callable[[int], dict[str, Any]] = lambda index: {},
    handling: dict[str, Any] | None = None,
    after: Callable[[], Any] = lambda: None,
    **options: Any,
) -> Outcome:
    """Take examples along a path. The timestamp of each one is its position.

    Args:
        path: The path.
        handler: The handler; `Path.wrap` is applied.
        examples: The examples.
        side_inputs: Returns the side inputs of the element at a position: ``update`` and ``arguments``.
        handling: Options of ``with_exception_handling``; None to let errors raise.
        after: Called after each element.
        **options: Options of ``RunInference``.
    """
    handler = path.wrap(handler)
    outcome = Outcome()
    if path.is_local:
        results = handler.predict(list(examples), options.get("inference_args"))
        outcome.results = [(result, None, None) for result in results]
        return outcome
    transform = RunInference(handler, **options)
    if handling is not None:
        transform = transform.with_exception_handling(**handling)
    container = MetricsContainer("step")
    sampler = StateSampler("step", CounterFactory())
    set_current_tracker(sampler)
    with sampler.scoped_state("step", "process", metrics_container=container):
        for output in _drive(path, transform._make_dofn(), handler, examples, side_inputs, after):
            _add(outcome, output)
    set_current_tracker(None)
    cumulative = container.get_cumulative()
    outcome.metrics = {key.metric.name: value for key, value in cumulative.counters.items()}
    outcome.metrics |= {key.metric.name: value for key, value in cumulative.distributions.items()}
    return outcome


def _add(outcome: Outcome, output: Any) -> None:
    windowed = output.value if isinstance(output, TaggedOutput) else output
    value = windowed.value
    [its_window] = windowed.windows
    if isinstance(output, TaggedOutput):
        (element, (kind, _, _)) = value
        is_keyed = isinstance(element, tuple) and len(element) == 2
        outcome.failed.append((element[1] if is_keyed else element, kind.__name__))
        return
    is_keyed = type(value) is tuple and len(value) == 2
    if is_keyed:
        outcome.keys.append(value[0])
    prediction = value[1] if is_keyed else value
    outcome.results.append((prediction, int(windowed.timestamp), its_window))


def _drive(
    path: Path,
    do_fn: Any,
    handler: Any,
    examples: Sequence[Any],
    side_inputs: Callable[[int], dict[str, Any]],
    after: Callable[[], Any],
) -> Iterator[Any]:
    do_fn.setup()
    state = None
    if isinstance(do_fn, BufferedInferDoFn):
        state = BufferedDriver(do_fn, handler, path.window_fn.is_merging())
    assert (state is not None) == path.across_bundles
    do_fn.start_bundle()
    for element, timestamp in _make_elements(path, examples):
        context = window.WindowFn.AssignContext(timestamp, element)
        for its_window in path.window_fn.assign(context):
            windowed = window.WindowedValue(element, timestamp, (its_window,))
            given = side_inputs(timestamp)
            if state is not None:
                yield from state.process(windowed, **given)
                yield from do_fn.finish_bundle() or ()
                do_fn.start_bundle()
            else:
                yield from do_fn.process(element, windowed, **given) or ()
        after()
    if state is not None:
        yield from state.fire("max_wait")
    yield from do_fn.finish_bundle() or ()
    getattr(do_fn, "teardown", beam.DoFn.teardown)()


def _make_elements(path: Path, examples: Sequence[Any]) -> Iterable[tuple[Any, int]]:
    """Return each element with its timestamp."""
    elements = [path.add_key(example) for example in examples]
    if not path.prebatched:
        return zip(elements, range(len(elements)), strict=True)
    starts = range(0, len(elements), PREBATCHED)
    return [(elements[start : start + PREBATCHED], start) for start in starts]
