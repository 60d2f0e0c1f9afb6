"""Behavior that all Hugging Face handlers share."""

from __future__ import annotations

import copy
import pickle
import shutil
from typing import Any

import apache_beam as beam
import pytest
import torch
from transformers import AutoModel

from common import RUNNER, CollectElements, run
from runinference import RunInference
from runinference.huggingface_inference import (
    HuggingFaceModelHandlerEmbedding,
    HuggingFaceModelHandlerKeyedTensor,
    HuggingFaceModelHandlerTensor,
    HuggingFaceModelHandlerText,
    HuggingFacePipelineModelHandler,
)
from tiny_transformers import IDS, TEXTS


@pytest.fixture(params=["pipeline", "tensor", "keyed tensor", "text", "embedding"])
def case(request, classifier, base):
    kind = request.param
    keyed = [{"input_ids": ids} for ids in IDS]
    return {
        "pipeline": lambda: (
            HuggingFacePipelineModelHandler("text-classification", classifier),
            TEXTS,
            classifier,
        ),
        "tensor": lambda: (HuggingFaceModelHandlerTensor(base, AutoModel), IDS, base),
        "keyed tensor": lambda: (
            HuggingFaceModelHandlerKeyedTensor(base, AutoModel),
            keyed,
            base,
        ),
        "text": lambda: (HuggingFaceModelHandlerText(base), TEXTS, base),
        "embedding": lambda: (HuggingFaceModelHandlerEmbedding(base), TEXTS, base),
    }[kind]()


def test_applies_preprocess_and_postprocess_functions(case):
    handler, elements, model = case
    around = handler.with_preprocess_fn(lambda pair: pair[1]).with_postprocess_fn(
        lambda result: result.model_id
    )
    assert run(list(enumerate(elements)), RunInference(around)) == [model] * len(elements)


def test_accepts_batches_as_elements(case):
    handler, elements, _ = case
    found = run([elements[:4], elements[4:]], RunInference(handler.with_no_batching()))
    assert [repr(x.example) for x in found] == [repr(x) for x in elements]


def test_can_be_pickled(case):
    handler, elements, model = case
    [result] = pickle.loads(pickle.dumps(handler)).predict(elements[:1])
    assert result.model_id == model


def test_updating_a_copy_leaves_the_original_unchanged(case, folder):
    handler, elements, model = case
    named = "text-classification" if "Pipeline" in type(handler).__name__ else None
    other = copy.copy(handler)
    moved = shutil.copytree(model, folder / f"moved-{type(handler).__name__}")
    other.update_model_path(str(moved))
    [result] = other.predict(elements[:1])
    assert result.model_id == str(moved)
    other.update_model_path(None)
    assert other.predict(elements[:1])[0].model_id == str(moved)
    assert handler.predict(elements[:1])[0].model_id == model
    assert named is None or handler._task == named


def test_get_num_bytes_counts_the_data_of_tensors(case):
    handler, elements, _ = case
    size = handler.get_num_bytes(elements)
    assert size > 0
    if isinstance(elements[0], torch.Tensor):
        assert size == len(elements) * 4 * 8


@pytest.mark.parametrize("kind", ["tensor", "text", "pipeline", "embedding"])
def test_only_the_failing_element_becomes_a_dead_letter(kind, base, classifier):
    handler, elements, bad = {
        "tensor": (
            HuggingFaceModelHandlerTensor(base, AutoModel, min_batch_size=7),
            [*IDS, torch.tensor([2, 99, 7, 3])],
            "from 2 to 99",
        ),
        "text": (HuggingFaceModelHandlerText(base, min_batch_size=7), [*TEXTS, 5], "a text"),
        "embedding": (
            HuggingFaceModelHandlerEmbedding(base, max_padded_size=64),
            [*TEXTS, None],
            "a text",
        ),
        "pipeline": (
            HuggingFacePipelineModelHandler("text-classification", classifier),
            [*TEXTS, 5],
            "",
        ),
    }[kind]
    good: list[Any] = []
    dead: list[Any] = []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        results, letters = (
            pipeline
            | beam.Create(elements, reshuffle=False)
            | RunInference(handler).with_exception_handling()
        )
        results | "good" >> beam.ParDo(CollectElements(good))
        letters.failed_inferences | "dead" >> beam.ParDo(CollectElements(dead))
    good, dead = CollectElements.take(good), CollectElements.take(dead)
    assert sorted(repr(x.example) for x in good) == sorted(map(repr, elements[:-1]))
    [(element, (_, message, _))] = dead
    assert repr(element) == repr(elements[-1])
    assert bad in message
