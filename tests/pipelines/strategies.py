"""Hypothesis strategies that draw random pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from pipelines.case import KEYS, WINDOW_FNS, Case, TimestampedElement
from pipelines.rows import ERRORS, INVALID_EXAMPLES, OUTPUT_FORMATS, UNLIMITED, Row, row_size
from runinference import ModelMetadata

_kinds = st.sampled_from(["good"] * 8 + [*ERRORS, "transient", "invalid"])


@st.composite
def _examples(draw: st.DrawFn, settings: dict[str, Any], numbers: Iterator[int]) -> Any:
    kind = draw(_kinds) if settings["with_failures"] else "good"
    if kind in ("unavailable", "transient"):
        # Each one uses up part of a batch's failure budget, which is enough for two.
        settings["n_unavailable"] += 1
        within_budget = settings["n_unavailable"] <= 2 and settings["max_rows"] == UNLIMITED
        kind = kind if within_budget else "raise"
    example: Any = Row(next(numbers), draw(st.integers(1, 9)), kind)
    invalid = kind == "invalid"
    if invalid:
        example = draw(st.sampled_from(INVALID_EXAMPLES))
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
    model_updates: bool = False,
) -> Case:
    """Draw a pipeline and its elements.

    Args:
        buffered: Whether batches span bundles.
        functions: Whether to draw preprocessing and postprocessing functions, with one thread and no failing rows.
        model_updates: Whether elements arrive with model updates.
    """
    keys = draw(
        st.sampled_from(["none"] if model_updates else ["none", "keyed", "maybe", "per key"])
    )
    prebatched = not buffered and draw(st.sampled_from([False, False, False, True]))
    max_rows = draw(st.sampled_from([UNLIMITED, UNLIMITED, 1, 3]))
    settings = {
        "keys": keys,
        "max_rows": max_rows,
        "with_failures": not functions and draw(st.booleans()),
        "n_unavailable": 0,
        "with_keys": draw(st.booleans()),
    }
    values: Any = _examples(settings, iter(range(1, 10_000)))
    if prebatched:
        values = st.lists(values, min_size=1, max_size=6)
        if settings["with_failures"]:
            values |= st.sampled_from([None, 3.5])
    elements = st.builds(
        TimestampedElement, values, st.integers(0, 20), _updates() if model_updates else st.none()
    )
    bundles = st.lists(st.lists(elements, max_size=14).map(tuple), max_size=4).map(tuple)
    n_threads = draw(st.just(1) if functions else st.sampled_from([1, 1, 1, 2, 3]))
    batching = draw(batching_options())
    if buffered:
        batching["max_batch_duration_secs"] = 1
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
        n_preprocess=draw(st.integers(0, 2)) if functions and not prebatched else 0,
        n_postprocess=draw(st.integers(0, 2)) if functions else 0,
    )


def _updates() -> st.SearchStrategy[ModelMetadata | None]:
    return st.sampled_from(
        [None, ModelMetadata("second", "second"), ModelMetadata("third", "third")]
    )
