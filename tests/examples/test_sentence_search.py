"""Tests of examples/sentence_search.py."""

import json
import re
from pathlib import Path

import pytest


def read_lines(path):
    lines = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
    return {line["query"]: line["found"] for line in lines}


def test_finds_the_most_similar_sentences(run_example, load_example):
    printed = run_example("sentence_search")
    found = read_lines(re.search(r"Found: (\S+\.jsonl)", printed)[1])
    best = {query: [x["sentence"] for x in matches] for query, matches in found.items()}
    assert {*best["pets at home"][:2]} == {
        "A kitten is asleep on the sofa.",
        "The dog barks at the postman.",
    }
    assert {*best["how do I make dinner"][:2]} == {
        "Bake the bread for forty minutes.",
        "Boil the potatoes in salted water.",
    }
    assert best["my computer is broken"][0] == "My laptop does not start any more."
    assert best["weather forecast"][0] == "Heavy rain is expected in the mountains tonight."
    assert len(best) == 6
    assert all(len(matches) == 3 for matches in best.values())

    import sentence_transformers

    example = load_example("sentence_search")
    model = sentence_transformers.SentenceTransformer(example.default_model(), device="cpu")
    for query, matches in found.items():
        sentences = [x["sentence"] for x in matches]
        [cosines] = model.similarity(model.encode([query]), model.encode(sentences)).tolist()
        assert [x["cosine"] for x in matches] == pytest.approx(cosines, abs=1e-3)
        assert cosines == sorted(cosines, reverse=True)


def test_searches_custom_files(load_example, tmp_path):
    (tmp_path / "sentences.txt").write_text("A cat sleeps.\n\nTaxes are due.\n")
    (tmp_path / "queries.txt").write_text("kitten\n")
    load_example("sentence_search").run(
        [
            *("--input", str(tmp_path / "sentences.txt")),
            *("--queries", str(tmp_path / "queries.txt")),
            *("--output", str(tmp_path / "found")),
            *("--top", "5"),
            "--job_name=passed-through-to-beam",
        ]
    )
    [matches] = read_lines(tmp_path / "found.jsonl").values()
    assert [x["sentence"] for x in matches] == ["A cat sleeps.", "Taxes are due."]
