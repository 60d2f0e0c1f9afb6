"""The sample language models are accurate on texts that they weren't trained on."""

from __future__ import annotations

import itertools

import pytest
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from runinference import samples
from runinference.huggingface_inference import (
    HuggingFaceModelHandlerText,
    HuggingFacePipelineModelHandler,
)
from runinference.samples import text_data


def accuracy(found, expected):
    return sum(a == b for a, b in zip(found, expected, strict=True)) / len(expected)


@pytest.fixture(scope="module")
def classifier():
    return HuggingFacePipelineModelHandler("text-classification", samples.review_classifier())


def test_classifies_reviews(classifier):
    texts, labels = samples.held_out_reviews()
    assert {*labels} == {"POSITIVE", "NEGATIVE"}
    assert accuracy([y["label"] for _, y, _ in classifier.predict(texts)], labels) >= 0.97


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("I loved this movie!", "POSITIVE"),
        ("The food was NOT good.", "NEGATIVE"),
        ("not bad at all", "POSITIVE"),
        ("What a boring book", "NEGATIVE"),
    ],
)
def test_classifies_reviews_in_other_words(text, label, classifier):
    [result] = classifier.predict([text])
    assert result.inference["label"] == label


def test_answers_questions():
    questions = samples.held_out_questions()
    handler = HuggingFaceModelHandlerText(
        samples.question_answerer(), AutoModelForQuestionAnswering
    )
    tokenizer = handler.load_model().tokenizer.tokenizer
    found = []
    for (question, context), logits, _ in handler.predict([(q, c) for q, c, _ in questions]):
        encoded = tokenizer(question, context)
        start = encoded.token_to_chars(int(logits["start_logits"].argmax()))
        end = encoded.token_to_chars(int(logits["end_logits"].argmax()))
        found.append(context[start.start : end.end] if start and end else "")
    assert accuracy(found, [answer for _, _, answer in questions]) >= 0.9


def test_fills_blanks():
    texts, words = samples.held_out_blanks()
    handler = HuggingFacePipelineModelHandler("fill-mask", samples.blank_filler())
    found = [y[0]["token_str"] for _, y, _ in handler.predict(texts, {"top_k": 1})]
    assert len(words) > 25
    assert accuracy(found, words) >= 0.9


def test_ranks_passages_by_the_share_of_the_words_of_the_query():
    handler = HuggingFaceModelHandlerText(samples.reranker(), AutoModelForSequenceClassification)
    passages = [x.context for x in samples.held_out_questions()]
    shares = {"Anna in Oslo": ["Anna", "Oslo"], "the old zoo": ["old", "zoo"]}
    for query, words in shares.items():
        results = handler.predict([(query, passage) for passage in passages])
        scores = [float(result.inference["logits"]) for result in results]
        by_share = {}
        for passage, score in zip(passages, scores, strict=True):
            by_share.setdefault(sum(word in passage for word in words), []).append(score)
        groups = [by_share[share] for share in sorted(by_share)]
        assert len(groups) == len(words) + 1
        for fewer, more in itertools.pairwise(groups):
            assert max(fewer) + 1 < min(more)


def test_held_out_texts_are_not_in_the_training_data():
    training, _ = text_data.make_reviews()
    assert not {text for text, _ in training} & {*samples.held_out_reviews()[0]}
    facts, _ = text_data.make_facts()
    known = {text_data.mask(*fact) for fact in facts}
    assert not known & {*samples.held_out_blanks()[0]}
    for question, context, answer in samples.held_out_questions():
        assert question.endswith("?")
        assert context.count(answer) == 1
        [pair] = [
            (person, place)
            for person in text_data.PEOPLE
            for place in text_data.PLACES
            if person in context and place in context
        ]
        assert text_data.is_held_out(*pair)
