"""A random pipeline as a value, the strategies that draw it, and the plain loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from apache_beam.transforms import window
from hypothesis import strategies as st

from pipelines.rows import FAILING, JUNK, STYLES, Row, Rowwise, size_of
from runinference import (
    KeyedModelHandler,
    KeyModelMapping,
    MaybeKeyedModelHandler,
    ModelMetadata,
    RunInference,
)

KEYS = ("a", "b", "c", "d")
#: Which keys share a model, where there is a model per key; "d" has none.
MODELS = {"a": "first", "b": "first", "c": "other"}
WINDOWS = {
    "global": window.GlobalWindows(),
    "fixed": window.FixedWindows(5),
    "sliding": window.SlidingWindows(6, 2),
    "sessions": window.Sessions(3),
}


@dataclass(frozen=True)
class Timed:
    """An element, its event time, and the refresh it comes with."""

    value: Any
    at: int
    update: ModelMetadata | None = None


@dataclass(frozen=True)
class Case:
    """One pipeline.

    Attributes:
        elements: In bundles, for each thread.
        keys: ``none``, ``keyed``, ``maybe`` or ``per key``.
        batching: The options for it.
        aside: Whether errors are set aside.
        batched: Whether elements are lists of examples.
        before, after: How many functions are applied, each of which fails for some.
    """

    elements: tuple[tuple[tuple[Timed, ...], ...], ...]
    keys: str = "none"
    batching: dict[str, Any] = field(default_factory=dict)
    windows: str = "global"
    style: str = "list"
    most: int = 1_000
    aside: bool = True
    batched: bool = False
    room: int | None = None
    refreshed: bool = False
    before: int = 0
    after: int = 0

    def handler(self) -> Any:
        def rowwise(name: str) -> Rowwise:
            return Rowwise(name, self.style, self.most, **self.batching)

        if self.keys == "none":
            handler: Any = rowwise("m")
        elif self.keys == "per key":
            mappings = [
                KeyModelMapping([k for k in MODELS if MODELS[k] == name], rowwise(name))
                for name in ("first", "other")
            ]
            handler = KeyedModelHandler(mappings, max_models_per_worker_hint=self.room)
        else:
            around = KeyedModelHandler if self.keys == "keyed" else MaybeKeyedModelHandler
            handler = around(rowwise("m"))
        if self.batched:
            handler = handler.with_no_batching()
        for number in range(self.before):
            handler = handler.with_preprocess_fn(_Refusing(7 + number))
        for number in range(self.after):
            handler = handler.with_postprocess_fn(_Refusing(11 + number))
        return handler

    def transform(self) -> RunInference:
        metadata = object() if self.refreshed else None
        step = RunInference(self.handler(), model_metadata_pcoll=metadata)
        return step.with_exception_handling() if self.aside else step

    @property
    def all(self) -> list[Timed]:
        return [timed for thread in self.elements for bundle in thread for timed in bundle]


class _Refusing:
    """A function that fails for rows, or results of rows, whose number is a multiple of one."""

    def __init__(self, divisor: int) -> None:
        self.divisor = divisor

    def __call__(self, element: Any) -> Any:
        if number_of(element) % self.divisor == 0:
            raise ArithmeticError(f"a multiple of {self.divisor}")
        return element


def number_of(element: Any) -> int:
    """The number of a row, or of the row that a result is of; with a key or without."""
    if isinstance(element, Row):
        return element.n
    if isinstance(element, dict):
        return int(element["n"])
    last = element[1]
    return number_of(last) if isinstance(last, (Row, dict, tuple)) else int(last)


@dataclass
class Outcome:
    """What comes out: ``(key, model, number)`` and why elements failed, each with time and window."""

    good: Counter[Any] = field(default_factory=Counter)
    bad: Counter[Any] = field(default_factory=Counter)


def expected(case: Case) -> Outcome:
    """What must come out of a pipeline, element by element."""
    outcome = Outcome()
    windowing = WINDOWS[case.windows]
    for timed, model in _with_model(case):
        context = window.WindowFn.AssignContext(timed.at, timed.value)
        spans = windowing.assign(context)
        examples = timed.value if case.batched and isinstance(timed.value, list) else [timed.value]
        for example in examples:
            good, said = _one(case, example, model)
            if good and (refused := _refused(case, said[-1])):
                good, said = False, refused
            for span in spans:
                ends = None if case.windows == "sessions" else span.end.micros
                (outcome.good if good else outcome.bad)[said, timed.at, ends] += 1
    return outcome


def _with_model(case: Case) -> Iterator[tuple[Timed, str]]:
    """Each element with the model of the last refresh that its thread has seen."""
    for thread in case.elements:
        model = "m"
        for timed in (timed for bundle in thread for timed in bundle):
            model = timed.update.model_id if timed.update else model
            yield timed, model


def _one(case: Case, example: Any, model: str) -> tuple[bool, Any]:
    """Whether an example has a prediction, and what it is or why not."""
    key, row = None, example
    pair = isinstance(example, tuple) and len(example) == 2
    if case.keys in ("keyed", "per key") or (case.keys == "maybe" and isinstance(example, tuple)):
        if not pair:
            return False, (name(example), "*")
        key, row = example
    if not isinstance(row, Row):
        return False, (name(example), "*")
    if case.keys == "per key" and key not in MODELS:
        return False, (name(example), "UnknownKeyError")
    if row.kind in FAILING:
        return False, (name(example), FAILING[row.kind])
    return True, (key, MODELS[key] if case.keys == "per key" else model, row.n)


def _refused(case: Case, n: int) -> Any:
    """Which of the functions fails for a row, if any does."""
    for where, first, how_many in (("before", 7, case.before), ("after", 11, case.after)):
        # Functions before the model are applied in the reverse order of with_preprocess_fn.
        for number in range(how_many):
            if n % (first + number) == 0:
                return where, n
    return None


def name(example: Any) -> str:
    """An example as a text, to count it by."""
    return repr(example)


# Strategies

kinds = st.sampled_from(["good"] * 8 + [*FAILING, "passing", "junk"])


@st.composite
def _values(draw: st.DrawFn, case: dict[str, Any], number: Iterator[int]) -> Any:
    """One example."""
    kind = draw(kinds) if case["spoiled"] else "good"
    if kind in ("down", "passing"):  # each costs patience, of which a batch has enough for two
        case["down"] += 1
        kind = kind if case["down"] <= 2 and case["most"] == 1_000 else "raise"
    row: Any = Row(next(number), draw(st.integers(1, 9)), kind)
    junk = kind == "junk"
    if junk:
        row = draw(st.sampled_from(JUNK))
    keys = case["keys"]
    if (
        keys == "none"
        or (keys == "maybe" and not case["with_keys"])
        or (junk and draw(st.booleans()))
    ):
        return row
    known = KEYS if case["spoiled"] and keys == "per key" else KEYS[:3]
    return draw(st.sampled_from(known)), row


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    """Options for batching, alone and combined."""
    options: dict[str, Any] = {}
    least = draw(st.none() | st.integers(1, 6))
    most = draw(st.none() | st.integers(least or 1, 12))
    options |= {"min_batch_size": least, "max_batch_size": most}
    if draw(st.booleans()):
        options["element_size_fn"] = size_of
    options["max_batch_weight"] = draw(st.none() | st.integers(1, 30))
    options["max_batch_bytes"] = draw(st.none() | st.integers(1, 40))
    if draw(st.booleans()):
        options["batch_length_fn"] = size_of
        options["batch_bucket_boundaries"] = draw(st.sampled_from([None, [4], [2, 3, 8]]))
        options["max_padded_size"] = draw(st.none() | st.integers(least or 1, 40))
    return {name: value for name, value in options.items() if value is not None}


@st.composite
def cases(
    draw: st.DrawFn, *, waiting: bool = False, functions: bool = False, refreshed: bool = False
) -> Case:
    """A pipeline, with its elements."""
    keys = draw(st.sampled_from(["none"] if refreshed else ["none", "keyed", "maybe", "per key"]))
    batched = not waiting and draw(st.sampled_from([False, False, False, True]))
    most = draw(st.sampled_from([1_000, 1_000, 1, 3]))
    settings = {
        "keys": keys,
        "most": most,
        "spoiled": not functions and draw(st.booleans()),
        "down": 0,
        "with_keys": draw(st.booleans()),
    }
    numbers = iter(range(1, 10_000))
    values: Any = _values(settings, numbers)
    if batched:
        values = st.lists(values, min_size=1, max_size=6)
        if settings["spoiled"]:
            values |= st.sampled_from([None, 3.5])
    update = st.none()
    if refreshed:
        named = [ModelMetadata(n, n) for n in ("second", "third")]
        update = st.sampled_from([None, *named])
    timed = st.builds(Timed, values, st.integers(0, 20), update)
    bundles = st.lists(st.lists(timed, max_size=14).map(tuple), max_size=4).map(tuple)
    threads = st.just(1) if functions else st.sampled_from([1, 1, 1, 2, 3])
    n_threads = draw(threads)
    batching = draw(policies())
    if waiting:
        batching["max_batch_duration_secs"] = 1
    return Case(
        elements=tuple(draw(bundles) for _ in range(n_threads)),
        keys=keys,
        batching=batching,
        windows=draw(st.sampled_from(list(WINDOWS))),
        style=draw(st.sampled_from(STYLES)),
        most=most,
        aside=draw(st.sampled_from([True, True, True, False])),
        batched=batched,
        room=draw(st.none() | st.just(1)) if keys == "per key" else None,
        refreshed=refreshed,
        before=draw(st.integers(0, 2)) if functions and not batched else 0,
        after=draw(st.integers(0, 2)) if functions else 0,
    )
