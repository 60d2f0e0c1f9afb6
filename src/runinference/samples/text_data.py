"""Generated texts to train and test the sample language models: reviews, questions and facts.

The held-out texts never occur in the training data. Every generator is seeded, so the texts never change.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from typing import NamedTuple

_Review = tuple[str, int]
_Fact = tuple[str, str]


class Question(NamedTuple):
    """A question about a text, with its answer.

    Attributes:
        question: A question that a span of the text answers.
        context: The text.
        answer: The span, exactly as it occurs in the text.
    """

    question: str
    context: str
    answer: str


def held_out_reviews() -> tuple[list[str], list[str]]:
    """Return reviews that ``review_classifier`` wasn't trained on, and their labels.

    Returns:
        A list of 200 short texts, and a list with one label per text: ``"POSITIVE"`` or ``"NEGATIVE"``.
    """
    _, held_out = make_reviews()
    return [text for text, _ in held_out], [LABELS[label] for _, label in held_out]


def held_out_questions() -> list[Question]:
    """Return 200 questions whose combinations of person and place ``question_answerer`` wasn't trained on."""
    rng = random.Random(1)
    return [make_question(rng, held_out=True) for _ in range(200)]


def held_out_blanks() -> tuple[list[str], list[str]]:
    """Return sentences with one ``[MASK]``, and the missing words.

    Returns:
        A list of sentences, and a list with one word per sentence. The sentences state facts that ``blank_filler``
        was trained on, in other words.
    """
    _, held_out = make_facts()
    return [mask(text, answer) for text, answer in held_out], [answer for _, answer in held_out]


_words = str.split

LABELS = ("NEGATIVE", "POSITIVE")
_GOOD = _words(
    "amazing beautiful brilliant charming clever delightful excellent exciting fantastic funny good great "
    "helpful impressive lovely marvellous moving perfect pleasant superb touching wonderful"
)
_BAD = _words(
    "annoying awful bad boring clumsy confusing disappointing dreadful dull horrible lame mediocre noisy "
    "poor predictable rude slow stupid terrible tedious ugly weak"
)
_THINGS = _words(
    "acting actor book camera cast dialogue director ending film food hotel movie music picture place "
    "plot product script service show song staff story"
)
_VERDICTS = (
    "the {thing} was {word}",
    "the {thing} is really {word}",
    "what a {word} {thing} !",
    "i found the {thing} very {word}",
    "a {word} {thing} , if you ask me",
    "{word} {thing} , from the first minute to the last",
)
_DENIALS = (
    "the {thing} was not {word}",
    "the {thing} is not {word} at all",
    "not a {word} {thing}",
    "i did not find the {thing} {word}",
)
_FEELINGS = (
    (1, "i loved the {thing}"),
    (1, "i really enjoyed this {thing}"),
    (1, "i would recommend the {thing} to everyone"),
    (0, "i hated the {thing}"),
    (0, "i really regret this {thing}"),
    (0, "i would not recommend the {thing} to anyone"),
    (0, "i did not like the {thing}"),
    (0, "this {thing} is a waste of time"),
)


def make_reviews() -> tuple[list[_Review], list[_Review]]:
    """Make the reviews to train on, and the held-out reviews, each with the index of its label."""
    opinions = [
        (
            re.sub(r"\ba (?=[aeiou])", "an ", template.format(thing=thing, word=word)),
            label ^ negated,
        )
        for negated, templates in ((0, _VERDICTS), (1, _DENIALS))
        for template, thing in itertools.product(templates, _THINGS)
        for label, words in ((1, _GOOD), (0, _BAD))
        for word in words
    ]
    random.Random(0).shuffle(opinions)
    feelings = [(text.format(thing=thing), label) for label, text in _FEELINGS for thing in _THINGS]
    return opinions[200:] + feelings * 4, opinions[:200]


PEOPLE = _words("Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Klara Leo")
PLACES = [
    *_words("Athens Berlin Cairo Dublin Lisbon London Oslo Paris Rome Vienna"),
    "New York",
    "Cape Town",
]
_TIMES = [*_words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"), "Christmas Eve"]
_MEANS = [*_words("train plane ship bus car bicycle"), "night train", "hot air balloon"]
_SIGHTS = _words("castle cathedral harbour museum opera zoo")
_KINDS = _words("old new royal famous")
_STORIES = (
    "{person} travelled to {place} on {time} by {means} to see {sight}.",
    "On {time}, {person} travelled to {place} by {means} and saw {sight}.",
    "{person} saw {sight} in {place}, and had come by {means} on {time}.",
    "To see {sight}, {person} went to {place} on {time}, by {means}.",
)
_QUESTIONS = {
    "person": ("Who travelled to {place}?", "Who saw {sight}?"),
    "place": ("Where did {person} go?", "Where is {sight}?"),
    "time": ("When did {person} travel?", "When did {person} go to {place}?"),
    "means": ("How did {person} travel?", "How did {person} get to {place}?"),
    "sight": ("What did {person} see?", "What did {person} visit in {place}?"),
}


def make_question(rng: random.Random, held_out: bool) -> Question:
    """Make a text about a journey, and a question about it."""
    while True:
        person, place = rng.choice(PEOPLE), rng.choice(PLACES)
        if is_held_out(person, place) == held_out:
            break
    values = {
        "person": person,
        "place": place,
        "time": rng.choice(_TIMES),
        "means": rng.choice(_MEANS),
        "sight": f"the {rng.choice(_KINDS)} {rng.choice(_SIGHTS)}",
    }
    context = rng.choice(_STORIES).format(**values)
    topic = rng.choice([*_QUESTIONS])
    return Question(rng.choice(_QUESTIONS[topic]).format(**values), context, values[topic])


def is_held_out(person: str, place: str) -> bool:
    """Return whether this combination is held out. One in six is."""
    return (PEOPLE.index(person) + PLACES.index(place)) % 6 == 0


_DAYS = _words("monday tuesday wednesday thursday friday saturday sunday")
_MONTHS = _words(
    "january february march april may june july august september october november december"
)
_YOUNG = {
    "puppy": "dog", "kitten": "cat", "calf": "cow", "lamb": "sheep", "foal": "horse", "chick": "hen",
    "piglet": "pig", "duckling": "duck", "cub": "bear", "tadpole": "frog",
}  # fmt: skip
_OPPOSITES = _words(
    "hot-cold big-small good-bad old-new light-dark early-late fast-slow rich-poor wet-dry full-empty"
)


def make_facts() -> tuple[list[_Fact], list[_Fact]]:
    """Make the sentences to train on, and the held-out sentences, each with the word to predict.

    Of every second fact, one of the sentences that state it is held out.
    """
    rng = random.Random(0)
    training: list[_Fact] = []
    held_out: list[_Fact] = []
    for sentences in _state_facts():
        held_out_index = rng.randrange(len(sentences) * 2)
        held_out += [x for i, x in enumerate(sentences) if i == held_out_index]
        training += [x for i, x in enumerate(sentences) if i != held_out_index]
    return training, held_out


def mask(text: str, answer: str) -> str:
    """Replace a word of a text by ``[MASK]``."""
    return re.sub(rf"\b{answer}\b", "[MASK]", text)


def _state_facts() -> Iterator[list[_Fact]]:
    """State each fact in several ways."""
    for kind, names in (("day", _DAYS), ("month", _MONTHS)):
        for before, after in zip(names, names[1:] + names[:1], strict=True):
            yield [
                (f"the {kind} after {before} is {after}", after),
                (f"after {before} comes {after}", after),
                (f"{before} is followed by {after}", after),
            ]
            yield [
                (f"the {kind} before {after} is {before}", before),
                (f"before {after} comes {before}", before),
                (f"{after} follows {before}", before),
            ]
    for young, adult in _YOUNG.items():
        yield [
            (f"a {young} is a young {adult}", adult),
            (f"a {young} grows up to be a {adult}", adult),
            (f"the mother of a {young} is a {adult}", adult),
        ]
    for pair in _OPPOSITES:
        for one, other in (pair.split("-"), pair.split("-")[::-1]):
            yield [
                (f"the opposite of {one} is {other}", other),
                (f"if it is not {one} , it is {other}", other),
                (f"{one} is the contrary of {other}", other),
            ]
