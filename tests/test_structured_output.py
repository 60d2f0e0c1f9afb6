"""Answers of chat models with a declared type: requests, validation, further attempts, and dead letters."""

from __future__ import annotations

import dataclasses
import enum
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import apache_beam as beam
import pydantic
import pytest
from apache_beam.metrics import MetricsFilter

from common import RUNNER, run
from runinference import Backoff, KeyedModelHandler, RunInference
from runinference.errors import EndpointError, InvalidOutputError, OptionError, UnusableAnswerError
from runinference.openai_inference import (
    OpenAIChatModelHandler,
    OpenAICompletionsModelHandler,
)
from runinference.samples import servers
from runinference.testing import check_handler
from scripted_server import Reply, scripted_server


class Review(pydantic.BaseModel):
    label: Literal["good", "bad"]
    score: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.5


@dataclasses.dataclass
class Order:
    item: str
    count: int
    reviews: list[Review]


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Tree(pydantic.BaseModel):
    name: str
    children: list[Tree] = []


GOOD = '{"label": "good", "score": 1}'
SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["good", "bad"]}},
    "required": ["label"],
}


def chat(url, output_type=Review, **options):
    options = {"backoff": Backoff(initial_secs=0), "throttle_delay_secs": 0, **options}
    return OpenAIChatModelHandler(url, "shout", None, output_type=output_type, **options)


def reply(text, finish_reason="stop", **message):
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"content": text, **message}}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def ask(*answers, output_type=Review, **options):
    """Return the inference for an element to which a server replies with texts, and the requests."""
    script = [reply(answer) if isinstance(answer, str) else answer for answer in answers]
    with scripted_server(*script, default=lambda body: reply("more?")) as server:
        try:
            [result] = chat(server.url, output_type, **options).predict(["hi"])
            assert result.example == "hi"
            assert result.model_id == "shout"
            return result.inference, server.requests
        except Exception as error:
            return error, server.requests


# --- types


@pytest.mark.parametrize(
    ("output_type", "answer", "value"),
    [
        (Review, GOOD, Review(label="good", score=1.0)),
        (
            Order,
            f'{{"item": "x", "count": 2, "reviews": [{GOOD}]}}',
            Order("x", 2, [Review(label="good", score=1)]),
        ),
        (Literal["good", "bad"], '{"value": "bad"}', "bad"),
        (Literal["good", "bad"], '"bad"', "bad"),
        (Literal["good", "bad"], " bad\n", "bad"),
        (Literal["1", "2"], "2", "2"),
        (Literal[1, 2], "2", 2),
        (Color, "blue", Color.BLUE),
        (bool, '{"value": true}', True),
        (Annotated[float, pydantic.Field(ge=0, le=1)], '{"value": 0.25}', 0.25),
        (list[Review], f'{{"value": [{GOOD}]}}', [Review(label="good", score=1)]),
        (dict[str, int], '{"value": 3}', {"value": 3}),
        (int | None, '{"value": null}', None),
        (
            Tree,
            '{"value": {"name": "a", "children": [{"name": "b", "children": []}]}}',
            Tree(name="a", children=[Tree(name="b")]),
        ),
        (SCHEMA, '{"label": "bad", "more": [1]}', {"label": "bad", "more": [1]}),
        ({"type": "array", "items": {"type": "integer"}}, '{"value": [1, 2]}', [1, 2]),
    ],
)
def test_an_answer_becomes_a_value_of_the_type(output_type, answer, value):
    inference, requests = ask(answer, output_type=output_type)
    assert (inference, type(inference)) == (value, type(value))
    [request] = requests
    sent = request["response_format"]["json_schema"]
    assert request["response_format"]["type"] == "json_schema"
    assert sent["schema"]["type"] == "object"
    assert sent["name"].isidentifier()


def test_python_types_are_strict_and_open_schemas_are_not():
    def is_strict(output_type):
        _, [request] = ask(reply("{}", "length"), output_type=output_type)
        return request["response_format"]["json_schema"]["strict"]

    assert [is_strict(one) for one in (Review, Order, bool, dict[str, int], SCHEMA)] == [
        True,
        True,
        True,
        False,
        False,
    ]
    _, [request] = ask(reply("{}", "length"))
    schema = request["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["label", "score"]
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    "answer",
    [
        f"```json\n{GOOD}\n```",
        f"Of course:\n```\n{GOOD}\n```\nAnything else?",
        f"<think>A {{ or a }}?</think>\n{GOOD}",
    ],
)
def test_reads_json_in_a_code_block_and_after_reasoning(answer):
    inference, requests = ask(answer)
    assert inference == Review(label="good", score=1)
    assert len(requests) == 1


@pytest.mark.parametrize(
    "output_type",
    [object, Any, "int", 5, [int], type("X", (), {}), print, len, {}, {"type": "integr"}]
    + [{"type": "array", "items": {"$ref": ref}} for ref in ("http://x/y", "#/$defs/no", "#")]
    + [{"type": "object", "default": float("nan")}],
    ids=repr,
)
def test_a_type_without_a_schema_is_an_error_at_construction(output_type):
    with pytest.raises(OptionError, match="output_type.*To fix this|cannot be written as JSON"):
        chat("http://localhost", output_type)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_output_attempts": 0}, "max_output_attempts must be at least 1"),
        ({"output_mode": "promt"}, "Did you mean 'prompt'"),
        ({"output_type": None, "output_mode": "prompt"}, "no effect without output_type"),
        ({"parameters": {"n": 2}}, "parameters has 'n', which output_type doesn't allow"),
        ({"parameters": {"response_format": {}}}, "parameters has 'response_format'"),
    ],
)
def test_invalid_options_are_errors(options, message):
    with pytest.raises(OptionError, match=message):
        chat("http://localhost", **{"output_type": Review, **options})
    with pytest.raises(OptionError, match="inference_args has 'n'"):
        chat("http://localhost").predict(["a"], {"n": 2})


# --- invalid answers


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("good", "not JSON"),
        ("", "it is empty"),
        ('{"label": "good"', "not JSON"),
        (f"Sure! {GOOD}", "not JSON"),
        (f"```\n{GOOD}\n```\n```\n{GOOD}\n```", "not JSON"),
        ('{"label": "ok", "score": 1}', "label: Input should be 'good' or 'bad'"),
        ('{"label": "good", "score": "1"}', "score: Input should be a valid number"),
        ('{"label": "good", "score": NaN}', "nan (at score)"),
        ('{"label": "good", "score": 1e999}', "inf (at score)"),
        ('{"label": "good", "score": 2}', "less than or equal to 1"),
        ('{"label": "good", "label": "bad"}', "two values for 'label'"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 100 + "]" * 100, "nested too deeply"),
        ("9" * 5_000, "can't be read"),
        (f"[{GOOD}]", "should be an object"),
    ],
)
def test_after_an_invalid_answer_the_model_is_asked_again_with_the_error(answer, reason):
    inference, requests = ask(answer, GOOD)
    assert inference == Review(label="good", score=1)
    first, second = requests
    user, assistant, correction = second["messages"]
    assert [user] == first["messages"] == [{"role": "user", "content": "hi"}]
    assert assistant["role"] == "assistant"
    assert assistant["content"]
    assert len(assistant["content"]) <= 4_000
    assert reason in correction["content"]
    assert '"enum": ["good", "bad"]' in correction["content"]
    assert second["response_format"] == first["response_format"]


@pytest.mark.parametrize("answer", ['{"label": "ok"}', '{"label": NaN}', "[]", "{}"])
def test_answers_are_validated_against_a_json_schema(answer):
    inference, requests = ask(answer, '{"label": "good"}', output_type=SCHEMA)
    assert inference == {"label": "good"}
    assert len(requests) == 2


def test_the_last_answer_is_in_the_error_shortened():
    error, requests = ask(*["x" * 9_000] * 5)
    assert type(error) is InvalidOutputError
    assert len(requests) == 3
    assert "Attempt 3 of 3 (max_output_attempts) returned 'xxx" in str(error)
    assert len(str(error)) < 2_000
    error, requests = ask("one", max_output_attempts=1)
    assert "not JSON" in str(error)
    assert "'one'" in str(error)
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (reply('{"label": "goo', "length"), r"cut off .*\{\"label\": \"goo.*increase max_tokens"),
        (reply(GOOD, "length"), "cut off"),
        (reply(None, refusal="I can't say"), 'refusal "I can\'t say"'),
        (reply(None, "content_filter"), "content filter"),
        (reply(None, tool_calls=[{"function": {"name": "look"}}]), "called a tool .*look"),
    ],
)
def test_what_another_attempt_would_repeat_is_not_asked_again(answer, message):
    error, requests = ask(answer)
    assert isinstance(error, UnusableAnswerError)
    with pytest.raises(type(error), match=message):
        raise error
    assert len(requests) == 1


def test_each_attempt_is_retried_alone_and_counts_for_the_rate_limit():
    class Limit:
        hits = 0

        def allow(self, *, hits_added):
            self.hits += hits_added
            return True

    limit = Limit()
    inference, requests = ask("no", Reply(503), GOOD, rate_limiter=limit)
    assert inference == Review(label="good", score=1)
    assert [len(request["messages"]) for request in requests] == [1, 3, 3]
    assert limit.hits == 3


# --- servers without response_format


def reject(body):
    """Return the response of a server that rejects ``response_format``, and a text."""
    if "response_format" in body:
        return Reply(400, {"error": {"message": "Unsupported fields: response_format"}})
    is_long = str(body["messages"][0]["content"]).startswith("long")
    return Reply(400, {"error": "too long"}) if is_long else reply(GOOD)


def test_a_server_that_rejects_the_field_gets_the_schema_in_the_prompt_from_then_on():
    with scripted_server(default=reject) as server:
        handler = chat(server.url, max_concurrent_requests=1)
        conversation = [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
        ]
        results = handler.predict(["hi", conversation, [{"role": "system", "content": "b"}]])
        assert [result.inference.label for result in results] == ["good"] * 3
        assert ["response_format" in body for body in server.requests] == [True] + [False] * 3
        last = [body["messages"][-1] for body in server.requests[1:]]
    assert last[0]["content"].startswith("hi\n\nAnswer with only a JSON value")
    assert '"enum": ["good", "bad"]' in last[0]["content"]
    assert [part["text"][:6] for part in last[1]["content"]] == ["a", "Answer"]
    assert last[2]["role"] == "user"
    assert conversation[0]["content"] == [{"type": "text", "text": "a"}]


def test_a_rejected_element_does_not_change_how_others_are_asked():
    def answer(body):
        is_bad = body["messages"][0]["content"].startswith("bad")
        return Reply(400, {"error": "bad text"}) if is_bad else reply(GOOD)

    with scripted_server(default=answer) as server:
        handler = chat(server.url)
        client = handler.load_model()
        for text in ("bad", "a", "bad", "b"):
            if text == "bad":
                with pytest.raises(EndpointError, match="bad text"):
                    handler.run_inference([text], client)
            else:
                handler.run_inference([text], client)
        sent = ["response_format" in body for body in server.requests]
    assert sent == [True, False, True, True, True]


@pytest.mark.parametrize(
    ("mode", "sent"), [("prompt", [False]), ("response_format", [True]), ("auto", [True, False])]
)
def test_the_mode_decides_how_the_schema_is_sent(mode, sent):
    with scripted_server(default=reject) as server:
        handler = chat(server.url, output_mode=mode)
        if mode == "response_format":
            with pytest.raises(EndpointError, match="Unsupported fields"):
                handler.predict(["a"])
        else:
            handler.predict(["a"])
        assert ["response_format" in body for body in server.requests] == sent


# --- in pipelines


class Outcomes(beam.PTransform):
    """Emit the result of each element, or the type and message of its error."""

    def __init__(self, handler, **handling):
        super().__init__()
        self.transform = RunInference(handler).with_exception_handling(**handling)

    def expand(self, elements):
        results, letters = elements | self.transform
        good = results | beam.Map(lambda result: (result.example, result.inference))
        bad = letters.failed_inferences | beam.MapTuple(lambda x, error: (x, error[:2]))
        return (good, bad) | beam.Flatten()


def by_words(body):
    """Return a valid answer, except to some texts; to 'once', it is valid if the model is asked again."""
    text, is_first = body["messages"][0]["content"], len(body["messages"]) == 1
    if text == "never" or (text == "once" and is_first):
        return reply("what?")
    if text == "long":
        return reply("{", "length")
    return reply(
        json.dumps({"label": "good", "score": int(text[-1]) / 10 if text != "once" else 0})
    )


@pytest.mark.parametrize("handling", [{}, {"use_subprocess": True}], ids=str)
def test_only_elements_without_a_valid_answer_are_dead_letters(handling):
    texts = [f"text {n % 10}" for n in range(30)]
    with scripted_server(default=by_words) as server:
        found = run([*texts, "never", "once", "long"], Outcomes(chat(server.url), **handling))
        assert len(server.requests) == 30 + 3 + 2 + 1
    values = {text: value for text, value in found if not isinstance(value, tuple)}
    assert values == {
        **{text: Review(label="good", score=int(text[-1]) / 10) for text in texts},
        "once": Review(label="good", score=0),
    }
    errors = {text: value for text, value in found if isinstance(value, tuple)}
    assert len(found) == 33
    assert {text: kind for text, (kind, _) in errors.items()} == {
        "never": InvalidOutputError,
        "long": InvalidOutputError,
    }
    assert "'what?'" in errors["never"][1]


def test_counts_the_tokens_of_every_attempt_and_the_further_attempts():
    with scripted_server(default=by_words) as server:
        pipeline = beam.Pipeline(runner=RUNNER)
        _ = pipeline | beam.Create(["text 1", "once", "never"]) | Outcomes(chat(server.url))
        result = pipeline.run()
        result.wait_until_finish()
    found = result.metrics().query(MetricsFilter().with_namespace("BeamML_OpenAI"))["counters"]
    counted = {each.key.metric.name: each.committed for each in found}
    assert counted["prompt_tokens"] == 6 * 3
    assert counted["completion_tokens"] == 6 * 2
    assert counted["output_retries"] == 3


def test_works_with_keys_and_the_conformance_kit():
    with servers.llm() as url:
        keyed = KeyedModelHandler(chat(url, Literal["good", "bad"]))
        results = keyed.predict([(1, "good or bad? bad"), (2, "It is good.")])
        assert [(key, result.inference) for key, result in results] == [(1, "bad"), (2, "good")]

    def answer(body):
        text = body["messages"][0]["content"].split()[0]
        if "response_format" in body or text == "long":
            return Reply(400, {"error": "unsupported"})
        return reply(json.dumps(f"{body['model']}: {text}"))

    with scripted_server(default=answer) as server:
        report = check_handler(
            chat(server.url, str),
            ["a", "bcd", "ef"],
            inference_args={"temperature": 0},
            bad_example="long",
            updated_path="another",
        )
    assert report.skipped == {}


# --- rows


Detail = dataclasses.make_dataclass("Detail", [("label", str), ("numbers", list[int])])
ROWS = [beam.Row(id=n, text=f"{n} is bad") for n in (1, 2)]


def add_columns(output_type, output):
    """Return the type of rows with columns of predictions, and the rows."""
    types = []

    class Ask(beam.PTransform):
        def expand(self, rows):
            handler = chat(url, output_type)
            rows |= RunInference(handler, columns=["text"], output=output, keep=["id"])
            types.append(rows.element_type)
            return rows

    with servers.llm() as url:
        rows = run(ROWS, Ask())
    return dict(types[0]._fields), sorted(map(tuple, rows))


@pytest.mark.parametrize(
    ("output_type", "output", "fields", "values"),
    [
        (Literal["good", "bad"], "label", {"label": str}, ["bad"]),
        (Review, ["label", "score"], {"label": str, "score": float}, ["bad", 1.0]),
        (Review, "score", {"score": float}, [1.0]),
        (Detail, ["numbers", "label"], {"numbers": Sequence[int], "label": str}, [[1], "1 IS BAD"]),
        (bool | None, "is_bad", {"is_bad": bool | None}, [False]),
        (SCHEMA, ["label"], {"label": Any}, ["bad"]),
    ],
)
def test_answers_and_their_fields_are_typed_columns(output_type, output, fields, values):
    types, rows = add_columns(output_type, output)
    assert types == {"id": int, **fields}
    assert rows[0] == (1, *values)
    assert [*map(type, rows[0])] == [int, *map(type, values)]
    assert len(rows) == 2


def test_a_column_that_is_not_a_field_is_an_error_at_construction():
    handler = chat("http://localhost")
    with pytest.raises(OptionError, match=r"no field 'lable' \(output\). Did you mean 'label'"):
        handler.predict(ROWS, columns=["text"], output=["lable", "score"])
    with pytest.raises(OptionError, match="declare output={'score': float}"):
        handler.predict(ROWS, columns=["text"], output={"score": int})


PROGRAM = """
from __future__ import annotations
import dataclasses, sys, typing
import cloudpickle, pydantic
from runinference.openai_inference import (
    OpenAIChatModelHandler,
    OpenAICompletionsModelHandler,
)


class Inner(pydantic.BaseModel):
    a: int = 1


@dataclasses.dataclass
class Outer:
    inner: Inner
    more: list[Inner] = dataclasses.field(default_factory=list)


class Model(pydantic.BaseModel):
    inner: Inner
    outer: Outer


for output_type in (Inner, Outer, list[Outer], Model):
    handler = OpenAIChatModelHandler({url!r}, "shout", None, output_type=output_type)
    sys.stdout.buffer.write(cloudpickle.dumps(handler))
"""


def test_types_of_the_main_module_work_in_other_processes():
    with servers.llm() as url:
        program = PROGRAM.format(url=url)
        command = [sys.executable, "-c", program]
        pickled = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        stream = io.BytesIO(pickled)
        values = [pickle.load(stream).predict(["7 a"])[0].inference for _ in range(4)]
    inner, outer, outers, model = values
    assert (inner.a, outer.inner, outer.more) == (7, inner, [inner])
    assert outers == [outer]
    assert (model.inner, model.outer) == (inner, outer)


def test_an_error_does_not_contain_a_key_that_the_server_returns(monkeypatch):
    monkeypatch.setenv("KEY", "secret-123")
    with scripted_server(default=lambda body: reply("your key is secret-123")) as server:
        handler = OpenAIChatModelHandler(server.url, "shout", "KEY", output_type=Review)
        with pytest.raises(InvalidOutputError, match="your key is .the key.") as caught:
            handler.predict(["hi"])
    assert "secret-123" not in repr(caught.value)


# --- token counts, tool calls and reasoning


def test_keep_generation_returns_the_usage_and_the_reasoning_with_the_value():
    answer = reply(GOOD, reasoning_content="it seems good")
    found, _ = ask("bad", answer, keep_generation=True)
    assert found.value == Review(label="good", score=1)
    assert (found.text, found.usage) == (GOOD, {"prompt_tokens": 3, "completion_tokens": 2})
    assert found.choices[0]["message"]["reasoning_content"] == "it seems good"


def test_keep_generation_returns_tool_calls_without_a_value():
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    found, requests = ask(reply(None, "tool_calls", tool_calls=calls), keep_generation=True)
    assert (found.value, found.text, len(requests)) == (None, "", 1)
    assert found.choices[0]["message"]["tool_calls"] == calls
    error, _ = ask(reply(None, "tool_calls", tool_calls=calls))
    assert "called a tool instead of answering" in str(error)


def test_keep_generation_works_in_a_pipeline_with_keys_and_invalid_answers_are_errors():
    with scripted_server(default=lambda body: reply(GOOD)) as server:
        handler = KeyedModelHandler(chat(server.url, keep_generation=True))
        [(key, result)] = run([("k", "hi")], RunInference(handler))
    assert (key, result.inference.value.label) == ("k", "good")
    error, requests = ask("no", "no", "no", keep_generation=True)
    assert isinstance(error, InvalidOutputError)
    assert len(requests) == 3
    for options in ({"output_type": None}, {"keep_generation": "yes"}):
        with pytest.raises(OptionError, match="keep_generation"):
            chat("http://localhost:1", **{"keep_generation": True, **options})


# --- completions


def complete(*answers, **options):
    """Return the result for a prompt to which a server replies with texts or choices, and the prompts."""
    choices = [{"text": each} if isinstance(each, str) else each for each in answers]
    script = [{"choices": [{"index": 0, **choice}], "usage": {}} for choice in choices]
    options = {"output_type": Review, "throttle_delay_secs": 0, **options}
    with scripted_server(*script) as server:
        handler = OpenAICompletionsModelHandler(server.url, "m", None, **options)
        try:
            [result] = handler.predict(["Rate it:"])
        except InvalidOutputError as error:
            result = error
    assert all(body.keys() == {"model", "prompt"} for body in server.requests)
    return result, [body["prompt"] for body in server.requests]


def test_a_completion_becomes_a_value_after_another_attempt():
    result, [first, second] = complete("Good!", GOOD)
    assert (result.example, result.inference) == ("Rate it:", Review(label="good", score=1))
    assert first.startswith("Rate it:\n\n")
    assert '"label"' in first
    assert second.startswith("Rate it:\n\nGood!\n\nYour answer is invalid: it is not JSON")
    assert second.count(first.removeprefix("Rate it:\n\n")) == 1


def test_a_completion_keeps_the_generation_or_is_an_error():
    result, _ = complete(GOOD, keep_generation=True)
    assert (result.inference.value.label, result.inference.text) == ("good", GOOD)
    error, prompts = complete("x", "y", max_output_attempts=2)
    assert "Attempt 2 of 2" in str(error)
    assert len(prompts) == 2
    error, _ = complete({"text": GOOD[:9], "finish_reason": "length"})
    assert "cut off" in str(error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_type": Review, "max_request_size": 8}, "max_request_size is 8"),
        ({"max_output_attempts": 2}, "without output_type"),
        ({"output_type": Review, "parameters": {"n": 2}}, "'n'"),
    ],
)
def test_conflicting_options_of_completions_are_errors(options, message):
    with pytest.raises(OptionError, match=message):
        OpenAICompletionsModelHandler("http://localhost:1", "m", None, **options)


def test_completions_with_a_type_are_typed_columns_and_work_with_keys():
    choice = {"choices": [{"index": 0, "text": GOOD}]}
    with scripted_server(default=lambda body: choice) as server:
        handler = OpenAICompletionsModelHandler(server.url, "m", None, output_type=Review)
        assert handler.read_model_signature().fields["score"] is float
        [row] = handler.predict([{"t": "hi"}], columns=["t"], output=["label"])
        assert row.label == "good"
        results = run([(7, "a"), (8, "b")], RunInference(KeyedModelHandler(handler)))
    assert {key: result.inference.label for key, result in results} == {7: "good", 8: "good"}
