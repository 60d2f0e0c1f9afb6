"""Limits on the tokens and the cost of language models, estimates, and the order of requests."""

from __future__ import annotations

import logging
import pickle
import threading
from itertools import pairwise
from typing import Literal

import apache_beam as beam
import httpx
import pytest
from apache_beam.metrics import MetricsFilter

from common import RUNNER, CollectElements, run
from runinference import Backoff, KeyedModelHandler, KeyModelMapping, RunInference
from runinference.errors import InvalidOutputError, NotCalledError, OptionError
from runinference.openai_inference import (
    OpenAIChatModelHandler,
    OpenAICompletionsModelHandler,
    OpenAIEmbeddingsModelHandler,
    OpenAIModelHandler,
    Prices,
    chat_completion_from_string,
    estimate,
)
from runinference.samples import servers
from scripted_server import DropConnection, Reply, scripted_server

NO_DELAY = {"backoff": Backoff(initial_secs=0), "throttle_delay_secs": 0}


def chat(url, **options):
    return OpenAIChatModelHandler(url, "shout", None, **{**NO_DELAY, **options})


def never(error):
    return False


def answer(usage=(5, 5), text="ok", cached=0, **fields):
    """Return the response of a chat server that used numbers of input and output tokens."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"content": text}}
    tokens = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    tokens["prompt_tokens_details"] = {"cached_tokens": cached}
    return {"choices": [choice], "usage": tokens, **fields}


def letters(handler, elements, **handling):
    """Return the results, the dead letters, and the counters of a pipeline."""
    good, bad = [], []
    pipeline = beam.Pipeline(runner=RUNNER)
    results, dead_letters = (
        pipeline
        | beam.Create(elements, reshuffle=False)
        | RunInference(handler).with_exception_handling(**handling)
    )
    results | "good" >> beam.ParDo(CollectElements(good))
    dead_letters.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
    result = pipeline.run()
    result.wait_until_finish()
    found = result.metrics().query(MetricsFilter().with_namespace("BeamML_OpenAI"))["counters"]
    counters = {each.key.metric.name: each.committed for each in found}
    return CollectElements.take(good), CollectElements.take(bad), counters


# --- limits on tokens and cost


def test_elements_beyond_the_limit_are_dead_letters_that_were_not_called():
    elements = [(f"key {n}", f"text {n}") for n in range(10, 60)]
    with servers.llm() as url:
        handler = KeyedModelHandler(chat(url, max_tokens_total=60))
        good, bad, counters = letters(handler, elements)
        assert httpx.get(f"{url}/usage").json() == {"requests": 15, "tokens": 60}
        assert {kind for _, (kind, _, _) in bad} == {NotCalledError}
        assert "it would exceed max_tokens_total=60: 60 is used in this process" in bad[0][1][1]
        # The dead letters can be run again.
        again, none, _ = letters(KeyedModelHandler(chat(url)), [element for element, _ in bad])
    assert not none
    done = [(key, result.example) for key, result in [*good, *again]]
    assert sorted(done) == sorted(elements)
    assert counters["not_called"] == len(bad) == 35
    assert counters["total_tokens"] == 60


def test_without_dead_letters_the_limit_stops_the_job_and_is_never_retried():
    with scripted_server(default=lambda body: answer()) as server:
        tried = []
        handler = chat(server.url, max_tokens_total=25, retry_filter=tried.append)
        with pytest.raises(NotCalledError, match="To fix this, raise the limit"):
            handler.predict(["a"] * 5)
        assert len(server.requests) == 2
        assert not tried
        with pytest.raises(NotCalledError):
            run(["a"], RunInference(handler))
        assert len(server.requests) == 2


def test_requests_in_flight_are_reserved_so_that_concurrent_ones_do_not_exceed_the_limit():
    barrier = threading.Barrier(3)
    is_first = iter([True])

    def respond(body):
        if not next(is_first, False):
            barrier.wait(30)  # all requests that the limit allows are in flight together
        return answer()

    with scripted_server(default=respond) as server:
        good, bad, _ = letters(chat(server.url, max_tokens_total=45), ["a"] * 30)
        assert (len(good), len(bad), len(server.requests)) == (4, 26, 4)


def test_a_request_waits_for_those_in_flight_that_may_use_less_than_estimated():
    usages = iter([(5, 5), (1, 1), (1, 1), (1, 1)])
    with scripted_server(default=lambda body: answer(next(usages))) as server:
        good, _, _ = letters(chat(server.url, max_tokens_total=21), ["a"] * 4)
        assert len(good) == 4


def test_smaller_requests_are_sent_if_a_large_one_does_not_fit():
    with servers.llm() as url:
        handler = chat(url, max_tokens_total=50, max_concurrent_requests=1)
        handler.predict(["one two"])
        good, [(element, _)], _ = letters(handler, ["large " * 40, "one two", "three"])
    assert (sorted(each.example for each in good), element) == (["one two", "three"], "large " * 40)


@pytest.mark.parametrize(
    ("reply", "n_requests"),
    [
        (DropConnection(), 3),  # it may have been processed
        (Reply(200, "no json"), 3),
        (Reply(400, {"error": "bad"}), 4),
        (answer((10, 0), choices=[]), 3),  # not usable, but paid for
        (answer((10, 0), error={"message": "no", "code": "content_filter"}), 3),
        ({"error": {"message": "no", "code": "content_filter"}}, 4),
        (Reply(400, {"error": "bad", "usage": {"prompt_tokens": 10}}), 3),
    ],
    ids=[
        "dropped",
        "no json",
        "rejected",
        "unusable",
        "error and usage",
        "error",
        "status and usage",
    ],
)
def test_failed_requests_count_with_the_tokens_that_they_may_have_used(reply, n_requests):
    with scripted_server(answer(), reply, default=lambda body: answer()) as server:
        handler = chat(
            server.url, max_tokens_total=30, retry_filter=never, max_concurrent_requests=1
        )
        letters(handler, [f"text {n}" for n in range(8)])
        assert len(server.requests) == n_requests


def test_each_attempt_counts_toward_the_limit():
    script = [answer(), *[answer((10, 0), error="overloaded")] * 5]
    with scripted_server(*script, default=lambda body: answer()) as server:
        _, bad, _ = letters(chat(server.url, max_tokens_total=30), ["a", "b", "c"])
        assert len(server.requests) == 3
    assert len(bad) == 2


@pytest.mark.parametrize(
    "usage",
    [
        None,
        "many",
        {"prompt_tokens": -3},
        {"prompt_tokens": "7", "completion_tokens": True},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    ],
)
def test_without_valid_usage_the_length_of_texts_counts(usage, caplog):
    caplog.set_level("WARNING")
    text = "word " * 8  # 40 bytes are about 10 tokens
    with scripted_server(default=lambda body: {**answer(text=text), "usage": usage}) as server:
        with pytest.raises(NotCalledError):
            chat(server.url, max_tokens_total=50).predict([text] * 9)
        assert len(server.requests) == 2
    assert "The server doesn't report the tokens of requests" in caplog.text


def test_all_copies_of_a_handler_in_a_process_count_together():
    with scripted_server(default=lambda body: answer()) as server:
        handler = chat(server.url, max_tokens_total=25)
        handler.predict(["a"])
        pickle.loads(pickle.dumps(handler)).with_preprocess_fn(str).predict(["a"])
        with pytest.raises(NotCalledError):
            handler.with_postprocess_fn(str).predict(["a"])
        chat(server.url, max_tokens_total=25).predict(["a"])  # another handler
        per_key = KeyedModelHandler([KeyModelMapping(["k"], handler)])
        with pytest.raises(NotCalledError):
            per_key.predict([("k", "a")])


def test_in_a_subprocess_the_error_keeps_its_type():
    with servers.llm() as url:
        handler = chat(url, max_tokens_total=9)
        good, bad, _ = letters(handler, ["one two"] * 4, use_subprocess=True)
    assert (len(good), [kind for _, (kind, _, _) in bad]) == (2, [NotCalledError] * 2)


def test_max_cost_counts_cached_and_generated_tokens_at_their_prices():
    prices = Prices(input=1_000_000, output=10_000_000, cached_input=100_000)
    with scripted_server(default=lambda body: answer((4, 1), cached=3)) as server:
        handler = chat(server.url, prices=prices, max_cost=30)
        good, bad, counters = letters(handler, ["a"] * 9)
    assert (len(good), len(bad)) == (2, 7)
    assert "it would exceed max_cost=30: 22.6 is used in this process" in bad[0][1][1]
    assert counters["cost_micros"] == 22_600_000
    assert (counters["prompt_tokens"], counters["cached_tokens"]) == (8, 6)


def test_the_cost_metric_keeps_fractions_of_a_millionth():
    with scripted_server(default=lambda body: answer((1, 0))) as server:
        _, _, counters = letters(chat(server.url, prices=Prices(input=0.1)), ["a"] * 40)
    assert counters["cost_micros"] == 4


def test_a_limit_on_cost_is_reached_exactly_in_spite_of_rounding():
    prices = Prices(input=1e5)  # the sum of 3 requests for 0.1 is 0.30000000000000004
    with scripted_server(default=lambda body: answer((1, 0))) as server:
        for max_cost in (0.3, 0.8):  # the sum of 8 is 0.7999999999999999
            with pytest.raises(NotCalledError):
                chat(server.url, prices=prices, max_cost=max_cost).predict(["a"] * 12)
        assert len(server.requests) == 3 + 8


def test_limits_apply_to_embeddings_and_completions():
    with servers.llm() as url:
        embeddings = OpenAIEmbeddingsModelHandler(
            url, "words", None, max_tokens_total=20, max_request_size=4, **NO_DELAY
        )
        good, bad, counters = letters(embeddings, ["one two"] * 16)
        assert (len(good), len(bad), counters["not_called"]) == (8, 8, 8)
        completions = OpenAICompletionsModelHandler(
            url, "shout", None, max_tokens_total=20, **NO_DELAY
        )
        good, bad, _ = letters(completions, ["one two"] * 8)
        assert (len(good), len(bad)) == (5, 3)


def test_an_invalid_answer_at_the_limit_is_an_invalid_output_error():
    with scripted_server(default=lambda body: answer(text="perhaps")) as server:
        handler = chat(server.url, output_type=Literal["good", "bad"], max_tokens_total=12)
        with pytest.raises(InvalidOutputError, match="Another attempt isn't possible") as raised:
            handler.predict(["a"])
        assert len(server.requests) == 1
    assert "max_tokens_total=12" in str(raised.value)


def test_the_limit_is_logged_once(caplog):
    with servers.llm() as url, caplog.at_level(logging.WARNING):
        letters(chat(url, max_tokens_total=4), ["one two"] * 40)
    assert caplog.text.count("wasn't sent") == 1


def test_rates_apply_to_requests_and_tokens():
    with servers.llm() as url:
        handler = chat(url, max_requests_per_minute=600_000, max_tokens_per_minute=600_000)
        results = handler.predict([f"text {n}" for n in range(20)])
    assert [result.inference.text for result in results] == [f"TEXT {n}" for n in range(20)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_cost": 1}, "max_cost needs prices"),
        ({"max_cost": 0, "prices": Prices(1)}, "max_cost must be greater than 0"),
        ({"max_tokens_total": 0}, "max_tokens_total must be at least 1"),
        ({"max_tokens_total": 1.5}, "max_tokens_total must be an integer"),
        ({"max_requests_per_minute": -1}, "max_requests_per_minute must be at least 1"),
        ({"max_tokens_per_minute": "9"}, "max_tokens_per_minute must be an integer"),
        ({"prices": 0.5}, "prices must be Prices"),
        ({"max_token_total": 5}, "Did you mean 'max_tokens_total'"),
    ],
)
def test_invalid_limits_raise_when_the_handler_is_created(options, message):
    with pytest.raises((OptionError, TypeError), match=message):
        chat("http://localhost", **options)


@pytest.mark.parametrize("price", [-1, float("nan"), "2", True, None])
def test_invalid_prices_raise(price):
    with pytest.raises(OptionError, match="Prices: output must be"):
        Prices(input=1, output=price)


# --- estimates


def test_an_estimate_sends_a_sample_and_extrapolates_it(capsys):
    texts = [("key", "word " * n) for n in (1, 2, 3)]
    with servers.llm() as url:
        handler = chat(url, prices=Prices(input=1, output=3), max_tokens_total=1)
        found = estimate(KeyedModelHandler(handler), texts, 3_000)
        assert httpx.get(f"{url}/usage").json()["requests"] == 3
        more = estimate(handler, ["one two"] * 90, 1_000, max_examples=5, prices=Prices(2))
        assert httpx.get(f"{url}/usage").json()["requests"] == 8
    assert found.input_tokens.expected == found.output_tokens.expected == 6_000
    assert found.cost.expected == pytest.approx(0.024)
    assert (more.total_tokens.low, more.total_tokens.high) == (4_000, 4_000)
    assert more.cost.expected == pytest.approx(0.004)
    assert "3,000 elements, estimated from 3:\n  input tokens  6,000 (0 to 13,453)" in (
        capsys.readouterr().out
    )


def test_an_estimate_counts_failures_and_further_attempts():
    def respond(body):
        text = body["messages"][-1]["content"]
        return answer(choices=[]) if "bad" in text else answer(text="maybe")

    with scripted_server(default=respond) as server:
        handler = chat(server.url, output_type=Literal["yes"], max_output_attempts=3)
        handler_without = chat(server.url)
        found = estimate(handler_without, ["good", "bad"], 100)
        assert (found.n_failed, found.total_tokens.expected, found.cost) == (1, 1_000, None)
        with pytest.raises(InvalidOutputError):
            estimate(handler, ["all", "fail"], 100)


def test_an_estimate_of_one_element_has_no_range(capsys):
    with servers.llm() as url:
        estimate(OpenAIEmbeddingsModelHandler(url, "words", None), ["one two"], 500)
    assert capsys.readouterr().out.splitlines()[1] == "  input tokens  1,000"


def test_invalid_estimates_raise():
    with scripted_server(default=lambda body: {**answer(), "usage": None}) as server:
        handler = chat(server.url)
        for arguments, message in [
            ((handler, ["a"], 10), "The server doesn't report the tokens"),
            ((handler, [], 10), "sample is empty"),
            ((handler, "text", 10), "sample must be a list"),
            ((handler, ["a"], -1), "n must be at least 0"),
        ]:
            with pytest.raises(OptionError, match=message):
                estimate(*arguments)
        other = OpenAIModelHandler("m", chat_completion_from_string, "key", base_url=server.url)
        with pytest.raises(OptionError, match="OpenAIModelHandler has no handler for chat"):
            estimate(other, ["a"], 10)


# --- the order of requests


@pytest.mark.parametrize("kind", [OpenAIChatModelHandler, OpenAICompletionsModelHandler])
def test_requests_that_share_a_prefix_are_sent_one_after_the_other_and_results_keep_their_order(
    kind,
):
    field = "messages" if kind is OpenAIChatModelHandler else "prompt"
    texts = [f"{name * 50} {n}" for n in range(4) for name in ("blue ", "red ", "green ")]

    def respond(body):
        text = body[field] if isinstance(body[field], str) else body[field][-1]["content"]
        choice = {"text": text, "message": {"content": text}, "finish_reason": "stop"}
        return {"choices": [choice]}

    with scripted_server(default=respond) as server:
        results = kind(server.url, "m", None, max_concurrent_requests=1).predict(texts)
        sent = [respond(body)["choices"][0]["text"].split()[0] for body in server.requests]
    assert [result.inference.text for result in results] == texts
    changes = sum(first != second for first, second in pairwise(sent))
    assert (len(sent), changes) == (12, 2)


def test_requests_without_a_long_common_prefix_are_sent_in_their_order():
    texts = ["c", "a", "b", "a"]
    with scripted_server(default=lambda body: answer()) as server:
        chat(server.url, max_concurrent_requests=1).predict(texts)
        assert [body["messages"][0]["content"] for body in server.requests] == texts
