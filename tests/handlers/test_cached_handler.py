"""A handler with a cache calls its model once for equal elements, and never returns another element's result."""

from __future__ import annotations

import collections
import dataclasses
import pickle
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import apache_beam as beam
import httpx
import numpy as np
import pandas as pd
import pytest
import torch
from apache_beam.internal import pickler
from pydantic import AfterValidator, BaseModel, field_validator

from common import RUNNER, CollectElements, linear_regression, overlapping, run
from runinference import (
    KeyedModelHandler,
    KeyModelMapping,
    MaybeKeyedModelHandler,
    ModelHandler,
    PredictionResult,
    RemoteModelHandler,
    RunInference,
)
from runinference.errors import ElementError, ModelLoadError, OptionError
from runinference.handlers.compute_turn import CallOverlap, compute_turn
from runinference.handlers.stable_bytes import to_stable_bytes
from runinference.openai_inference import (
    OpenAIChatModelHandler,
    OpenAIModelHandler,
    chat_completion_from_string,
)
from runinference.pytorch_inference import PytorchModelHandlerTensor
from runinference.samples import servers
from runinference.sklearn_inference import SklearnModelHandlerNumpy, SklearnModelHandlerPandas
from runinference.testing import check_handler

CALLS: dict[str, list[Any]] = collections.defaultdict(list)


@pytest.fixture
def calls():
    """The elements that the models of a test were called for."""
    CALLS.clear()
    return CALLS["calls"]


class Counting(ModelHandler):
    """Return ``[text of the element]``, and record the elements."""

    def load_model(self):
        return object()

    def run_inference(self, batch, model, inference_args=None):
        CALLS["calls"] += batch
        if "bad" in map(repr, batch) or "'bad'" in map(repr, batch):
            raise ValueError("a bad element")
        suffix = (inference_args or {}).get("suffix", "")
        return [PredictionResult(x, [f"{x!r}{suffix}"], "counting") for x in batch]


class Service(RemoteModelHandler):
    """A service that answers in capital letters, and records the elements."""

    def __init__(self, prefix="", **options):
        super().__init__(num_retries=0, **{"max_request_size": 1, **options})
        self.prefix = prefix

    def create_client(self):
        return object()

    def request(self, batch, model, inference_args=None):
        CALLS["calls"] += batch
        if "bad" in batch:
            raise ValueError("a bad element")
        return [PredictionResult(x, f"{self.prefix}{x.upper()}") for x in batch]


def counting(folder, **options):
    handler = Counting(min_batch_size=100, max_batch_size=100)
    return handler.with_cache(folder, version="1", **options)


def inferences(results):
    return [result.inference for result in results]


def run_with_dead_letters(elements, transform, **options):
    """Return the results and dead letters of a pipeline, and the values of its counters."""
    results, failed = [], []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        created = pipeline | beam.Create(elements, reshuffle=False)
        found, dlq = created | transform.with_exception_handling(**options)
        _ = found | "results" >> beam.ParDo(CollectElements(results))
        _ = dlq.failed_inferences | "failed" >> beam.ParDo(CollectElements(failed))
    taken = CollectElements.take(results), CollectElements.take(failed)
    return *taken, get_counters(pipeline.result)


def get_counters(result):
    counters = result.metrics().query()["counters"]
    return {c.key.metric.name: c.committed for c in counters}


def test_equal_elements_of_a_batch_call_the_model_once(tmp_path, calls):
    examples = [" b".strip(), "a", "b", "c"]
    results = counting(tmp_path).predict(examples)
    assert sorted(calls) == ["a", "b", "c"]
    assert inferences(results) == [["'b'"], ["'a'"], ["'b'"], ["'c'"]]
    assert all(result.example is x for result, x in zip(results, examples, strict=True))
    results[0].inference.append("changed")
    assert results[2].inference == ["'b'"]


def test_later_calls_get_their_own_copies_from_the_store(tmp_path, calls):
    [first] = counting(tmp_path).predict(["a"])
    first.inference.append("changed")
    for _ in range(2):
        [result] = counting(tmp_path).predict(["a"])
        assert result == PredictionResult("a", ["'a'"], "counting")
        result.inference.append("changed")
    assert calls == ["a"]


@dataclass(frozen=True)
class Point:
    x: int
    y: int


class Pair(NamedTuple):
    x: int
    y: int


AMBIGUOUS = [
    1,
    1.0,
    True,
    0,
    0.0,
    -0.0,
    False,
    "1",
    b"1",
    None,
    float("inf"),
    np.float32(1),
    np.float64(1),
    np.int64(1),
    np.array(1),
    np.array([1]),
    np.array([[1]]),
    np.array([1.0]),
    np.array([1], dtype=object),
    np.array([b"1"]),
    torch.tensor([1]),
    torch.tensor([[1]]),
    torch.tensor([1.0]),
    torch.tensor([1.0], dtype=torch.bfloat16),
    [1],
    (1,),
    {1},
    frozenset({1}),
    {"a": 1, "b": 2},
    {"b": 2, "a": 1},
    {"a": [1, 2]},
    {"a": [[1], 2]},
    Point(1, 2),
    Pair(1, 2),
    (1, 2),
    pd.DataFrame({"x": [1]}),
    pd.DataFrame({"x": [1.0]}),
    pd.DataFrame({"y": [1]}),
    pd.Series([1]),
    beam.Row(x=1),
]
EQUAL = {
    "NaN": lambda: float("nan"),
    "array": lambda: np.array([[0.5, np.nan]]),
    "order of memory": lambda: np.asarray([[1, 2], [3, 4]], order=next(ORDERS)),
    "view": lambda: np.arange(10)[::2],
    "view of a tensor": lambda: torch.cat([torch.zeros(next(SIZES)), torch.ones(2)])[-2:],
    "set": lambda: {"a", "b", "c"},
    "dataclass": lambda: Point(1, 2),
    "row of a DataFrame": lambda: pd.DataFrame({"x": range(next(SIZES))}).iloc[[0]],
    "nested": lambda: [{"role": "user", "content": "".join(["a", "b"])}, "ab"],
}
ORDERS = iter("CFCFCF")
SIZES = iter(range(2, 20))


def test_elements_that_differ_in_type_or_form_have_their_own_results(tmp_path, calls):
    handler = counting(tmp_path)
    for _ in range(2):
        found = inferences(handler.predict(AMBIGUOUS))
        assert found == [[repr(x)] for x in AMBIGUOUS]
    assert len(calls) == len(AMBIGUOUS)


@pytest.mark.parametrize("make", EQUAL.values(), ids=EQUAL)
def test_equal_elements_share_a_result(make, tmp_path, calls):
    handler = counting(tmp_path)
    handler.predict([make(), make()])
    handler.predict([make()])
    assert len(calls) == 1


def test_elements_that_cannot_be_pickled_are_not_cached(tmp_path, calls, caplog):
    caplog.set_level("WARNING")
    lock, cycle = threading.Lock(), []
    cycle.append(cycle)
    handler = counting(tmp_path)
    for _ in range(2):
        results = handler.predict([lock, "a", lock, cycle])
        assert [result.example for result in results][:3] == [lock, "a", lock]
    assert calls.count("a") == 1
    assert sum(x is lock for x in calls) == 4
    warnings = [record.message for record in caplog.records if "aren't cached" in record.message]
    assert len(warnings) == 2
    assert "_thread.lock" in warnings[0]


class Answer:
    def __init__(self, text):
        self.text = text


class Answering(ModelHandler):
    def load_model(self):
        return None

    def run_inference(self, batch, model, inference_args=None):
        CALLS["calls"] += batch
        return [PredictionResult(x, Answer(x)) for x in batch]


def test_results_of_other_types_need_trusted_types(tmp_path, calls, caplog):
    caplog.set_level("WARNING")
    handler = Answering(min_batch_size=2, max_batch_size=2)
    for _ in range(2):
        first, second = handler.with_cache(tmp_path, version="1").predict(["a", "a"])
        assert first.inference is not second.inference
        assert second.inference.text == "a"
    assert calls == ["a", "a"]
    assert "test_cached_handler.Answer is not a trusted type" in caplog.text
    for _ in range(2):
        trusting = handler.with_cache(tmp_path, version="1", trusted_types=[Answer])
        [result] = trusting.predict(["a"])
        assert result.inference.text == "a"
    assert len(calls) == 3


def test_results_can_be_arrays_and_tensors(tmp_path, calls):
    class Mixed(Counting):
        def run_inference(self, batch, model, inference_args=None):
            CALLS["calls"] += batch
            row = np.arange(4.0).reshape(2, 2)
            return [
                {"array": row, "row": np.float32(1.5), "tensor": torch.ones(9)[:2], "set": {1, 2}}
                for x in batch
            ]

    handler = Mixed().with_cache(tmp_path, version="1")
    [first], [second] = handler.predict(["a"]), handler.predict(["a"])
    assert calls == ["a"]
    np.testing.assert_array_equal(first["array"], second["array"])
    assert torch.equal(first["tensor"], second["tensor"])
    assert (second["row"].dtype, second["set"]) == (np.float32, {1, 2})
    second["array"][0] = 7  # a copy that can be modified
    second["tensor"][0] = 7


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: counting(folder).predict(["a"], {"suffix": "!"}),
        lambda folder: Counting().with_cache(folder, version="2").predict(["a"]),
        lambda folder: Counting(env_vars={"A": "1"}).with_cache(folder, version="1").predict(["a"]),
        lambda folder: (
            type("Other", (Counting,), {})().with_cache(folder, version="1").predict(["a"])
        ),
    ],
    ids=["arguments", "version", "option", "class"],
)
def test_a_change_of_what_results_depend_on_calls_the_model_again(change, tmp_path, calls):
    counting(tmp_path).predict(["a"])
    change(tmp_path)
    assert calls == ["a", "a"]


def test_the_code_of_a_class_without_a_version_is_part_of_the_key(tmp_path, calls):
    def make(mark):
        class Local(Service):
            def request(self, batch, model, inference_args=None):
                return [f"{x}{mark}" for x in batch]

        return Local().with_cache(tmp_path)

    assert [make(mark).predict(["a"]) for mark in "!?!"] == [["a!"], ["a?"], ["a!"]]


def test_the_names_and_kinds_of_parameters_are_part_of_the_code():
    def make(source):
        scope = {}
        exec(f"def function({source}): return a - b", scope)
        return to_stable_bytes(scope["function"])

    sources = ["a, b", "b, a", "a, *, b", "a, /, b", "a, *b", "a, b=1"]
    assert len({make(source) for source in sources}) == len(sources)
    assert make("a, b") == make("\n\na,\nb")


def test_options_that_do_not_affect_results_have_no_effect(tmp_path, calls):
    Service().with_cache(tmp_path).predict(["a"])
    slow = Service(max_batch_size=3, max_concurrent_requests=2, max_request_size=2, namespace="x")
    assert inferences(slow.with_cache(tmp_path).predict(["a"], {})) == ["A"]
    assert calls == ["a"]
    Service("more ").with_cache(tmp_path).predict(["a"])
    assert calls == ["a", "a"]


def test_the_endpoint_and_the_parameters_are_part_of_the_key(tmp_path):
    def options(base_url="http://localhost:1/v1", model="m", **more):
        handler = OpenAIChatModelHandler(base_url, model, None, **more)
        return pickler.dumps(sorted(handler.get_result_options().items(), key=lambda item: item[0]))

    same = [
        options(),
        options(timeout=3, num_retries=1, max_concurrent_requests=3, max_response_bytes=1000),
    ]
    others = [
        options("http://localhost:2/v1"),
        options(model="n"),
        options(parameters={"temperature": 1}),
        options(headers={"X-Route": "b"}),
        options(output_type=int),
        options(output_type=Literal["a"]),
        options(output_type=int, output_mode="prompt"),
    ]
    assert len({*same}) == 1
    assert len({same[0], *others}) == 8
    keys = [OpenAIModelHandler("m", chat_completion_from_string, key) for key in ("k1", "k2")]
    assert keys[0].get_result_options() == keys[1].get_result_options()


def test_a_new_model_file_invalidates_only_its_own_results(tmp_path):
    one, two = (
        linear_regression(tmp_path / name, slope) for name, slope in (("1.pkl", 1), ("2.pkl", 2))
    )
    cache, rows = tmp_path / "cache", [np.array([3.0]), np.array([3.0])]

    def predict(path, loaded=()):
        handler = SklearnModelHandlerNumpy(path, inference_fn=predict_and_count)
        return [round(float(x)) for x in inferences(handler.with_cache(cache).predict(rows))]

    CALLS.clear()
    assert [predict(one), predict(two), predict(one)] == [[3, 3], [6, 6], [3, 3]]
    assert len(CALLS["calls"]) == 2
    linear_regression(tmp_path / "1.pkl", 5)
    assert [predict(one), predict(two)] == [[15, 15], [6, 6]]
    assert len(CALLS["calls"]) == 3
    refreshed = SklearnModelHandlerNumpy(one, inference_fn=predict_and_count).with_cache(cache)
    refreshed.predict(rows)
    refreshed.update_model_path(two)
    assert [round(float(x)) for x in inferences(refreshed.predict(rows))] == [6, 6]
    assert len(CALLS["calls"]) == 3


def predict_and_count(model, batch, inference_args=None):
    CALLS["calls"] += batch
    return model.predict(np.stack(batch))


def test_the_result_names_the_path_of_its_own_model(tmp_path):
    paths = [linear_regression(tmp_path / name) for name in ("1.pkl", "2.pkl")]
    for path in paths:
        [result] = SklearnModelHandlerNumpy(path).with_cache(tmp_path / "c").predict([np.ones(1)])
        assert result.model_id == path


def test_a_model_without_files_needs_a_version(tmp_path):
    with pytest.raises(OptionError, match="pass version"):
        Counting().with_cache(tmp_path)
    handler = SklearnModelHandlerNumpy(str(tmp_path / "missing")).with_cache(tmp_path / "cache")
    with pytest.raises(ModelLoadError, match="pass version to with_cache"):
        handler.predict([np.ones(1)])
    torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / "w.pth")
    linear = PytorchModelHandlerTensor(
        str(tmp_path / "w.pth"), torch.nn.Linear, {"in_features": 1, "out_features": 1}
    )
    assert linear.get_model_files() == [str(tmp_path / "w.pth")]


def test_errors_are_never_stored(tmp_path, calls):
    handler = counting(tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match="a bad element"):
            handler.predict(["bad"])
    assert calls == ["bad", "bad"]


def test_successful_requests_of_a_batch_that_fails_are_stored(tmp_path, calls):
    handler = Service(max_concurrent_requests=1, min_batch_size=3).with_cache(tmp_path)
    with pytest.raises(ValueError, match="a bad element"):
        handler.predict(["a", "bad", "b"])
    assert inferences(handler.predict(["a", "b"])) == ["A", "B"]
    assert [*map(calls.count, ("a", "b"))] == [1, 1]


@pytest.mark.parametrize("make", [counting, lambda folder: Service().with_cache(folder)])
def test_only_failing_elements_become_dead_letters(make, tmp_path, calls):
    examples = ["a", "bad", "b", "a", "bad", "c"]
    results, failed, counters = run_with_dead_letters(examples, RunInference(make(tmp_path)))
    assert sorted(result.example for result in results) == ["a", "a", "b", "c"]
    assert [element for element, _ in failed] == ["bad", "bad"]
    assert (counters["num_inferences"], counters["failed_elements"]) == (4, 2)
    assert [*map(calls.count, "bc")] == [1, 1] or make is counting


def test_hits_misses_and_saved_calls_are_metrics(tmp_path, calls):
    counting(tmp_path).predict(["a", "b"])
    with beam.Pipeline(runner=RUNNER) as pipeline:
        created = pipeline | beam.Create([*"aabccc"], reshuffle=False)
        _ = created | RunInference(counting(tmp_path))
    counters = get_counters(pipeline.result)
    found = {name: n for name, n in counters.items() if name.startswith("cache_")}
    assert found == {"cache_hits": 3, "cache_misses": 1, "cache_saved_calls": 5}


def test_keys_of_elements_are_not_part_of_the_cache_key(tmp_path, calls):
    inside = KeyedModelHandler(counting(tmp_path))
    assert [key for key, _ in inside.predict([("k", "a"), ("l", "a")])] == ["k", "l"]
    outside = KeyedModelHandler(Counting()).with_cache(tmp_path, version="1")
    [(key, result)] = outside.predict([("m", "a")])
    assert (key, result.inference) == ("m", ["'a'"])
    maybe = MaybeKeyedModelHandler(Counting()).with_cache(tmp_path, version="1")
    assert inferences(maybe.predict(["a"])) == [["'a'"]]
    service = KeyedModelHandler(Service()).with_cache(tmp_path)
    assert [key for key, _ in service.predict([("k", "s"), ("l", "s")])] == ["k", "l"]
    assert calls == ["a", "s"]


def test_per_key_models_have_their_own_results(tmp_path):
    paths = {str(n): linear_regression(tmp_path / f"{n}.pkl", n) for n in (1, 2)}
    mappings = [KeyModelMapping([k], SklearnModelHandlerNumpy(p)) for k, p in paths.items()]
    handler = KeyedModelHandler(mappings).with_cache(tmp_path / "cache")
    elements = [(key, np.array([3.0])) for key in ("1", "2", "1")]
    for _ in range(2):
        found = handler.predict(elements)
        assert [(k, round(float(r.inference))) for k, r in found] == [("1", 3), ("2", 6), ("1", 3)]


def test_rows_are_equal_if_their_features_are(tmp_path, calls):
    rows = [beam.Row(id=1, text="a"), beam.Row(id=2, text="a"), beam.Row(id=3, text="b")]
    for _ in range(2):
        results = run(rows, RunInference(Service().with_cache(tmp_path), columns=["text"]))
        assert sorted((row.id, row.text, row.prediction) for row in results) == [
            (1, "a", "A"),
            (2, "a", "A"),
            (3, "b", "B"),
        ]
    keyed = KeyedModelHandler(Service().with_cache(tmp_path))
    [(key, row)] = keyed.predict([("k", {"id": 9, "text": "a"})], columns="text")
    assert (key, row.id, row.prediction) == ("k", 9, "A")
    assert sorted(calls) == ["a", "b"]


def test_rows_are_cached_for_a_handler_that_takes_tables(tmp_path):
    frame = pd.DataFrame({"x": [0.0, 1.0, 2.0], "y": [1.0, 0.0, 1.0]})
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit(frame, [0, 0, 1])
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(model))
    handler = SklearnModelHandlerPandas(str(tmp_path / "m.pkl"))
    rows = frame.to_dict("records") * 2
    options = {"probabilities": "p_{}"}
    expected = handler.predict(rows, **options)
    for _ in range(2):
        assert handler.with_cache(tmp_path / "cache").predict(rows, **options) == expected
    [table] = handler.with_cache(tmp_path / "cache").predict([frame], **options)  # isn't cached
    assert list(table["p_1"]) == [row.p_1 for row in expected[:3]]


def test_functions_run_before_and_after_the_cache(tmp_path, calls):
    handler = counting(tmp_path).with_preprocess_fn(str.lower).with_postprocess_fn(str)
    first, second = handler.predict(["A", "a"])
    assert first == second
    assert calls == ["a"]
    before = Counting().with_preprocess_fn(str.lower).with_cache(tmp_path, version="1")
    assert inferences(before.predict(["A"])) == [["'a'"]]
    assert calls == ["a"]


def test_results_of_batches_as_elements_are_cached_one_by_one(tmp_path, calls):
    handler = counting(tmp_path).with_no_batching()
    results = handler.predict([["a", "b"], ["b", "c"]])
    assert inferences(results) == [["'a'"], ["'b'"], ["'b'"], ["'c'"]]
    assert sorted(calls) == ["a", "b", "c"]
    path = linear_regression(tmp_path / "model.pkl")
    regression = SklearnModelHandlerNumpy(path).with_cache(tmp_path).with_no_batching()
    found = regression.predict([np.array([[1.0], [2.0], [1.0]])])
    np.testing.assert_allclose(inferences(found), [2, 4, 2])
    [again] = regression.predict([np.array([[2.0]])])
    assert (again.example.tolist(), round(float(again.inference))) == ([2.0], 4)
    with pytest.raises(OptionError, match="leave with_no_batching or with_cache out"):
        handler.predict([{"x": np.ones(2)}])
    for unsplit in (
        lambda: handler.with_no_batching(whole_results=True),
        lambda: regression.inner.with_no_batching(whole_results=True).with_cache(tmp_path),
        lambda: KeyedModelHandler(handler).with_no_batching(whole_results=True),
    ):
        with pytest.raises(OptionError, match="whole_results"):
            unsplit()


def test_typed_answers_are_stored(tmp_path):
    class Review(BaseModel):
        stars: int

    with servers.llm() as url:
        handler = OpenAIChatModelHandler(url, "shout", None, output_type=Review)
        first = handler.with_cache(tmp_path).predict(["4 stars", "3 stars"])
    assert handler.with_cache(tmp_path).predict(["4 stars", "3 stars"]) == first
    assert inferences(first) == [Review(stars=4), Review(stars=3)]


def test_the_code_that_validates_a_typed_answer_is_part_of_the_key(tmp_path):
    def make(factor, limit=100):
        limited = Annotated[int, AfterValidator(lambda stars: min(stars, limit))]

        class Review(BaseModel):
            stars: limited

            @field_validator("stars")
            @classmethod
            def scale(cls, stars):
                return stars * factor

        return Review

    @dataclasses.dataclass
    class Review:
        stars: int

        def __post_init__(self):
            self.stars = -self.stars

    Review.__qualname__ = make(1).__qualname__
    with servers.llm() as url:
        for output_type, stars in (
            (make(1), 4),
            (make(20), 80),
            (make(20, limit=50), 80),
            (make(20, limit=2), 40),
            (Review, -4),
            (make(1), 4),
        ):
            handler = OpenAIChatModelHandler(url, "shout", None, output_type=output_type)
            [inference] = inferences(handler.with_cache(tmp_path).predict(["4 stars"]))
            assert (type(inference), inference.stars) == (output_type, stars)
        assert httpx.get(f"{url}/usage").json()["requests"] == 5


class Meeting(ModelHandler):
    """Wait in the first call for each element until a number of calls run at the same time."""

    barrier: Any = None

    def load_model(self):
        return None

    def run_inference(self, batch, model, inference_args=None):
        CALLS["calls"] += batch
        if "alone" not in batch:
            Meeting.barrier.wait(10)
        return [PredictionResult(x, x) for x in batch]


def in_threads(*functions):
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_batches_that_need_each_others_elements_do_not_deadlock(tmp_path, calls):
    Meeting.barrier = threading.Barrier(2)
    found = {}

    def predict(*elements):
        # The first element is claimed by this thread, and the second one by the other.
        handler = Meeting(max_batch_size=2, min_batch_size=2).with_cache(tmp_path, version="1")
        first = handler.predict(elements[:1])
        found[elements] = inferences(first + handler.predict(elements))

    in_threads(lambda: predict("a", "b"), lambda: predict("b", "a"))
    assert found == {("a", "b"): ["a", "a", "b"], ("b", "a"): ["b", "b", "a"]}
    assert sorted(calls) == ["a", "b"]


def test_two_workers_that_miss_the_same_element_call_the_model_once(tmp_path, calls):
    entered, release = threading.Event(), threading.Event()
    found = []

    class Slow(Counting):
        def run_inference(self, batch, model, inference_args=None):
            entered.set()
            release.wait(10)
            return super().run_inference(batch, model)

    def predict_first():
        found.extend(Slow().with_cache(tmp_path, version="1").predict(["a"]))

    def predict_second():
        entered.wait(10)
        threading.Timer(0.05, release.set).start()
        found.extend(Slow().with_cache(tmp_path, version="1").predict(["a"]))

    in_threads(predict_first, predict_second)
    assert inferences(found) == [["'a'"], ["'a'"]]
    assert calls == ["a"]


class Equal:
    """Elements of which 0 and 1 are equal, and 0 waits until the model is called for 1."""

    called = threading.Event()

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        # Beam estimates the size of elements in other threads.
        if not self.number and threading.current_thread().name == "runinference-call":
            assert self.called.wait(20)
        return str, ("equal" if self.number < 2 else "other",)


class InTurns(Counting):
    """The model computes one batch after the other, while other batches are prepared."""

    def call_overlap(self):
        return CallOverlap(max_calls=2, uses_turn=True)

    def run_inference(self, batch, model, inference_args=None):
        if batch[0].number == 1:
            Equal.called.set()
        with compute_turn():
            CALLS["calls"] += batch
            return [f"result of {x.number}" for x in batch]


def test_calls_that_overlap_do_not_deadlock(tmp_path, calls):
    Equal.called.clear()
    handler = InTurns(min_batch_size=1, max_batch_size=1).with_cache(tmp_path, version="1")
    with overlapping():
        results = run([2, 0, 1], RunInference(handler.with_preprocess_fn(Equal)))
    assert results == ["result of 2", "result of 1", "result of 1"]
    assert len(calls) == 2


def test_elements_do_not_wait_for_a_call_that_timed_out(tmp_path, calls):
    stuck, release = threading.Event(), threading.Event()

    class Stuck(Counting):
        def run_inference(self, batch, model, inference_args=None):
            if not stuck.is_set():
                stuck.set()
                release.wait(20)
            return super().run_inference(batch, model)

    handler = Stuck(min_batch_size=2, max_batch_size=2).with_cache(tmp_path, version="1")
    transform = RunInference(handler)
    results, failed, _ = run_with_dead_letters(["a", "b"], transform, timeout=0.4)
    release.set()
    assert (sorted(result.example for result in results), failed) == (["a", "b"], [])


def test_a_cache_works_with_a_model_in_a_subprocess(tmp_path):
    path = linear_regression(tmp_path / "model.pkl")
    handler = SklearnModelHandlerNumpy(path).with_cache(tmp_path / "cache")
    first = handler.predict([np.ones(1)])
    transform = RunInference(handler)
    results, _, _ = run_with_dead_letters([np.ones(1)] * 3, transform, use_subprocess=True)
    assert inferences(results) == inferences(first) * 3


def test_a_cache_works_with_a_model_that_processes_share(tmp_path, calls):
    handler = Counting(large_model=True).with_cache(tmp_path, version="1")
    results = run(["a", "b", "a"], RunInference(handler))
    assert sorted(inferences(results)) == [["'a'"], ["'a'"], ["'b'"]]
    assert inferences(counting(tmp_path).predict(["a"])) == [["'a'"]]


def test_a_step_with_a_cache_does_not_share_its_model_with_one_without(tmp_path, calls):
    transforms = [
        RunInference(handler, model_identifier="one")
        for handler in (Counting(), counting(tmp_path))
    ]

    def expand(examples):
        results = [examples | str(n) >> transform for n, transform in enumerate(transforms)]
        return results | beam.Flatten()

    assert inferences(run(["a"], beam.ptransform_fn(expand)())) == [["'a'"], ["'a'"]]


def test_passes_the_conformance_checks(tmp_path):
    path = linear_regression(tmp_path / "model.pkl")
    other = linear_regression(tmp_path / "other.pkl", 3)
    handler = SklearnModelHandlerNumpy(path).with_cache(tmp_path / "cache")
    report = check_handler(
        handler, [np.array([x]) for x in (1.0, 2.0, 3.0)], bad_example="x", updated_path=other
    )
    assert not report.skipped


def test_an_element_that_the_handler_rejects_fails_as_without_a_cache(tmp_path):
    with pytest.raises(ElementError, match="must be a string"):
        OpenAIChatModelHandler("http://localhost:1", "m", None).with_cache(tmp_path).predict([7])


@pytest.mark.parametrize(
    ("location", "options", "message"),
    [
        (7, {}, "location must be a folder"),
        ("", {}, "location must be a folder"),
        ("gs://bucket/cache", {}, "the scheme 'gs'"),
        ("redis://:secret@host", {}, "password_env"),
        ("redis://host?password=secret", {}, "password_env"),
        ("redis://host:port", {}, "valid URL"),
        ("redis://", {}, "no host"),
        ("redis://host", {"max_bytes": 1000}, "maxmemory"),
        ("redis://host", {"password_env": "my password"}, "the name of an environment variable"),
        ("folder", {"password_env": "PASSWORD"}, "no effect on a folder"),
        ("folder", {"max_bytes": 0}, "max_bytes must be at least 1"),
        ("folder", {"max_age_secs": -1}, "max_age_secs must be greater than 0"),
        ("folder", {"claim_secs": 0}, "claim_secs must be greater than 0"),
        ("folder", {"version": ""}, "version must be a non-empty string"),
        ("folder", {"version": 2}, "version must be a non-empty string"),
        ("folder", {"trusted_types": ["Answer"]}, "trusted_types must be a list of classes"),
        ("folder", {"trusted_types": Answer}, "trusted_types must be a list of classes"),
    ],
)
def test_invalid_options_raise_an_error_without_secrets(location, options, message):
    with pytest.raises(OptionError, match=message) as error:
        Service().with_cache(location, **options)
    assert "secret" not in str(error.value)


def test_a_second_cache_raises_an_error(tmp_path):
    with pytest.raises(OptionError, match="has a cache already"):
        counting(tmp_path).with_cache(tmp_path, version="1")


def test_options_that_cannot_be_pickled_raise_an_error(tmp_path):
    class WithLock(Counting):
        lock = threading.Lock()

    handler = Counting()
    handler.lock = threading.Lock()
    with pytest.raises(OptionError, match="override get_result_options"):
        handler.with_cache(tmp_path, version="1")
    assert WithLock().with_cache(tmp_path, version="1").predict(["a"])


def test_a_handler_is_pickled_without_its_model_and_store(tmp_path, calls):
    handler = counting(Path(tmp_path))
    handler.predict(["a"])
    copied = pickler.loads(pickler.dumps(handler))
    assert inferences(copied.predict(["a"])) == [["'a'"]]
    assert calls == ["a"]
