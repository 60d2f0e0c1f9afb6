"""Tests of examples/reranker.py."""

import json
import re
from pathlib import Path

import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import BertForSequenceClassification

from tiny_transformers import bert, saved


def read_lines(path):
    lines = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
    return {line["query"]: line["passages"] for line in lines}


def test_passages_with_the_words_of_the_query_come_first(run_example):
    ranked = read_lines(re.search(r"Ranked: (\S+\.jsonl)", run_example("reranker"))[1])
    assert len(ranked) == 3
    for query, passages in ranked.items():
        names = re.findall(r"(?<!^)\b[A-Z]\w+", query)
        assert all(name in passages[0]["passage"] for name in names)
        assert len(passages) == 3
        assert passages[0]["score"] > passages[1]["score"] >= passages[2]["score"]


@pytest.mark.parametrize("top", [2, 9])
def test_scores_and_order_are_those_of_a_cross_encoder(top, load_example, tmp_path):
    model = saved(tmp_path / "model", BertForSequenceClassification(bert(num_labels=1)))
    passages = ["the cat sat", "good dog", "the dog ran " * 30, "cat", "the good cat ran"]
    queries = ["the cat", "good dog ran"]
    candidates = [
        {"query": q, "passage": p, "id": i} for q in queries for i, p in enumerate(passages)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, candidates)))
    load_example("reranker").run(
        [
            *("--input", str(tmp_path / "in.jsonl")),
            *("--output", str(tmp_path / "out")),
            *("--model", model, "--top", str(top)),
            "--job_name=passed-through-to-beam",
        ]
    )
    encoder = CrossEncoder(model, device="cpu")
    for query, found in read_lines(tmp_path / "out.jsonl").items():
        expected = encoder.rank(query, passages, top_k=top)
        assert [each["passage"] for each in found] == [passages[x["corpus_id"]] for x in expected]
        scores = torch.tensor([each["score"] for each in found]).sigmoid().tolist()
        assert scores == pytest.approx([float(x["score"]) for x in expected], abs=2e-3)
