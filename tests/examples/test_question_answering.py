"""Tests of examples/question_answering.py."""

import json
import re
from pathlib import Path

import pytest

from runinference import samples
from runinference.errors import ModelLoadError


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def test_answers_the_default_questions(run_example):
    printed = run_example("question_answering")
    lines = read_lines(re.search(r"Answers: (\S+\.jsonl)", printed)[1])
    expected = {(q, c): answer for q, c, answer in samples.held_out_questions()}
    found = {(line["question"], line["context"]): line["answer"] for line in lines}
    assert found.keys() == expected.keys()
    assert sum(found[key] == answer for key, answer in expected.items()) / len(expected) >= 0.9
    assert all(0 <= line["probability"] <= 1 for line in lines)


def test_reads_questions_from_a_file(load_example, tmp_path):
    context = "Anna travelled to New York on Monday by night train to see the old opera."
    questions = ["Where did Anna go?", "How did Anna travel?", "Who saw the old opera?"]
    inputs = [{"question": question, "context": context} for question in questions]
    (tmp_path / "in.jsonl").write_text("\n\n".join(map(json.dumps, inputs)))
    load_example("question_answering").run(
        [
            *("--input", str(tmp_path / "in.jsonl")),
            *("--output", str(tmp_path / "out")),
            "--job_name=passed-through-to-beam",
        ]
    )
    found = {line["question"]: line["answer"] for line in read_lines(tmp_path / "out.jsonl")}
    assert found == dict(zip(questions, ["New York", "night train", "Anna"], strict=True))


def test_chooses_the_most_probable_span_within_the_maximum_length(load_example):
    import torch

    answer = load_example("question_answering").Answer(samples.question_answerer(), longest=2)
    answer.setup()
    question, context = "What did Anna see?", "Anna saw in Rome the opera."
    encoded = answer.tokenizer(question, context)
    parts = encoded.sequence_ids()
    starts, ends = torch.full((len(parts),), -9.0), torch.full((len(parts),), -9.0)
    first = parts.index(1)  # anna saw in rome the opera .
    starts[first], starts[first + 4] = 5.0, 4.0  # "Anna" is more probable, but too far away
    ends[first + 5] = 5.0
    starts[1] = 99.0  # a token of the question cannot start an answer
    logits = {"start_logits": starts, "end_logits": ends}
    start, end, probability = answer.best_span(question, context, logits)
    assert context[start:end] == "the opera"
    assert probability == pytest.approx(float(torch.tensor([5.0, 4.0]).softmax(0)[1]), abs=1e-3)


def test_model_for_another_task_raises_an_error(load_example):
    with pytest.raises(ModelLoadError, match="random"):
        load_example("question_answering").run(["--model", samples.blank_filler()])
