"""Answers of servers are read as the protocol has it, and what is wrong with them is told."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from runinference.errors import ElementError, ResultMismatchError, UnusableAnswerError
from runinference.remote.openai_protocol import (
    conversation,
    generations,
    said,
    texts,
    vectors,
    written,
)


def chat(content, **fields):
    return {"index": 0, "finish_reason": "stop", "message": {"content": content}, **fields}


def test_a_text_is_what_the_user_says_and_messages_stay_as_they_are():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert conversation("Hi") == [{"role": "user", "content": "Hi"}]
    assert conversation(messages) == messages
    assert conversation(tuple(messages)) == messages


@pytest.mark.parametrize(
    "example", [5, None, [], ["Hi"], {"role": "user"}, [{"content": "Hi"}], b"Hi"]
)
def test_what_is_no_conversation_is_told(example):
    with pytest.raises(ElementError, match="a text, or a list of messages"):
        conversation(example)


def test_what_is_no_text_is_told_with_its_place():
    assert texts(["a", np.str_("b")]) == ["a", "b"]
    with pytest.raises(
        ElementError, match=r"Element 1 of the request is 5 \(int\), and must be a text"
    ):
        texts(["a", 5])


def test_a_generation_holds_the_text_why_it_ended_all_choices_and_the_tokens():
    answer = {"choices": [chat("Hi")], "usage": {"total_tokens": 3}}
    [made] = generations(answer, 1, None, said)
    assert (made.text, made.finish_reason) == ("Hi", "stop")
    assert made.choices == answer["choices"]
    assert made.usage == {"total_tokens": 3}


def test_several_choices_go_to_the_example_that_asked_for_them_whatever_their_order():
    choices = [{"index": i, "text": str(i)} for i in (5, 0, 3, 1, 4, 2)]
    first, second = generations({"choices": choices, "usage": {}}, 2, 3, written)
    assert [choice["text"] for choice in first.choices] == ["0", "1", "2"]
    assert second.text == "3"
    assert first.usage is None


def test_choices_without_numbers_are_taken_in_their_order():
    choices = [{"text": "a"}, {"text": "b"}]
    assert [made.text for made in generations({"choices": choices}, 2, None, written)] == ["a", "b"]


@pytest.mark.parametrize(
    "answer",
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
    ],
)
def test_an_answer_that_is_none_is_told(answer):
    with pytest.raises(UnusableAnswerError):
        generations(answer, 1, None, said)


def test_an_error_in_place_of_an_answer_is_quoted():
    with pytest.raises(UnusableAnswerError, match="out of order"):
        generations({"error": "out of order"}, 1, None, said)


@pytest.mark.parametrize(("n", "asked"), [(0, None), (2, None), (1, 2), (3, 2)])
def test_more_or_fewer_choices_than_were_asked_for_are_told(n, asked):
    with pytest.raises(
        ResultMismatchError, match=f"gave {n} choices where {asked or 1} were asked for"
    ):
        generations({"choices": [chat("Hi", index=i) for i in range(n)]}, 1, asked, said)


def test_indices_that_are_no_numbering_are_told():
    choices = [{"index": i, "text": "a"} for i in (0, 0, 2)]
    with pytest.raises(UnusableAnswerError, match=r"indices \[0, 0, 2\], and not 0 to 2"):
        generations({"choices": choices}, 3, None, written)


def test_nothing_said_is_a_result_and_silence_is_an_error():
    assert said(chat("")) == ""
    assert said({"message": {"content": None, "tool_calls": [{"id": 1}]}}) == ""
    with pytest.raises(
        UnusableAnswerError, match=r"finish_reason 'length'\)\. .* raise max_tokens"
    ):
        said(chat(None, finish_reason="length"))
    with pytest.raises(UnusableAnswerError, match="refusal 'I will not'"):
        said({"message": {"content": None, "refusal": "I will not"}})


def test_a_completion_without_text_is_told():
    with pytest.raises(UnusableAnswerError, match="no text: its fields are"):
        written({"index": 0, "message": {}})


def test_vectors_come_in_the_order_of_the_texts_as_float32():
    data = [{"index": 1, "embedding": [3, 4]}, {"index": 0, "embedding": [0.5, 1]}]
    first, second = vectors({"data": data}, 2)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, [0.5, 1])
    np.testing.assert_array_equal(second, [3, 4])


def test_vectors_may_come_as_base64():
    packed = base64.b64encode(np.array([0.25, -2], "<f4").tobytes()).decode()
    [vector] = vectors({"data": [{"index": 0, "embedding": packed}]}, 1)
    np.testing.assert_array_equal(vector, [0.25, -2])


@pytest.mark.parametrize(
    "embedding",
    [None, [], "", "no base64!", "AAA=", [[1, 2]], [1, None], ["a"], 5, {"a": 1}, [float("nan")]],
)
def test_what_is_no_vector_is_told(embedding):
    with pytest.raises(UnusableAnswerError, match="An embedding is no list of numbers"):
        vectors({"data": [{"index": 0, "embedding": embedding}]}, 1)


def test_vectors_of_several_lengths_are_told():
    data = [{"embedding": [1, 2]}, {"embedding": [1, 2, 3]}]
    with pytest.raises(UnusableAnswerError, match=r"lengths \[2, 3\]"):
        vectors({"data": data}, 2)
    with pytest.raises(ResultMismatchError, match="gave 2 data where 3 were asked for"):
        vectors({"data": data}, 3)
