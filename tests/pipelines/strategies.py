"""Hypothesis strategies that draw random pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from pipelines.case import KEYS, WINDOW_FNS, Case, TimestampedElement
from pipelines.rows import ERRORS, INVALID_EXAMPLES, OUTPUT_FORMATS, UNLIMITED, Row, row_size
from runinference import KeyModelPathMapping, ModelMetadata

_kinds = st.sampled_from(["good"] * 8 + [*ERRORS, "transient", "invalid"])


@st.composite
def _examples(draw: st.DrawFn, settings: dict[str, Any], numbers: Iterator[int]) -> Any:
    kind = draw(_kinds) if settings["with_failures"] else "good"
    if kind == "invalid" and settings["unsplit"]:
        kind = "raise"
    if kind in ("unavailable", "transient"):
        # Each one uses up part of a batch's failure budget, which is enough for two.
        settings["n_unavailable"] += 1
        within_budget = settings["n_unavailable"] <= 2 and settings["max_rows"] == UNLIMITED
        kind = kind if within_budget else "raise"
    example: Any = Row(next(numbers), draw(st.integers(1, 9)), kind)
    invalid = kind == "invalid"
    if invalid:
        example = draw(st.sampled_from(INVALID_EXAMPLES))
    if settings["unsplit"]:
        return example
    return _add_key(draw, settings, example, invalid)


def _add_key(draw: st.DrawFn, settings: dict[str, Any], example: Any, invalid: bool) -> Any:
    keys = settings["keys"]
    if (
        keys == "none"
        or (keys == "maybe" and not settings["with_keys"])
        or (invalid and draw(st.booleans()))
    ):
        return example
    include_unknown = settings["with_failures"] and keys == "per key"
    return draw(st.sampled_from(KEYS if include_unknown else KEYS[:3])), example


@st.composite
def _lists(draw: st.DrawFn, settings: dict[str, Any], numbers: Iterator[int]) -> Any:
    """Draw a list of rows, which gets one unsplit result."""
    rows = draw(st.lists(_examples(settings, numbers), max_size=6))
    return _add_key(draw, settings, rows, invalid=False)


@st.composite
def batching_options(draw: st.DrawFn) -> dict[str, Any]:
    """Draw any combination of batching options."""
    options: dict[str, Any] = {}
    min_size = draw(st.none() | st.integers(1, 6))
    max_size = draw(st.none() | st.integers(min_size or 1, 12))
    options |= {"min_batch_size": min_size, "max_batch_size": max_size}
    if draw(st.booleans()):
        options["element_size_fn"] = row_size
    options["max_batch_weight"] = draw(st.none() | st.integers(1, 30))
    options["max_batch_bytes"] = draw(st.none() | st.integers(1, 40))
    if draw(st.booleans()):
        options["batch_length_fn"] = row_size
        options["batch_bucket_boundaries"] = draw(st.sampled_from([None, [4], [2, 3, 8]]))
        options["max_padded_size"] = draw(st.none() | st.integers(min_size or 1, 40))
    return {name: value for name, value in options.items() if value is not None}


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    buffered: bool = False,
    functions: bool = False,
    side_inputs: bool = False,
    unsplit: bool = False,
) -> Case:
    """Draw a pipeline and its elements.

    Args:
        buffered: Whether batches span bundles.
        functions: Whether to draw preprocessing and postprocessing functions, with one thread and no failing rows.
        side_inputs: Whether elements arrive with model updates or inference arguments.
        unsplit: Whether elements are lists of rows with one unsplit result.
    """
    keys = draw(st.sampled_from(["none", "keyed", "maybe", "per key"]))
    model_updates = side_inputs and keys in ("none", "per key") and draw(st.booleans())
    arguments = side_inputs and (not model_updates or draw(st.booleans()))
    prebatched = not buffered and not unsplit and draw(st.sampled_from([False, False, False, True]))
    max_rows = draw(st.sampled_from([UNLIMITED, UNLIMITED, 1, 3]))
    settings = {
        "keys": keys,
        "max_rows": max_rows,
        "with_failures": not functions and draw(st.booleans()),
        "n_unavailable": 0,
        "with_keys": draw(st.booleans()),
        "unsplit": unsplit,
    }
    values: Any = (_lists if unsplit else _examples)(settings, iter(range(1, 10_000)))
    if prebatched:
        values = st.lists(values, min_size=1, max_size=6)
        if settings["with_failures"]:
            values |= st.sampled_from([None, 3.5])
    elements = st.builds(
        TimestampedElement,
        values,
        st.integers(0, 20),
        _updates(keys, optional=not buffered) if model_updates else st.none(),
        st.sampled_from(["", "-x", "-y"]) if arguments else st.just(""),
    )
    bundles = st.lists(st.lists(elements, max_size=14).map(tuple), max_size=4).map(tuple)
    n_threads = draw(st.just(1) if functions else st.sampled_from([1, 1, 1, 2, 3]))
    batching = draw(batching_options())
    if buffered:
        batching["max_batch_duration_secs"] = 1
    overlaps = draw(st.booleans())
    # Only a fixed size is known from the first batch on.
    if overlaps and "max_padded_size" not in batching:
        batching["min_batch_size"] = batching.setdefault("max_batch_size", 3)
    return Case(
        threads=tuple(draw(bundles) for _ in range(n_threads)),
        keys=keys,
        batching=batching,
        window_fn=draw(st.sampled_from(list(WINDOW_FNS))),
        output_format=draw(st.sampled_from(OUTPUT_FORMATS)),
        max_rows=max_rows,
        dead_letters=draw(st.sampled_from([True, True, True, False])),
        prebatched=prebatched,
        max_models=draw(st.none() | st.just(1)) if keys == "per key" else None,
        model_updates=model_updates,
        arguments=arguments,
        in_place=draw(st.booleans()),
        joins_threads=draw(st.booleans()),
        unsplit=unsplit,
        overlaps=overlaps,
        n_preprocess=draw(st.integers(0, 2)) if functions and not prebatched else 0,
        n_postprocess=draw(st.integers(0, 2)) if functions else 0,
    )


def _updates(keys: str, optional: bool) -> st.SearchStrategy[Any]:
    """Draw model updates; without one, the current model is used, which depends on timers across bundles."""
    paths = st.sampled_from(["second", "third"])
    updates: Any = paths.map(lambda path: ModelMetadata(path, path))
    if keys == "per key":
        updates = st.tuples(paths, paths).map(_make_mappings)
    return st.none() | updates if optional else updates


def _make_mappings(paths: tuple[str, str]) -> list[KeyModelPathMapping[str]]:
    first, other = paths
    return [KeyModelPathMapping(["a", "b"], first), KeyModelPathMapping(["c"], other)]
