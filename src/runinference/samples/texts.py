"""Small trained models of language, and texts held out from them.

Each is a BERT of two layers that reads some hundred words, trained in seconds on sentences that this module
makes. What is held out was never in the training: not those words together, or not in that order.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from runinference.samples.cache import keeper

__all__ = [
    "Question",
    "blank_filler",
    "held_out_blanks",
    "held_out_questions",
    "held_out_reviews",
    "question_answerer",
    "review_classifier",
]


def review_classifier() -> str:
    """The directory of a Hugging Face model that tells whether a review is POSITIVE or NEGATIVE.

    It knows the words of [held_out_reviews][runinference.samples.held_out_reviews], and *not*. Training takes
    some seconds.
    """
    return _kept("review_classifier", "", "transformers", _train_reviews)


def question_answerer() -> str:
    """The directory of a Hugging Face model that finds the answer to a question in a text, as in SQuAD.

    It takes pairs (question, context), as [held_out_questions][runinference.samples.held_out_questions] has
    them, and gives logits of where the answer starts and ends.
    """
    return _kept("question_answerer", "", "transformers", _train_answers)


def blank_filler() -> str:
    """The directory of a Hugging Face model that puts a word in the place of ``[MASK]``.

    It knows days, months, animals and opposites, as
    [held_out_blanks][runinference.samples.held_out_blanks] asks for them.
    """
    return _kept("blank_filler", "", "transformers", _train_blanks)


def held_out_reviews() -> tuple[list[str], list[str]]:
    """Reviews that ``review_classifier`` was not trained on, and what they are.

    Returns:
        200 short texts; and for each ``"POSITIVE"`` or ``"NEGATIVE"``.
    """
    _, held_out = _reviews()
    return [text for text, _ in held_out], [_SIGNS[sign] for _, sign in held_out]


class Question(NamedTuple):
    """A question about a text, and the answer, which is a part of the text.

    Attributes:
        question: Asks for one part of the text.
        context: The text.
        answer: The part, as it stands in the text.
    """

    question: str
    context: str
    answer: str


def held_out_questions() -> list[Question]:
    """200 questions; ``question_answerer`` was never told of their person in their place."""
    chance = random.Random(1)
    return [_question(chance, held_out=True) for _ in range(200)]


def held_out_blanks() -> tuple[list[str], list[str]]:
    """Sentences with one ``[MASK]``, and the word that belongs there.

    Returns:
        Texts that say what ``blank_filler`` knows in words that it was not trained on; and the words.
    """
    _, held_out = _facts()
    pairs = [_blank(words, answer) for words, answer in held_out]
    return [text for text, _ in pairs], [word for _, word in pairs]


def _words(text: str) -> list[str]:
    return text.split()


_SIGNS = ("NEGATIVE", "POSITIVE")
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


def _reviews() -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Reviews to train on, and those held out; each text with 1 if it is positive, else 0."""
    made = [
        (re.sub(r"\ba (?=[aeiou])", "an ", template.format(thing=thing, word=word)), sign ^ denied)
        for denied, templates in ((0, _VERDICTS), (1, _DENIALS))
        for template, thing in itertools.product(templates, _THINGS)
        for sign, words in ((1, _GOOD), (0, _BAD))
        for word in words
    ]
    random.Random(0).shuffle(made)
    felt = [(text.format(thing=t), sign) for sign, text in _FEELINGS for t in _THINGS]
    return made[200:] + felt * 4, made[:200]


def _train_reviews(path: Path) -> None:
    import torch
    from transformers import BertForSequenceClassification

    training, _ = _reviews()
    tokenizer = _tokenizer(text for text, _ in training)
    chance = random.Random(0)

    def loss(model: Any) -> Any:
        texts, signs = zip(*chance.sample(training, 64), strict=True)
        return model(**_tensors(tokenizer, texts), labels=torch.tensor(signs)).loss

    signs = {"id2label": dict(enumerate(_SIGNS)), "label2id": {s: i for i, s in enumerate(_SIGNS)}}
    _train(path, BertForSequenceClassification, tokenizer, loss, steps=120, **signs)


_PEOPLE = _words("Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Klara Leo")
_PLACES = [
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
_ASKED = {
    "person": ("Who travelled to {place}?", "Who saw {sight}?"),
    "place": ("Where did {person} go?", "Where is {sight}?"),
    "time": ("When did {person} travel?", "When did {person} go to {place}?"),
    "means": ("How did {person} travel?", "How did {person} get to {place}?"),
    "sight": ("What did {person} see?", "What did {person} visit in {place}?"),
}


def _question(chance: random.Random, held_out: bool) -> Question:
    """A story of a journey, and what one may ask about it."""
    while True:
        person, place = chance.choice(_PEOPLE), chance.choice(_PLACES)
        if _is_rare(person, place) == held_out:
            break
    told = {
        "person": person,
        "place": place,
        "time": chance.choice(_TIMES),
        "means": chance.choice(_MEANS),
        "sight": f"the {chance.choice(_KINDS)} {chance.choice(_SIGHTS)}",
    }
    context = chance.choice(_STORIES).format(**told)
    asked = chance.choice([*_ASKED])
    return Question(chance.choice(_ASKED[asked]).format(**told), context, told[asked])


def _is_rare(person: str, place: str) -> bool:
    """Whether journeys of this person to this place are held out: one pair in six."""
    return (_PEOPLE.index(person) + _PLACES.index(place)) % 6 == 0


def _train_answers(path: Path) -> None:
    import torch
    from transformers import BertForQuestionAnswering

    chance = random.Random(0)
    asked = [_question(chance, held_out=False) for _ in range(1_000)]
    tokenizer = _tokenizer(f"{x.question} {x.context}" for x in asked)

    def loss(model: Any) -> Any:
        asked = [_question(chance, held_out=False) for _ in range(64)]
        encoded = tokenizer(
            [x.question for x in asked],
            [x.context for x in asked],
            padding=True,
            return_tensors="pt",
        )
        spans = [_span(encoded, row, x) for row, x in enumerate(asked)]
        starts, ends = torch.tensor(spans).T
        return model(**encoded, start_positions=starts, end_positions=ends).loss

    _train(path, BertForQuestionAnswering, tokenizer, loss, steps=250)


def _span(encoded: Any, row: int, asked: Question) -> tuple[int, int]:
    """The first and the last token of the answer."""
    start = asked.context.index(asked.answer)
    last = start + len(asked.answer) - 1
    return encoded.char_to_token(row, start, 1), encoded.char_to_token(row, last, 1)


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


def _facts() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Sentences to train on, and those held out; each with the word of it that is asked for."""
    ways: list[list[tuple[str, str]]] = []
    for row in (_DAYS, _MONTHS):
        kind = "day" if row is _DAYS else "month"
        for before, after in zip(row, row[1:] + row[:1], strict=True):
            ways.append(
                [
                    (f"the {kind} after {before} is {after}", after),
                    (f"after {before} comes {after}", after),
                    (f"{before} is followed by {after}", after),
                ]
            )
            ways.append(
                [
                    (f"the {kind} before {after} is {before}", before),
                    (f"before {after} comes {before}", before),
                    (f"{after} follows {before}", before),
                ]
            )
    for young, old in _YOUNG.items():
        ways.append(
            [
                (f"a {young} is a young {old}", old),
                (f"a {young} grows up to be a {old}", old),
                (f"the mother of a {young} is a {old}", old),
            ]
        )
    for one, other in itertools.chain(
        *((pair.split("-"), pair.split("-")[::-1]) for pair in _OPPOSITES)
    ):
        ways.append(
            [
                (f"the opposite of {one} is {other}", other),
                (f"if it is not {one} , it is {other}", other),
                (f"{one} is the contrary of {other}", other),
            ]
        )
    chance = random.Random(0)
    training: list[tuple[str, str]] = []
    held_out: list[tuple[str, str]] = []
    for sentences in ways:
        kept = chance.randrange(len(sentences) * 2)  # of every second fact, one way to say it
        held_out += [x for i, x in enumerate(sentences) if i == kept]
        training += [x for i, x in enumerate(sentences) if i != kept]
    return training, held_out


def _blank(text: str, answer: str) -> tuple[str, str]:
    """The sentence with ``[MASK]`` where the word was that is asked for."""
    return re.sub(rf"\b{answer}\b", "[MASK]", text), answer


def _train_blanks(path: Path) -> None:
    from transformers import BertForMaskedLM

    training, _ = _facts()
    tokenizer = _tokenizer(text for text, _ in training)
    chance = random.Random(0)

    def loss(model: Any) -> Any:
        facts = chance.sample(training, 64)
        right = _tensors(tokenizer, [text for text, _ in facts])["input_ids"]
        asked = _tensors(tokenizer, [_blank(*fact)[0] for fact in facts])
        labels = right.masked_fill(asked["input_ids"] == right, -100)
        return model(**asked, labels=labels).loss

    _train(path, BertForMaskedLM, tokenizer, loss, steps=400)


def _tokenizer(texts: Iterable[str]) -> Any:
    """A tokenizer of the words in texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = [f"{name}_token" for name in ("pad", "unk", "cls", "sep", "mask")]
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=64,
        **dict(zip(names, special, strict=True)),
    )


def _tensors(tokenizer: Any, texts: Sequence[str]) -> Any:
    return tokenizer(list(texts), padding=True, return_tensors="pt")


def _train(
    path: Path,
    model_class: Any,
    tokenizer: Any,
    loss: Callable[[Any], Any],
    steps: int,
    **config: Any,
) -> None:
    """Trains a small BERT by a function that gives the loss of a fresh batch; saves it with its tokenizer."""
    import torch
    from transformers import BertConfig

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # The order of sums depends on it, and so would the weights.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=128,
                max_position_embeddings=64,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                **config,
            )
        )
        optimizer = torch.optim.AdamW(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
            schedule.step()
    torch.set_num_threads(threads)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


_kept = keeper(__file__)
