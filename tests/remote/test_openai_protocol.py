"""Valid responses of the OpenAI API are parsed, and invalid ones raise an error."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest

from runinference.errors import ElementError, ResultMismatchError, UnusableAnswerError
from runinference.remote.openai_protocol import (
    get_chat_text,
    get_completion_text,
    parse_embeddings,
    parse_generations,
    to_messages,
    to_strings,
)


def chat(content, **fields):
    return {"index": 0, "finish_reason": "stop", "message": {"content": content}, **fields}


def test_a_string_becomes_a_user_message_and_messages_are_unchanged():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert to_messages("Hi") == [{"role": "user", "content": "Hi"}]
    assert to_messages(messages) == messages
    assert to_messages(tuple(messages)) == messages


@pytest.mark.parametrize(
    "example", [5, None, [], ["Hi"], {"role": "user"}, [{"content": "Hi"}], b"Hi"]
)
def test_rejects_an_example_that_is_not_a_conversation(example):
    with pytest.raises(ElementError, match="must be a string, or a list of messages"):
        to_messages(example)


def test_names_the_index_of_an_example_that_is_not_a_string():
    assert to_strings(["a", np.str_("b")]) == ["a", "b"]
    with pytest.raises(ElementError, match=r"Element 1 must be a string. Got 5 \(int\)"):
        to_strings(["a", 5])


def test_parses_text_finish_reason_choices_and_usage():
    response = {"choices": [chat("Hi")], "usage": {"total_tokens": 3}}
    [generation] = parse_generations(response, 1, None, get_chat_text)
    assert (generation.text, generation.finish_reason) == ("Hi", "stop")
    assert generation.choices == response["choices"]
    assert generation.usage == {"total_tokens": 3}


TEXT = {"type": "text", "text": "hel"}
MESSAGES = [
    ({"content": "hello"}, "hello"),
    ({"content": ""}, ""),
    ({"content": [TEXT, {"type": "text", "text": "lo"}]}, "hello"),
    ({"content": [TEXT, "lo"]}, "hello"),
    ({"content": [{"type": "output_text", "text": "hello"}]}, "hello"),
    ({"content": {"type": "text", "text": "hello"}}, "hello"),
    ({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hi"}]}, "hi"),
    ({"content": [{"type": "reasoning", "text": "hm"}, TEXT]}, "hel"),
    ({"content": [{"type": "thinking", "text": "hm"}, "hi"]}, "hi"),
    ({"content": [{"type": "text", "text": {"value": "hi", "annotations": []}}]}, "hi"),
    ({"content": [TEXT, {"type": "image_url", "image_url": {"url": "x"}}]}, "hel"),
    ({"content": "hello", "reasoning_content": "hm"}, "hello"),
    ({"content": None, "tool_calls": [{"id": "1"}]}, ""),
    ({"content": "", "tool_calls": [{"id": "1"}]}, ""),
    ({"content": None, "function_call": {"name": "f", "arguments": "{}"}}, ""),
    ({"content": "I call", "function_call": {"name": "f", "arguments": "{}"}}, "I call"),
    ({"content": None, "audio": {"id": "1", "transcript": "hello"}}, "hello"),
]


@pytest.mark.parametrize(("message", "text"), MESSAGES)
def test_returns_the_text_of_each_form_of_message(message, text):
    assert get_chat_text({"index": 0, "finish_reason": "stop", "message": message}) == text


NO_TEXT = [
    ({"content": None}, "stop", "returned no text"),
    ({}, "stop", "returned no text"),
    ({"content": None, "refusal": "I can't"}, "stop", 'refusal "I can\'t"'),
    ({"content": "", "refusal": "no"}, "stop", "refusal 'no'"),
    ({"content": [{"type": "refusal", "refusal": "no"}]}, "stop", "refusal 'no'"),
    ({"content": None, "reasoning_content": "hm"}, "length", "only its reasoning"),
    ({"content": "", "reasoning": "hm"}, "stop", "only its reasoning"),
    ({"content": [{"type": "thinking", "thinking": "hm"}]}, "length", "only its reasoning"),
    ({"content": [{"type": "reasoning", "text": "hm"}]}, "stop", "only its reasoning"),
    ({"content": ""}, "length", "increase max_tokens"),
    ({"content": ""}, "content_filter", "content filter removed it"),
    ({"content": [{"type": "image_url", "image_url": {}}]}, "stop", "content of type image_url"),
    ({"content": 5}, "stop", "content of type int"),
    ({"content": [], "tool_calls": []}, "stop", "returned no text"),
]


@pytest.mark.parametrize(("message", "reason", "expected"), NO_TEXT)
def test_says_why_a_message_has_no_text(message, reason, expected):
    with pytest.raises(UnusableAnswerError, match=re.escape(expected)):
        get_chat_text({"index": 0, "finish_reason": reason, "message": message})


@pytest.mark.parametrize(
    "choice", [{"index": 0, "delta": {"content": "x"}}, {"text": "x"}, {"message": "x"}]
)
def test_rejects_a_choice_of_another_api(choice):
    with pytest.raises(UnusableAnswerError, match="has no message: its fields are"):
        get_chat_text(choice)


def test_rejects_base64_of_another_type_than_float():
    item = {"index": 0, "embedding": base64.b64encode(bytes(8)).decode()}
    assert parse_embeddings({"data": [item]}, 1, {})[0].tolist() == [0, 0]
    with pytest.raises(UnusableAnswerError, match="base64 of type 'int8'.*Remove output_dtype"):
        parse_embeddings({"data": [item]}, 1, {"output_dtype": "int8"})


@pytest.mark.parametrize(
    "embedding", [["1", "2"], [True], [[1.0]], [1e300], {"float": [1]}, "%%%", "AAA="]
)
def test_rejects_an_embedding_that_is_not_a_list_of_float32_numbers(embedding):
    with pytest.raises(UnusableAnswerError, match="not a list of numbers"):
        parse_embeddings({"data": [{"index": 0, "embedding": embedding}]}, 1)


def test_rejects_choices_that_are_nested_too_deeply_to_be_pickled():
    deep = 1
    for _ in range(500):
        deep = [deep]
    with pytest.raises(UnusableAnswerError, match="nested too deeply"):
        parse_generations({"choices": [chat("Hi", logprobs=deep)]}, 1, None, get_chat_text)


def test_assigns_choices_to_examples_by_index():
    choices = [{"index": i, "text": str(i)} for i in (5, 0, 3, 1, 4, 2)]
    first, second = parse_generations({"choices": choices, "usage": {}}, 2, 3, get_completion_text)
    assert [choice["text"] for choice in first.choices] == ["0", "1", "2"]
    assert second.text == "3"
    assert first.usage is None


def test_keeps_the_order_of_choices_without_an_index():
    choices = [{"text": "a"}, {"text": "b"}]
    assert [
        generation.text
        for generation in parse_generations({"choices": choices}, 2, None, get_completion_text)
    ] == ["a", "b"]


@pytest.mark.parametrize(
    "response",
    [
        None,
        [],
        "text",
        {},
        {"choices": None},
        {"choices": "a"},
        {"choices": [5]},
        {"choices": [{}]},
        {"choices": [{"message": "Hi"}]},
        {"choices": [{"message": {}}]},
        {"choices": [chat(None)]},
        {"choices": [chat(5)]},
        {"error": {"message": "out of order"}},
        {"choices": [chat("Hi")], "errors": [{"message": "out of order"}]},
        {"choices": [chat("", finish_reason="error")]},
        {"choices": [chat("Hi", finish_reason="error")]},
    ],
)
def test_rejects_an_invalid_response(response):
    with pytest.raises(UnusableAnswerError):
        parse_generations(response, 1, None, get_chat_text)


def test_quotes_an_error_field_of_the_response():
    with pytest.raises(UnusableAnswerError, match="out of order"):
        parse_generations({"error": "out of order"}, 1, None, get_chat_text)


@pytest.mark.parametrize(("n", "n_choices"), [(0, None), (2, None), (1, 2), (3, 2)])
def test_rejects_the_wrong_number_of_choices(n, n_choices):
    with pytest.raises(ResultMismatchError, match=f"returned {n} choices, not {n_choices or 1}"):
        parse_generations(
            {"choices": [chat("Hi", index=i) for i in range(n)]}, 1, n_choices, get_chat_text
        )


def test_rejects_inconsistent_indices():
    choices = [{"index": i, "text": "a"} for i in (0, 0, 2)]
    with pytest.raises(UnusableAnswerError, match=r"indices \[0, 0, 2\], not 0 to 2"):
        parse_generations({"choices": choices}, 3, None, get_completion_text)


def test_an_empty_text_is_a_result_and_a_missing_text_is_an_error():
    assert get_chat_text(chat("")) == ""
    assert get_chat_text({"message": {"content": None, "tool_calls": [{"id": 1}]}}) == ""
    with pytest.raises(
        UnusableAnswerError, match=r"finish_reason 'length'\)\. .* increase max_tokens"
    ):
        get_chat_text(chat(None, finish_reason="length"))
    with pytest.raises(UnusableAnswerError, match="refusal 'I will not'"):
        get_chat_text({"message": {"content": None, "refusal": "I will not"}})


def test_rejects_a_completion_without_text():
    with pytest.raises(UnusableAnswerError, match="no text: its fields are"):
        get_completion_text({"index": 0, "message": {}})


def test_returns_float32_embeddings_in_the_order_of_the_texts():
    data = [{"index": 1, "embedding": [3, 4]}, {"index": 0, "embedding": [0.5, 1]}]
    first, second = parse_embeddings({"data": data}, 2)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, [0.5, 1])
    np.testing.assert_array_equal(second, [3, 4])


def test_decodes_base64_embeddings():
    encoded = base64.b64encode(np.array([0.25, -2], "<f4").tobytes()).decode()
    [vector] = parse_embeddings({"data": [{"index": 0, "embedding": encoded}]}, 1)
    np.testing.assert_array_equal(vector, [0.25, -2])


@pytest.mark.parametrize(
    "embedding",
    [None, [], "", "no base64!", "AAA=", [[1, 2]], [1, None], ["a"], 5, {"a": 1}, [float("nan")]],
)
def test_rejects_an_embedding_that_is_not_a_vector(embedding):
    with pytest.raises(UnusableAnswerError, match="An embedding is not a list of numbers"):
        parse_embeddings({"data": [{"index": 0, "embedding": embedding}]}, 1)


def test_rejects_embeddings_of_different_lengths():
    data = [{"embedding": [1, 2]}, {"embedding": [1, 2, 3]}]
    with pytest.raises(UnusableAnswerError, match=r"lengths \[2, 3\]"):
        parse_embeddings({"data": data}, 2)
    with pytest.raises(ResultMismatchError, match="returned 2 data, not 3"):
        parse_embeddings({"data": data}, 3)
