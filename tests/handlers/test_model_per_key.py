"""Per-key models compose with all options, stay within limits, and reject invalid mappings."""

from __future__ import annotations

import itertools

import apache_beam as beam
import numpy as np
import pytest

from common import RUNNER, CollectElements, Doubler, run
from runinference import KeyedModelHandler, KeyModelMapping, RunInference
from runinference.errors import ElementError, OptionError, UnknownKeyError


def doublers(**options):
    """Return a handler with one model for keys "a" and "b", and another for "c"."""
    return KeyedModelHandler(
        [
            KeyModelMapping(["a", "b"], Doubler("ab", **options)),
            KeyModelMapping(["c"], Doubler("c", **options)),
        ]
    )


def plus_one(pair):
    return pair[0], pair[1] + 1


def plus_one_each(pairs):
    return [plus_one(pair) for pair in pairs]


def number(pair):
    return pair[0], pair[1].inference


CHANGES = ("preprocess", "postprocess", "no batching")


@pytest.mark.parametrize(
    "order",
    [order for n in range(4) for order in itertools.permutations(CHANGES, n)],
    ids=lambda order: " then ".join(order) or "none",
)
def test_per_key_models_compose_with_all_with_methods_in_any_order(order):
    batched = "no batching" in order
    handler = doublers()
    for change in order:
        if change == "preprocess":
            handler = handler.with_preprocess_fn(plus_one_each if batched else plus_one)
        elif change == "postprocess":
            handler = handler.with_postprocess_fn(number)
        else:
            handler = handler.with_no_batching()
    pairs = [("a", 1), ("c", 2), ("b", 3)]
    found = run([pairs] if batched else pairs, RunInference(handler))
    if "postprocess" not in order:
        found = [number(pair) for pair in found]
    more = "preprocess" in order
    assert sorted(found) == [(key, 2 * (n + more)) for key, n in (("a", 1), ("b", 3), ("c", 2))]


def test_each_model_has_its_own_options_and_batches_are_formed_per_model():
    handler = doublers(min_batch_size=2, max_batch_size=2)
    run([("a", 1), ("c", 2), ("b", 3), ("a", 4), ("c", 5)], RunInference(handler))
    sizes = [mapping.mh.sizes for mapping in handler.mappings]
    assert sizes == [[2, 1], [2]]


WRONG = Doubler("wrong")


@pytest.mark.parametrize(
    ("mappings", "message"),
    [
        (
            [KeyModelMapping(["a"], WRONG), KeyModelMapping(["a"], WRONG)],
            "The key 'a' is in KeyModelMapping number 0",
        ),
        ([KeyModelMapping(["a", "a"], WRONG)], "number 0 and number 0. Each key has one model"),
        ([KeyModelMapping([], WRONG)], "needs a list of one or more keys"),
        ([KeyModelMapping([["a"]], WRONG)], "of type list is not .* a tuple of these"),
        ([KeyModelMapping("abc", WRONG)], "needs a list of one or more keys, but has 'abc'"),
        ([], "got an empty list"),
        ([("a", WRONG)], "item 0 is a tuple"),
        ([KeyModelMapping(["a"], WRONG.with_preprocess_fn(str))], "already has preprocessing"),
        ([KeyModelMapping(["a"], WRONG.with_postprocess_fn(str))], "already has postprocessing"),
        (
            [KeyModelMapping(["a"], WRONG.with_no_batching())],
            "cannot skip batching for its keys alone",
        ),
    ],
)
def test_invalid_mappings_raise_at_construction(mappings, message):
    with pytest.raises(OptionError, match=message):
        KeyedModelHandler(mappings)


@pytest.mark.parametrize(
    "limits", [{"max_models_per_worker_hint": 0}, {"max_model_bytes_per_worker": -1}]
)
def test_limits_below_one_model_are_rejected(limits):
    with pytest.raises(OptionError, match="must be at least 1"):
        KeyedModelHandler([KeyModelMapping(["a"], WRONG)], **limits)


def test_limits_are_rejected_for_a_single_model():
    with pytest.raises(OptionError, match="apply to per-key models only"):
        KeyedModelHandler(WRONG, max_models_per_worker_hint=2)


def test_a_key_without_a_model_raises_with_the_closest_key():
    oslo = KeyedModelHandler([KeyModelMapping(["oslo"], Doubler("oslo"))])
    with pytest.raises(
        UnknownKeyError, match="No model is mapped to the key 'olso'. Did you mean 'oslo'"
    ):
        run([("olso", 1)], RunInference(oslo))


UNHASHABLE = [["a"], {"a": 1}, np.array(["a"]), np.array(1), {"a"}, ("a", ["b"])]


@pytest.mark.parametrize("key", UNHASHABLE, ids=repr)
def test_a_key_that_is_not_hashable_raises_with_its_type_and_a_hint(key):
    message = f"of type {type(key).__name__} is not .*a tuple of these"
    with pytest.raises(ElementError, match=message):
        run([(key, 1)], RunInference(doublers()))
    with pytest.raises(ElementError, match=message):
        doublers().predict([(key, 1)])


@pytest.mark.parametrize("batched", [False, True])
def test_only_the_element_with_an_unhashable_key_becomes_a_dead_letter(batched):
    handler = doublers().with_no_batching() if batched else doublers()
    pairs = [("a", 1), *[(key, 2) for key in UNHASHABLE], ("c", 3)]
    results, errors = RunInference(handler).with_exception_handling(), []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        main, failed = pipeline | beam.Create([pairs] if batched else pairs) | results
        found = []
        main | "main" >> beam.ParDo(CollectElements(found))
        failed.failed_inferences | "failed" >> beam.ParDo(CollectElements(errors))
    assert sorted(number(pair) for pair in CollectElements.take(found)) == [("a", 2), ("c", 6)]
    errors = CollectElements.take(errors)
    assert {error[0] for _, error in errors} == {ElementError}
    assert sorted(type(key).__name__ for (key, _), _ in errors) == sorted(
        type(key).__name__ for key in UNHASHABLE
    )


def test_unhashable_keys_are_kept_if_one_model_serves_all_keys():
    found = run([(["a"], 1), ({"b": 2}, 2)], RunInference(KeyedModelHandler(Doubler("one"))))
    assert sorted(map(number, found), key=repr) == [(["a"], 2), ({"b": 2}, 4)]


class Hinted(Doubler):
    def get_resource_hints(self):
        return {"min_ram": self.name}


def test_conflicting_resource_hints_raise():
    same = [KeyModelMapping([key], Hinted("8GB")) for key in "ab"]
    assert KeyedModelHandler(same).get_resource_hints() == {"min_ram": "8GB"}
    other = KeyModelMapping(["c"], Hinted("9GB"))
    with pytest.raises(OptionError, match="the resource hint min_ram to '8GB' and '9GB'"):
        KeyedModelHandler([*same, other]).get_resource_hints()


def test_keys_with_equal_text_have_their_own_models():
    keyed = KeyedModelHandler(
        [KeyModelMapping([1], Doubler("number")), KeyModelMapping(["1"], Doubler("text"))]
    )
    results = run([(1, 1), ("1", 2)], RunInference(keyed))
    assert {key: result.model_id for key, result in results} == {1: "number", "1": "text"}


def test_keys_can_be_a_set():
    keyed = KeyedModelHandler([KeyModelMapping({"a", "b"}, Doubler("set"))])  # type: ignore[arg-type]
    assert sorted(key for key, _ in run([("a", 1), ("b", 2)], RunInference(keyed))) == ["a", "b"]


class Identity:
    """A key that equals only itself."""


@pytest.mark.parametrize(
    "key", [float("nan"), (float("nan"), 1), Identity()], ids=["nan", "tuple", "identity"]
)
def test_keys_that_do_not_equal_their_copies_are_rejected(key):
    with pytest.raises(OptionError, match="does not equal its pickled copy"):
        KeyedModelHandler([KeyModelMapping([key], Doubler("x"))])


@pytest.mark.parametrize(
    ("known", "given", "hint"), [(1, "1", "mean 1?"), ("Oslo", "oslo", "mean 'Oslo'")]
)
def test_a_key_of_another_type_or_case_is_suggested_among_many(known, given, hint):
    keyed = KeyedModelHandler([KeyModelMapping([known, *range(100, 20_000)], Doubler("x"))])
    with pytest.raises(UnknownKeyError, match=hint.replace("?", r"\?")):
        keyed.predict([(given, 1)])
