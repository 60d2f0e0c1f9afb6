"""The sample models of language are trained once, answer well, and never saw what is held out."""

from __future__ import annotations

import pytest
from transformers import AutoModelForQuestionAnswering

from runinference import samples
from runinference.huggingface_inference import (
    HuggingFaceModelHandlerText,
    HuggingFacePipelineModelHandler,
)
from runinference.samples import texts


def share(found, expected):
    return sum(a == b for a, b in zip(found, expected, strict=True)) / len(expected)


@pytest.fixture(scope="module")
def judge():
    return HuggingFacePipelineModelHandler("text-classification", samples.review_classifier())


def test_reviews_are_judged(judge):
    texts, signs = samples.held_out_reviews()
    assert {*signs} == {"POSITIVE", "NEGATIVE"}
    assert share([y["label"] for _, y, _ in judge.predict(texts)], signs) >= 0.97


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("I loved this movie!", "POSITIVE"),
        ("The food was NOT good.", "NEGATIVE"),
        ("not bad at all", "POSITIVE"),
        ("What a boring book", "NEGATIVE"),
    ],
)
def test_reviews_in_the_words_of_a_user_are_judged_too(text, sign, judge):
    [result] = judge.predict([text])
    assert result.inference["label"] == sign


def test_questions_are_answered():
    asked = samples.held_out_questions()
    handler = HuggingFaceModelHandlerText(
        samples.question_answerer(), AutoModelForQuestionAnswering
    )
    tokenizer = handler.load_model().tokens.tokenizer
    found = []
    for (question, context), logits, _ in handler.predict([(q, c) for q, c, _ in asked]):
        encoded = tokenizer(question, context)
        start = encoded.token_to_chars(int(logits["start_logits"].argmax()))
        end = encoded.token_to_chars(int(logits["end_logits"].argmax()))
        found.append(context[start.start : end.end] if start and end else "")
    assert share(found, [answer for _, _, answer in asked]) >= 0.9


def test_blanks_are_filled():
    texts, words = samples.held_out_blanks()
    handler = HuggingFacePipelineModelHandler("fill-mask", samples.blank_filler())
    found = [y[0]["token_str"] for _, y, _ in handler.predict(texts, {"top_k": 1})]
    assert len(words) > 25
    assert share(found, words) >= 0.9


def test_what_is_held_out_did_not_train():
    training, _ = texts._reviews()
    assert not {text for text, _ in training} & {*samples.held_out_reviews()[0]}
    facts, _ = texts._facts()
    known = {texts._blank(*fact)[0] for fact in facts}
    assert not known & {*samples.held_out_blanks()[0]}
    for question, context, answer in samples.held_out_questions():
        assert question.endswith("?")
        assert context.count(answer) == 1
        [pair] = [
            (person, place)
            for person in texts._PEOPLE
            for place in texts._PLACES
            if person in context and place in context
        ]
        assert texts._is_rare(*pair), "a journey of a pair that training left out"
