"""``tune`` measures options, recommends the smallest good ones, and names what it can't measure."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
import torch
from apache_beam.ml.inference.sklearn_inference import SklearnModelHandlerNumpy as BeamHandler
from transformers import AutoModelForSequenceClassification

from common import Doubler
from runinference import KeyedModelHandler, KeyModelMapping, MaybeKeyedModelHandler, samples
from runinference.errors import OptionError, TuningError
from runinference.handlers.tunable import Tunable
from runinference.http_inference import HTTPModelHandler, KServeV2
from runinference.huggingface_inference import HuggingFaceModelHandlerText
from runinference.pytorch_inference import PytorchModelHandlerTensor
from runinference.samples import servers
from runinference.sklearn_inference import SklearnModelHandlerNumpy
from runinference.tuning import tune
from tuning.simulated import Clock, SimulatedEndpoint, SimulatedModel, fixed_cost


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def values(result, option="max_batch_size"):
    return [row.value for row in result.measurements if row.option == option]


# Batch sizes


def test_sizes_grow_while_they_are_faster_and_the_smallest_within_5_percent_is_recommended(clock):
    result = tune(SimulatedModel(clock, fixed_cost), range(100))
    assert values(result) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert result.line == "min_batch_size=256, max_batch_size=256"
    [recommended] = [row for row in result.measurements if row.is_recommended]
    assert (recommended.value, recommended.batch_size) == (256, 256)
    assert recommended.elements_per_second == pytest.approx(256 / 0.266)
    assert recommended.milliseconds_per_call == pytest.approx(266)
    assert not result.notes


def test_a_model_that_gains_nothing_from_batches_gets_single_elements(clock):
    result = tune(SimulatedModel(clock, lambda batch: 0.01 * len(batch)), range(100))
    assert (values(result), result.line) == ([1, 2, 4], "max_batch_size=1")


def test_a_slow_pass_does_not_change_the_recommendation(clock):
    handler = SimulatedModel(clock, fixed_cost)
    n_calls = 0

    def sometimes_slow(batch):
        nonlocal n_calls
        n_calls += 1
        return fixed_cost(batch) * (50 if n_calls % 97 == 0 and len(batch) > 100 else 1)

    handler.seconds = sometimes_slow
    assert tune(handler, range(100)).options == {"min_batch_size": 256, "max_batch_size": 256}


def test_the_options_of_the_batch_size_are_ignored_and_other_limits_apply(clock):
    handler = SimulatedModel(clock, fixed_cost, min_batch_size=4, max_batch_size=5)
    assert max(values(tune(handler, range(100)))) == 1024
    handler = SimulatedModel(clock, fixed_cost, max_batch_weight=5, element_size_fn=lambda x: 1)
    result = tune(handler, range(100))
    assert values(result) == [1, 2, 4]
    [note] = result.notes
    assert note.startswith("max_batch_size=8 wasn't measured. Batches stay smaller, because of")


def test_batches_larger_than_the_default_limit_of_bytes_need_another_limit(clock):
    elements = [np.zeros(1 << 20, np.uint8)] * 3
    result = tune(SimulatedModel(clock, lambda batch: 1), elements, time_limit=1_000)
    assert result.options["max_batch_size"] >= 128
    assert result.options["max_batch_bytes"] == result.options["max_batch_size"] << 20
    handler = SimulatedModel(clock, lambda batch: 1, max_batch_bytes=3 << 20)
    assert "max_batch_bytes" not in tune(handler, elements).options


def test_elements_of_a_length_bucket_share_batches(clock):
    elements = ["a" * n for n in (5, 20, 40, 6, 21, 41)]
    handler = SimulatedModel(
        clock, fixed_cost, batch_length_fn=len, batch_bucket_boundaries=[16, 32]
    )
    tune(handler, elements)
    assert all(len({len(x) // 16 for x in batch}) == 1 for batch in handler.batches)
    assert max(map(len, handler.batches)) >= 256


def test_running_out_of_memory_ends_the_search(clock):
    def limited(batch):
        if len(batch) > 16:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return fixed_cost(batch)

    result = tune(SimulatedModel(clock, limited), range(100))
    assert values(result) == [1, 2, 4, 8, 16]
    assert result.options["max_batch_size"] == 16
    assert result.notes == ("Memory ran out with max_batch_size=32.",)


def test_a_batch_that_fails_as_a_whole_ends_the_search(clock):
    def limited(batch):
        if len(batch) > 2:
            raise ValueError("too many rows")
        return fixed_cost(batch)

    result = tune(SimulatedModel(clock, limited), range(100))
    assert values(result) == [1, 2]
    assert result.notes == (
        "max_batch_size=4 fails, although each element succeeds alone: ValueError: too many rows",
    )


def test_the_time_limit_ends_the_search_and_the_rounds(clock):
    result = tune(SimulatedModel(clock, lambda batch: 10), range(100), time_limit=1)
    assert (values(result), result.line) == ([1], "max_batch_size=1")
    assert result.notes == (
        "The time limit ended the search before max_batch_size=2.",
        "The time limit allowed 0 of 5 rounds.",
    )
    started = clock.now
    handler = SimulatedModel(clock, lambda batch: 0.1 + 0.01 * len(batch))
    assert len(values(tune(handler, range(1_000), time_limit=30))) > 3
    assert clock.now - started < 60


def test_a_slow_model_is_measured_on_fewer_elements(clock):
    handler = SimulatedModel(clock, lambda batch: 0.1 * len(batch))
    tune(handler, range(1_000))
    assert {each for batch in handler.batches for each in batch} == set(range(8))


def test_only_the_first_elements_of_an_iterator_are_read(clock):
    elements = iter(range(10_000))
    tune(SimulatedModel(clock, fixed_cost), elements)
    assert next(elements) == 1_024


# Padded sizes


def test_lengths_that_vary_favor_a_maximum_padded_size(clock):
    rng = np.random.default_rng(0)
    texts = ["a" * n for n in rng.lognormal(3.6, 0.9, size=200).astype(int) + 1]
    handler = SimulatedModel(
        clock,
        lambda batch: 0.01 + 0.0001 * len(batch) * max(map(len, batch)),
        batch_length_fn=len,
        max_padded_size=10,
    )
    result = tune(handler, texts)
    longest = max(map(len, texts))
    assert [*result.options] == ["max_padded_size"]
    assert (
        values(result, "max_padded_size")[0] >= longest > values(result, "max_padded_size")[0] / 2
    )
    limit = max(values(result, "max_padded_size"))
    padded = [len(batch) * max(map(len, batch)) for batch in handler.batches[-1_000:]]
    assert max(padded) <= max(limit, 1024 * longest)


def test_equal_lengths_need_no_maximum_padded_size(clock):
    handler = SimulatedModel(clock, fixed_cost, batch_length_fn=len)
    assert not values(tune(handler, ["one", "two"]), "max_padded_size")


def test_text_models_are_measured_with_their_tokens_and_the_line_can_be_pasted():
    path = samples.review_classifier()
    handler = HuggingFaceModelHandlerText(path, AutoModelForSequenceClassification)
    texts, _ = samples.held_out_reviews()
    result = tune(handler, [*texts[:20], texts[20] * 3], time_limit=1, rounds=1)
    assert values(result)[0] == 1
    assert values(result, "max_padded_size")
    pasted = eval(
        f"HuggingFaceModelHandlerText(path, AutoModelForSequenceClassification, {result.line})"
    )
    assert len(pasted.predict(texts[:3])) == 3


class SimulatedTextModel(Tunable, SimulatedModel):
    """A handler that divides batches into micro-batches of one text, each of which costs a call."""

    is_divided = False

    def default_length_fn(self):
        return len

    def uses_micro_batches(self):
        return self.is_divided

    def with_micro_batches(self, used):
        return self._replace(is_divided=used)

    def run_inference(self, batch, model, inference_args=None):
        if not self.is_divided:
            return super().run_inference(batch, model, inference_args)
        call = super().run_inference
        return [result for text in batch for result in call([text], model)]


@pytest.mark.parametrize(
    ("seconds_per_call", "recommended"), [(0.0, "max_batch_size"), (0.1, "max_padded_size")]
)
def test_micro_batches_are_compared_with_a_maximum_padded_size(
    clock, seconds_per_call, recommended
):
    texts = ["a" * (1 + (7 * n) % 40) for n in range(200)]
    handler = SimulatedTextModel(
        clock, lambda batch: seconds_per_call + 0.0001 * len(batch) * max(map(len, batch))
    )
    result = tune(handler, texts, time_limit=10_000)
    assert values(result)[:3] == [1, 128, 256]
    assert values(result, "max_padded_size")
    assert recommended in result.options
    assert ("max_padded_size" in result.options) == (recommended == "max_padded_size")


@pytest.mark.parametrize("options", [{}, {"max_padded_size": 64}])
def test_text_models_are_called_as_with_the_recommended_options(options):
    path = samples.review_classifier()
    handler = HuggingFaceModelHandlerText(path, AutoModelForSequenceClassification, **options)
    texts, _ = samples.held_out_reviews()
    texts = [*texts[:30], " ".join(texts[:20])]
    model = handler.load_model()
    shapes = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    one = handler.with_micro_batches(False)
    many = handler.with_micro_batches(True)
    for measured, divides in ((one, False), (many, True)):
        shapes.clear()
        assert len([*measured.run_inference(texts, model)]) == len(texts)
        assert (len(shapes) > 1) == divides == measured.uses_micro_batches()
    generating = HuggingFaceModelHandlerText(
        path, AutoModelForSequenceClassification, method="generate"
    )
    assert not generating.with_micro_batches(True).uses_micro_batches()


# Other options and handlers


def test_remote_handlers_are_measured_with_request_sizes_and_concurrent_requests(clock):
    handler = SimulatedEndpoint(clock, fixed_cost, max_concurrent_requests=2, num_retries=0)
    result = tune(handler, range(100))
    assert values(result, "max_request_size")[:3] == [1, 2, 4]
    assert values(result, "max_concurrent_requests") == [1, 2, 4]
    assert not values(result)
    assert result.line == "max_request_size=256, max_concurrent_requests=1"
    assert (handler.max_request_size, handler.max_concurrent_requests) == (None, 2)
    chat = SimulatedEndpoint(clock, fixed_cost, max_request_size=1, num_retries=0)
    assert tune(chat, range(100), options=[]).line == ""


def test_a_model_server_is_measured_and_the_line_can_be_pasted():
    images, _ = samples.held_out_digits()
    with servers.digits() as url:
        # Without retries, each request needs a connection.
        options = {"max_concurrent_requests": 1, "num_retries": 0}
        handler = HTTPModelHandler(url, KServeV2("digits"), **options)
        result = tune(handler, images, time_limit=2, rounds=1)
        assert (
            values(result, "max_request_size")[0]
            == values(result, "max_concurrent_requests")[0]
            == 1
        )
        pasted = eval(f"HTTPModelHandler(url, KServeV2('digits'), {result.line})")
        assert len(pasted.predict(images[:3])) == 3


def test_a_remote_model_that_is_unavailable_is_not_blamed_on_an_element():
    handler = HTTPModelHandler("http://localhost:1", KServeV2("digits"), num_retries=0)
    with pytest.raises(TuningError, match="^The model can't be called: EndpointUnreachableError"):
        tune(handler, [np.zeros(64)])


def test_a_choice_is_measured_by_name_and_kept_only_if_it_is_faster(tmp_path):
    torch.save(torch.nn.Linear(4, 2).state_dict(), tmp_path / "linear.pt")
    handler = PytorchModelHandlerTensor(
        str(tmp_path / "linear.pt"), torch.nn.Linear, {"in_features": 4, "out_features": 2}
    )
    rows = torch.rand(8, 4)
    assert not values(tune(handler, rows, time_limit=0.1, rounds=1), "autocast")
    result = tune(handler, rows, options=["autocast"], time_limit=0.5, rounds=3)
    assert values(result, "autocast") == [None, "bfloat16"]
    fast = {row.value: row.elements_per_second for row in result.measurements[-2:]}
    is_faster = fast["bfloat16"] > 1.05 * fast[None]
    assert result.options.get("autocast") == ("bfloat16" if is_faster else None)


def test_scikit_learn_and_beams_own_handlers_are_measured():
    images, _ = samples.held_out_digits()
    for handler_class in (SklearnModelHandlerNumpy, BeamHandler):
        handler = handler_class(model_uri=samples.digits_classifier())
        result = tune(handler, images[:64], rounds=1)
        assert len(values(result)) > 3
        assert "max_batch_size" in result.options


def test_keys_are_removed_and_preprocessing_is_not_measured(clock):
    handler = SimulatedModel(clock, fixed_cost)
    keyed = KeyedModelHandler(handler).with_preprocess_fn(lambda number: ("key", number))
    for wrapped, elements in (
        (keyed, range(9)),
        (MaybeKeyedModelHandler(handler), range(9)),
        (MaybeKeyedModelHandler(handler), list(enumerate(range(9)))),
    ):
        handler.batches.clear()
        assert tune(wrapped, elements).options["max_batch_size"] == 256
        assert {each for batch in handler.batches for each in batch} == set(range(9))


def test_a_model_that_modifies_its_examples_gets_copies(clock):
    def pop(batch):
        return sum(0.01 * example.pop() for example in batch)

    class Popping(SimulatedModel):
        def may_modify_examples(self):
            return True

    elements = [[1], [1]]
    tune(Popping(clock, pop), elements)
    assert elements == [[1], [1]]


def test_progress_names_each_step(clock):
    lines = []
    handler = SimulatedModel(clock, lambda batch: 0.01 * len(batch))
    tune(handler, range(3), rounds=2, progress=lines.append)
    assert lines[:3] == [
        "loading the model",
        "max_batch_size=1",
        "max_batch_size=1: 100 elements/s",
    ]
    assert lines[-2:] == ["round 1 of 2", "round 2 of 2"]


# Errors


def test_an_element_that_fails_is_named_with_its_error(clock):
    def check(batch):
        if 13 in batch:
            raise ZeroDivisionError("unlucky")
        return fixed_cost(batch)

    with pytest.raises(TuningError) as raised:
        tune(SimulatedModel(clock, check), [*range(10, 20)])
    assert str(raised.value) == (
        "The handler fails on element 3 of the sample: ZeroDivisionError: unlucky\n"
        "The element is 13.\n"
        "To fix this, correct the handler, or remove the element from the sample. To see the traceback, call "
        "predict([element]) of the handler."
    )
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("options", "elements", "message"),
    [
        ({"batch_length_fn": len}, ["a", 5], "batch_length_fn .* element 1 .* TypeError"),
        ({}, [1, "x" * 5_000], r"handler fails on element 1 .*\nThe element is 'x+ … x+'\."),
    ],
)
def test_the_functions_and_the_representation_of_an_element_are_named(
    clock, options, elements, message
):
    def require_numbers(batch):
        return 0.01 if options else sum(x + 1 for x in batch)

    with pytest.raises(TuningError, match=message):
        tune(SimulatedModel(clock, require_numbers, **options), elements)


def test_a_failing_preprocessing_function_and_a_model_that_cannot_be_loaded_are_named():
    with pytest.raises(TuningError, match="preprocessing function fails on element 1 .*ValueError"):
        tune(Doubler().with_preprocess_fn(float), ["1", "one"])
    with pytest.raises(TuningError, match="The model can't be loaded: ModelNotFoundError"):
        tune(SklearnModelHandlerNumpy(model_uri="missing.pickle"), [[1]])
    with pytest.raises(TuningError, match="fails on element 0 .*MissingKeyError"):
        tune(KeyedModelHandler(Doubler()), [1])


@pytest.mark.parametrize(
    ("handler", "elements", "arguments", "message"),
    [
        ("a text", [1], {}, "takes a model handler"),
        (Doubler, [1], {}, "got the class Doubler. To fix this, pass an instance"),
        (Doubler(), [], {}, "elements is empty. To fix this"),
        (Doubler(), 5, {}, "elements must be a list of elements, but is of type int. To fix this"),
        (Doubler(), {"a": 1}, {}, "elements must be a list of elements, but is of type dict"),
        (
            Doubler(),
            pa.table({"a": [1]}),
            {},
            "elements must be a list of elements, but is of type Table",
        ),
        (Doubler(), [1], {"time_limit": 0}, "time_limit must be greater than 0 seconds"),
        (Doubler(), [1], {"rounds": 0}, "rounds must be at least 1"),
        (Doubler(), [1], {"inference_args": 5}, "inference_args must be a dictionary"),
        (Doubler(), [1], {"progress": 5}, "progress must be a function"),
        (Doubler(), [1], {"options": ["autocast"]}, "no option 'autocast' .* are: none"),
        (Doubler().with_no_batching(), [[1]], {}, "already batches. To fix this"),
        (KeyedModelHandler([KeyModelMapping(["a"], Doubler())]), [1], {}, "each KeyModelMapping"),
    ],
)
def test_invalid_arguments_are_option_errors(handler, elements, arguments, message):
    with pytest.raises(OptionError, match=message):
        tune(handler, elements, **arguments)
