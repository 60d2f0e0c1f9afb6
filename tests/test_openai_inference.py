"""Chat, completions and embeddings handlers: results, token metrics, errors and secrecy of the key."""

from __future__ import annotations

import logging
import pickle
import sys
import threading

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.ml.inference import base as beam_base

from common import RUNNER, run
from runinference import Backoff, KeyedModelHandler, ModelMetadata, RunInference
from runinference.errors import (
    ElementError,
    EndpointError,
    EndpointRefusedError,
    EndpointUnreachableError,
    OptionError,
    ResultMismatchError,
    UnusableAnswerError,
)
from runinference.openai_inference import (
    OpenAIChatModelHandler,
    OpenAICompletionsModelHandler,
    OpenAIEmbeddingsModelHandler,
    OpenAIModelHandler,
    chat_completion_from_conversation,
    chat_completion_from_string,
    embedding_from_string,
)
from runinference.samples import servers
from runinference.testing import check_handler
from scripted_server import DropConnection, Reply, TruncatedReply, scripted_server

KEY = "sk-very-secret-0123456789"
NO_DELAY = {"backoff": Backoff(initial_secs=0), "throttle_delay_secs": 0}
KINDS = pytest.mark.parametrize(
    "kind", [OpenAIChatModelHandler, OpenAICompletionsModelHandler, OpenAIEmbeddingsModelHandler]
)


def chat(url, **options):
    return OpenAIChatModelHandler(
        url, **{"model": "shout", "api_key_env": None, **NO_DELAY, **options}
    )


def choice(text, index=0):
    return {"index": index, "finish_reason": "stop", "message": {"content": text}}


def shout(body):
    """Return the response of a chat server that fails for some messages."""
    text = body["messages"][-1]["content"]
    if text == "bad":
        return Reply(400, {"error": {"message": "the text is bad"}})
    if text == "worse":
        return Reply(500, {"error": "out of order"})
    return {"choices": [choice(text.upper())], "usage": {"prompt_tokens": 2, "total_tokens": 3}}


def embed(body):
    """Return the response of an embeddings server that rejects requests with a bad text."""
    if "bad" in body["input"]:
        return Reply(400, {"error": {"message": "one of the texts is bad"}})
    data = [{"index": i, "embedding": [len(text), 1]} for i, text in enumerate(body["input"])]
    return {"data": data[::-1], "usage": {"prompt_tokens": len(data), "total_tokens": len(data)}}


# --- requests and results


def test_accepts_a_string_and_a_list_of_messages():
    with servers.llm() as url:
        messages = [{"role": "system", "content": "Shout."}, {"role": "user", "content": "hi"}]
        first, second = chat(url).predict(["hello", messages])
    assert (first.example, first.inference.text, first.model_id) == ("hello", "HELLO", "shout")
    assert second.inference.text == "HI"
    assert first.inference.usage == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


def test_sends_conversations_as_concurrent_requests():
    barrier = threading.Barrier(16)

    def answer(body):
        barrier.wait(30)
        return shout(body)

    with scripted_server(default=answer) as server:
        results = chat(server.url).predict([f"text {n}" for n in range(32)])
    assert [result.inference.text for result in results] == [f"TEXT {n}" for n in range(32)]


def test_parameters_are_request_fields_that_inference_args_override():
    with scripted_server(default=shout) as server:
        handler = chat(server.url, parameters={"temperature": 0, "max_tokens": 5})
        handler.predict(["a"], {"temperature": 0.5, "stop": ["."]})
        assert server.requests == [
            {
                "model": "shout",
                "temperature": 0.5,
                "max_tokens": 5,
                "stop": ["."],
                "messages": [{"role": "user", "content": "a"}],
            }
        ]


def test_completions_send_one_text_or_max_request_size_texts_per_request():
    def answer(body):
        prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
        return {"choices": [{"index": i, "text": text.upper()} for i, text in enumerate(prompts)]}

    for size, asked in ((None, ["a", "b", "c"]), (2, [["a", "b"], "c"])):
        with scripted_server(default=answer) as server:
            handler = OpenAICompletionsModelHandler(server.url, "m", None, max_request_size=size)
            results = handler.predict(["a", "b", "c"])
            assert [result.inference.text for result in results] == ["A", "B", "C"]
            assert sorted((body["prompt"] for body in server.requests), key=str) == sorted(
                asked, key=str
            )


def test_embeddings_send_32_texts_per_request_and_return_one_vector_per_text():
    with scripted_server(default=embed) as server:
        handler = OpenAIEmbeddingsModelHandler(server.url, "m", None)
        results = handler.predict(["x" * n for n in range(100)])
        assert sorted(len(body["input"]) for body in server.requests) == [4, 32, 32, 32]
    assert [float(result.inference[0]) for result in results] == list(range(100))
    assert results[0].inference.dtype == np.float32
    assert results[0].model_id == "m"


def test_model_refresh_changes_the_model():
    def named(body):
        return {"choices": [choice(f"I am {body['model']}")]}

    class Refreshed(beam.PTransform):
        def expand(self, texts):
            new = texts.pipeline | "new" >> beam.Create([ModelMetadata("whisper", "new")])
            return texts | RunInference(chat(server.url), model_metadata_pcoll=new)

    with scripted_server(default=named) as server:
        [result] = run(["Who are you?"], Refreshed())
    assert (result.inference.text, result.model_id) == ("I am whisper", "whisper")


# --- token metrics


def tokens(handler, elements, configure=lambda transform: transform):
    pipeline = beam.Pipeline(runner=RUNNER)
    _ = pipeline | beam.Create(elements) | configure(RunInference(handler))
    result = pipeline.run()
    result.wait_until_finish()
    found = result.metrics().query(MetricsFilter().with_namespace("BeamML_OpenAI"))["counters"]
    counted = {each.key.metric.name: each.committed for each in found}
    return {name: n for name, n in counted.items() if name.endswith("tokens")}


def test_token_counts_of_the_server_are_metrics():
    with servers.llm() as url:
        assert tokens(chat(url), ["one two three", "four"]) == {
            "prompt_tokens": 4,
            "completion_tokens": 4,
            "total_tokens": 8,
        }
        handler = OpenAIEmbeddingsModelHandler(url, "words", None)
        assert tokens(handler, ["a b", "c"]) == {"prompt_tokens": 3, "total_tokens": 3}


def test_counts_tokens_with_a_timeout_and_for_invalid_responses():
    def silent(body):
        return {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": None}}

    with scripted_server(default=silent) as server:
        counted = tokens(
            chat(server.url),
            ["a", "b"],
            lambda transform: transform.with_exception_handling(timeout=60),
        )
    assert counted == {"prompt_tokens": 10}


# --- errors


def letters(handler, elements, **handling):
    """Return the results and the dead letters of a pipeline."""

    def wrap(transform):
        class Both(beam.PTransform):
            def expand(self, pcoll):
                good, dead_letters = pcoll | transform.with_exception_handling(**handling)
                good = good | "good" >> beam.Map(lambda result: (True, result))
                bad = dead_letters.failed_inferences | "bad" >> beam.Map(
                    lambda letter: (False, letter)
                )
                return (good, bad) | beam.Flatten()

        return Both()

    both = run(elements, wrap(RunInference(handler)))
    return [x for good, x in both if good], [x for good, x in both if not good]


def test_a_rejected_request_is_a_dead_letter_with_the_servers_message():
    with scripted_server(default=shout) as server:
        good, bad = letters(chat(server.url), ["a", "bad", "b", "worse", "c"])
    assert sorted(result.inference.text for result in good) == ["A", "B", "C"]
    errors = {element: (kind, message) for element, (kind, message, _) in bad}
    assert errors.keys() == {"bad", "worse"}
    assert errors["bad"][0] is EndpointError
    assert "returned 400: the text is bad" in errors["bad"][1]
    assert "returned 500: out of order" in errors["worse"][1]


def test_only_the_bad_text_of_a_request_is_a_dead_letter():
    with scripted_server(default=embed) as server:
        handler = OpenAIEmbeddingsModelHandler(server.url, "m", None, **NO_DELAY)
        good, bad = letters(handler, [*(f"text {n}" for n in range(40)), "bad"])
    assert sorted(result.example for result in good) == sorted(f"text {n}" for n in range(40))
    [(element, (_, message, _))] = bad
    assert element == "bad"
    assert "one of the texts is bad" in message


def test_an_element_that_is_not_a_string_is_a_dead_letter_and_not_sent():
    with scripted_server(default=shout) as server:
        good, bad = letters(chat(server.url), ["a", 5])
        assert len(server.requests) == 1
    [(element, (kind, _, _))] = bad
    assert (element, kind, len(good)) == (5, ElementError, 1)


def test_all_elements_are_dead_letters_if_the_server_is_unreachable():
    with scripted_server() as server:
        url = server.url
    handler = chat(url, num_retries=1, max_concurrent_requests=2)
    good, bad = letters(handler, list("abcdefghij"))
    assert not good
    assert sorted(element for element, _ in bad) == list("abcdefghij")
    assert {kind for _, (kind, _, _) in bad} == {EndpointUnreachableError}
    assert f"No server answers at {url}/chat/completions" in bad[0][1][1]


def test_keeps_results_from_before_the_key_was_rejected():
    refused = Reply(401, {"error": "no longer"})
    with scripted_server(
        default=lambda body: refused if body["messages"][0]["content"] == "b" else shout(body)
    ) as server:
        good, bad = letters(chat(server.url, max_concurrent_requests=1), ["a", "b", "c"])
    assert {result.example for result in good} == {"a", "c"}
    [(element, (kind, _, _))] = bad
    assert (element, kind) == ("b", EndpointRefusedError)


@pytest.mark.parametrize(
    "script",
    [
        [Reply(500, "")] * 3,
        [Reply(429, "", {"Retry-After": "0"}), Reply(503, ""), DropConnection()],
        [TruncatedReply(), Reply(200, "<garbage"), Reply(200, "")],
    ],
    ids=["500", "busy", "garbage"],
)
def test_retries_until_the_server_answers(script):
    with scripted_server(*script, default=shout) as server:
        [result] = chat(server.url).predict(["a"])
        assert result.inference.text == "A"
        assert len(server.requests) == 4


def test_waits_for_retry_after():
    with scripted_server(Reply(429, "", {"Retry-After": "3"}), default=shout) as server:
        handler = chat(server.url, backoff=Backoff(jitter=0))
        slept = []
        handler._sleep = slept.append
        handler.predict(["a"])
    assert slept == [3]


def failing(error):
    return {"error": error}


RETRIED = [
    failing({"message": "too many requests", "code": 429}),
    failing({"message": "slow", "type": "rate_limit_error"}),
    failing({"message": "x", "type": "overloaded_error"}),
    failing({"message": "x", "code": "server_error"}),
    failing("Rate limit reached"),
    [failing({"code": 503, "message": "x", "status": "UNAVAILABLE"})],
    {
        "choices": [
            {**choice("partial"), "finish_reason": "error", "error": {"code": 502, "message": "x"}}
        ]
    },
    {**failing({"code": 500, "message": "x"}), "choices": [choice("partial")]},
]


@pytest.mark.parametrize("answer", RETRIED, ids=repr)
def test_retries_after_a_transient_error_inside_a_response_of_status_200(answer):
    with scripted_server(Reply(200, answer), default=shout) as server:
        [result] = chat(server.url).predict(["a"])
        assert result.inference.text == "A"
        assert len(server.requests) == 2


NOT_RETRIED = [
    (
        failing({"message": "no", "code": "content_filter"}),
        EndpointError,
        "corresponds to status 400: no",
    ),
    (failing({"message": "no", "code": "context_length_exceeded"}), EndpointError, "400: no"),
    (failing({"message": "no", "code": "invalid_api_key"}), EndpointRefusedError, "401: no"),
    (failing({"message": "no", "code": 404}), EndpointRefusedError, "404: no"),
    (failing({"message": "no", "code": "insufficient_quota"}), EndpointRefusedError, "the quota"),
    (failing({"message": "no", "code": "odd"}), UnusableAnswerError, "no"),
]


@pytest.mark.parametrize(("answer", "kind", "message"), NOT_RETRIED)
def test_does_not_retry_after_other_errors_inside_a_response(answer, kind, message):
    with scripted_server(default=lambda body: answer) as server:
        with pytest.raises(kind, match=message) as raised:
            chat(server.url).predict(["a"])
        assert type(raised.value) is kind
        assert len(server.requests) == 1


def test_a_used_up_quota_is_not_retried_although_its_status_is_429():
    quota = Reply(429, {"error": {"message": "pay", "code": "insufficient_quota"}})
    with scripted_server(default=lambda body: quota) as server:
        with pytest.raises(EndpointRefusedError, match="429: pay. Retries don't help"):
            chat(server.url).predict(["a"])
        assert len(server.requests) == 1


def test_waits_as_long_as_an_error_inside_a_response_says():
    limited = Reply(200, failing({"message": "x", "code": 429}), {"Retry-After": "3"})
    with scripted_server(limited, default=shout) as server:
        handler = chat(server.url, backoff=Backoff(jitter=0))
        slept = []
        handler._sleep = slept.append
        handler.predict(["a"])
    assert slept == [3]


@KINDS
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_rejects_numbers_that_json_cannot_represent(kind, value):
    with pytest.raises(OptionError, match="parameters cannot be written as JSON"):
        kind("http://localhost", "m", None, parameters={"temperature": value})
    handler = kind("http://localhost", "m", None)
    with pytest.raises(OptionError, match="inference_args cannot be written as JSON"):
        handler.predict(["a"], {"temperature": [value]})


def test_an_error_about_a_huge_response_is_short():
    huge = {"x" * 100_000: "y" * 100_000, **{f"k{n}": n for n in range(1_000)}}
    for answer in (huge, {"choices": [{**huge, "index": 0}]}, {"error": huge}):
        with scripted_server(default=lambda body, answer=answer: answer) as server:
            with pytest.raises(EndpointError) as raised:
                chat(server.url).predict(["a"])
            assert len(str(raised.value)) < 2_000


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ({"choices": []}, ResultMismatchError, "returned 0 choices, not 1"),
        ({"choices": [choice("a"), choice("b", 1)]}, ResultMismatchError, "returned 2 choices"),
        ({"choices": [choice(None)]}, UnusableAnswerError, "The model returned no text"),
        ({"error": "full"}, UnusableAnswerError, "error 'full'"),
        ([], UnusableAnswerError, "no list 'choices'"),
    ],
)
def test_does_not_retry_an_invalid_response(answer, kind, message):
    with scripted_server(default=lambda body: answer) as server:
        with pytest.raises(
            kind, match=f"{server.url}/chat/completions returned an unexpected.*{message}"
        ):
            chat(server.url).predict(["a"])
        assert len(server.requests) == 1


def test_an_unknown_model_is_an_error():
    with (
        servers.llm() as url,
        pytest.raises(EndpointRefusedError, match="'gpt' does not exist"),
    ):
        chat(url, model="gpt").predict(["a"])


@KINDS
def test_rejects_reserved_and_invalid_fields(kind):
    input_field = kind._input
    with pytest.raises(OptionError, match="parameters has 'stream'"):
        kind("http://localhost", "m", None, parameters={"stream": True})
    handler = kind("http://localhost", "m", None)
    for name in ("model", input_field):
        with pytest.raises(OptionError, match=f"inference_args has '{name}'"):
            handler.validate_inference_args({name: "x"})
    with pytest.raises(OptionError, match="cannot be written as JSON"):
        handler.validate_inference_args({"stop": {1}})
    with pytest.raises(OptionError, match=r"To fix this, set base_url='http://localhost/v1'"):
        kind(f"http://localhost/v1{kind._path}", "m", None)


def test_rejects_several_conversations_per_request():
    with pytest.raises(OptionError, match="contains one conversation"):
        chat("http://localhost", max_request_size=8)
    with pytest.raises(OptionError, match="max_request_size must be at least 1"):
        OpenAIEmbeddingsModelHandler("http://localhost", "m", None, max_request_size=0)


# --- the key


@pytest.fixture
def keyed(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with servers.llm(key=KEY) as url:
        yield url


@KINDS
def test_reads_the_key_from_the_workers_environment(keyed, kind, monkeypatch):
    model = "words" if kind is OpenAIEmbeddingsModelHandler else "shout"
    handler = pickle.loads(pickle.dumps(kind(keyed, model)))
    assert len(handler.predict(["a"])) == 1
    monkeypatch.setenv("OTHER_KEY", "wrong")
    other = kind(keyed, model, "OTHER_KEY")
    with pytest.raises(
        EndpointRefusedError, match="Check the key in the environment variable OTHER_KEY"
    ):
        other.predict(["a"])
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(OptionError, match=r"OPENAI_API_KEY \(api_key_env\) is not set here"):
        kind(keyed, model).predict(["a"])


def test_no_dead_letter_log_annotation_or_pickle_contains_the_key(monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    lines = [
        Reply(400, f"Bearer {KEY}"),
        Reply(401, KEY),
        Reply(500, KEY),
        Reply(200, KEY),
        DropConnection(),
        TruncatedReply(),
    ]
    with scripted_server(default=lambda body: lines[int(body["messages"][0]["content"])]) as server:
        handler = chat(server.url, api_key_env="OPENAI_API_KEY", num_retries=1)
        with caplog.at_level(logging.DEBUG):
            _, bad = letters(handler, [str(n) for n in range(len(lines))])
        assert {headers["Authorization"] for headers in server.request_headers} == {f"Bearer {KEY}"}
    assert len(bad) == len(lines)
    transform = RunInference(handler)
    pipeline = beam.Pipeline()
    _ = pipeline | beam.Create(["a"]) | transform
    everything = [repr(bad), *caplog.messages, repr(transform.annotations()), repr(vars(handler))]
    everything += [str(pipeline.to_runner_api()), repr(transform.display_data()), repr(handler)]
    for text in everything:
        assert KEY not in text
    assert KEY.encode() not in pickle.dumps(handler)
    assert KEY.encode() not in pipeline.to_runner_api().SerializeToString()


# --- with other handlers and transforms


def every_kind(body):
    """Return a response to a chat, completions or embeddings request that contains the model's name."""
    given = body.get("input") or body.get("prompt") or body["messages"][-1]["content"]
    given = [given] if isinstance(given, str) else given
    if "bad" in given:
        return Reply(400, {"error": "the text is bad"})
    texts = [f"{body['model']}: {text}" for text in given]
    return {
        "choices": [{**choice(text, i), "text": text} for i, text in enumerate(texts)],
        "data": [{"index": i, "embedding": [len(text), 1]} for i, text in enumerate(texts)],
    }


@KINDS
def test_passes_the_conformance_kit(kind):
    with scripted_server(default=every_kind) as server:
        handler = kind(server.url, "m", None, **NO_DELAY)
        report = check_handler(
            handler,
            ["a", "bcd", "ef"],
            inference_args={"temperature": 0},
            bad_example="bad",
            updated_path="another",
        )
    assert report.skipped == {}


def test_works_with_keys_and_functions():
    with servers.llm() as url:
        handler = (
            KeyedModelHandler(chat(url))
            .with_preprocess_fn(lambda pair: (pair[0], f"say {pair[1]}"))
            .with_postprocess_fn(lambda pair: (pair[0], pair[1].inference.text))
        )
        assert sorted(run([(1, "a"), (2, "b")], RunInference(handler))) == [
            (1, "SAY A"),
            (2, "SAY B"),
        ]


def test_runs_in_beams_transform_and_in_a_subprocess():
    with servers.llm() as url:
        [result] = run(["a"], beam_base.RunInference(chat(url)))
        assert result.inference.text == "A"
        good, _ = letters(chat(url), ["a"], use_subprocess=True)
        assert good[0].inference.text == "A"


# --- Beam's form


@pytest.fixture(params=["openai", "without openai"])
def client_package(request, monkeypatch):
    """The package of the client: ``openai``, or the one of this library."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if request.param == "openai":
        pytest.importorskip("openai", reason="this version of openai needs Python 3.11")
    else:
        monkeypatch.setitem(sys.modules, "openai", None)
    return request.param


def test_sends_requests_with_the_functions_that_beam_has(client_package):
    with servers.llm(key=KEY) as url:
        options = {"api_key": KEY, "base_url": url, "client_args": {"timeout": 30}, **NO_DELAY}
        handler = OpenAIModelHandler("shout", chat_completion_from_string, **options)
        results = handler.predict(["a", "b"], {"system": "Shout."})
        assert [result.inference.choices[0].message.content for result in results] == ["A", "B"]
        assert results[0].inference.usage.total_tokens == 3
        assert (results[1].example, results[1].model_id) == ("b", "shout")

        handler = OpenAIModelHandler("shout", chat_completion_from_conversation, **options)
        [result] = handler.predict([[{"role": "user", "content": "hi"}]])
        assert result.inference.choices[0].message.content == "HI"
        assert result.inference.choices[0].message.tool_calls is None

        handler = OpenAIModelHandler("words", embedding_from_string, **options)
        first, second = handler.predict(["a cat", "a dog"])
        assert len(first.inference.embedding) == len(second.inference.embedding) > 0


def test_runs_in_a_pipeline_and_keeps_the_key_out_of_it(client_package):
    with servers.llm(key=KEY) as url:
        handler = OpenAIModelHandler("shout", chat_completion_from_string, KEY, base_url=url)
        pipeline = beam.Pipeline()
        _ = pipeline | beam.Create(["a"]) | RunInference(handler)
        for held in (pickle.dumps(handler), pipeline.to_runner_api().SerializeToString()):
            assert KEY.encode() not in held
        assert KEY not in repr(vars(handler))
        for transform in (RunInference(handler), beam_base.RunInference(handler)):
            [result] = run(["a"], transform)
            assert result.inference.choices[0].message.content == "A"
    assert (handler.model_name, handler.api_key, handler.base_url) == ("shout", KEY, url)


def test_another_process_takes_the_key_from_its_environment(client_package, monkeypatch):
    with servers.llm(key=KEY) as url:
        handler = OpenAIModelHandler("shout", chat_completion_from_string, KEY, base_url=url)
        pickled = pickle.dumps(handler)
    monkeypatch.setattr("runinference.remote.process_secret._secrets", {})  # as in another process
    with servers.llm(key=KEY) as url:
        handler = pickle.loads(pickled)
        handler.base_url = url
        with pytest.raises(OptionError, match="set the environment variable OPENAI_API_KEY"):
            handler.predict(["a"])
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert handler.predict(["a"])[0].inference.choices[0].message.content == "A"


def test_the_key_may_be_a_function_and_the_request_function_a_coroutine(client_package):
    async def count_letters(model_name, batch, client, inference_args):
        assert (model_name, inference_args) == ("m", {"x": 1})
        return [len(text) for text in batch]

    handler = OpenAIModelHandler("m", count_letters, lambda: KEY, base_url="http://localhost:1")
    results = handler.predict(["a", "bcd"], {"x": 1})
    assert [(result.example, result.inference) for result in results] == [("a", 1), ("bcd", 3)]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Reply(401, {"error": {"message": f"Incorrect API key: {KEY}"}}), "Incorrect API key"),
        ({"error": {"message": f"{KEY} is slow", "code": 429}}, "is slow"),
        ({"choices": []}, "no choices|choices"),
    ],
)
def test_errors_are_raised_without_the_key(client_package, answer, message):
    with scripted_server(default=lambda body: answer) as server:
        handler = OpenAIModelHandler(
            "m", chat_completion_from_string, KEY, base_url=server.url, num_retries=0
        )
        with pytest.raises(Exception, match=message) as raised:
            handler.predict(["a"])
    assert KEY not in f"{raised.value} {raised.value!r} {raised.value.args}"


def test_an_error_inside_a_response_is_retried_in_beams_form_too(client_package):
    limited = Reply(200, failing({"message": "slow down", "code": 429}))
    with scripted_server(limited, default=shout) as server:
        handler = OpenAIModelHandler(
            "m", chat_completion_from_string, KEY, base_url=server.url, **NO_DELAY
        )
        assert handler.predict(["a"])[0].inference.choices[0].message.content == "A"


@pytest.mark.parametrize(
    "options",
    [
        {"client_args": {"api_key": KEY}},
        {"client_args": {"default_headers": {"Authorization": KEY}}},
        {"base_url": f"https://me:{KEY}@api.example.com/v1"},
        {"base_url": f"https://api.example.com/v1?key={KEY}"},
        {"client_args": {"base_url": f"https://me:{KEY}@api.example.com/v1"}},
        {"client_args": {"websocket_base_url": f"wss://me:{KEY}@api.example.com/v1"}},
        {"client_args": {"default_query": {"api-key": KEY}}},
        {"client_args": {"default_query": {"q": "sk-0123456789abcdef"}}},
    ],
)
def test_rejects_secrets_that_a_pipeline_would_store(options):
    with pytest.raises(OptionError, match="would be stored in the pipeline") as raised:
        OpenAIModelHandler("m", chat_completion_from_string, **options)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"organization": "org\r\nX-Other: 1"}, "without line breaks"),
        ({"project": "project\n"}, "without line breaks"),
        ({"organization": "\u20ac"}, "Latin-1"),
        ({"client_args": {"organization": "org\n"}}, "without line breaks"),
        ({"client_args": {"default_headers": ["X-Other"]}}, "must be a dictionary"),
        ({"api_key": "sk-0123\r\nX-Other: 1"}, "contains a line break"),
        ({"api_key": "\u043a\u043b\u044e\u0447"}, "invalid characters"),
        ({"api_key": " "}, "must be a non-empty string"),
    ],
)
def test_rejects_headers_that_http_cannot_represent(options, message):
    with pytest.raises(OptionError, match=message) as raised:
        OpenAIModelHandler("m", chat_completion_from_string, **options)
    assert "sk-0123" not in str(raised.value)


def test_a_key_with_a_line_break_is_not_sent(client_package, monkeypatch):
    with servers.llm(key=KEY) as url:
        for key in (f" {KEY}\n", lambda: f"{KEY}\n"):
            handler = OpenAIModelHandler("shout", chat_completion_from_string, key, base_url=url)
            assert handler.predict(["a"])[0].inference.choices[0].message.content == "A"
        broken = f"{KEY}\nX-Other: 1"
        monkeypatch.setenv("OPENAI_API_KEY", broken)
        for given in (lambda: broken, None):
            handler = OpenAIModelHandler("shout", chat_completion_from_string, given, base_url=url)
            with pytest.raises(OptionError, match="contains a line break") as raised:
                handler.predict(["a"])
            assert KEY not in str(raised.value)
