"""The handler that runs Transformers pipelines."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

import neighbor_cases
from common import run
from runinference import RunInference
from runinference.errors import ElementError, ModelLoadError, OptionError
from runinference.huggingface_inference import (
    HuggingFaceModelHandlerText,
    HuggingFacePipelineModelHandler,
    PipelineTask,
)
from tiny_transformers import TEXTS, assert_close, bert, saved


class RecordingHandler(HuggingFacePipelineModelHandler):
    """Records the sizes of the batches that reach the model."""

    sizes: list[int] = []

    def load_model(self) -> Any:
        pipeline = super().load_model()

        def record(module: Any, args: Any, kwargs: Any) -> None:
            self.sizes.append(len(kwargs["input_ids"]))

        pipeline.model.register_forward_pre_hook(record, with_kwargs=True)
        return pipeline


def test_classifies_texts(classifier):
    handler = HuggingFacePipelineModelHandler(PipelineTask.TextClassification, model=classifier)
    results = run(TEXTS, RunInference(handler))
    reference = transformers.pipeline("text-classification", classifier, device="cpu")
    assert len(results) == len(TEXTS)
    for example, inference, model_id in results:
        [expected] = reference([example])
        assert inference["label"] == expected["label"]
        assert inference["score"] == pytest.approx(expected["score"], abs=1e-5)
        assert model_id == classifier


def test_calls_the_model_once_for_each_batch(classifier):
    RecordingHandler.sizes.clear()
    handler = RecordingHandler("sentiment-analysis", classifier, min_batch_size=6, max_batch_size=6)
    assert len(handler.predict(TEXTS * 3)) == 18
    assert RecordingHandler.sizes == [6, 6, 6]


def test_batch_size_of_the_user_takes_precedence(classifier):
    for args, inference_args in (({"batch_size": 2}, None), ({}, {"batch_size": 2})):
        RecordingHandler.sizes.clear()
        handler = RecordingHandler(
            "text-classification", classifier, load_pipeline_args=args, min_batch_size=6
        )
        handler.predict(TEXTS, inference_args)
        assert RecordingHandler.sizes == [2, 2, 2]


@pytest.mark.parametrize(
    ("task", "model", "args"),
    [
        ("text-classification", BertForSequenceClassification, {}),
        ("text-classification", BertForSequenceClassification, {"top_k": None}),
        ("text-classification", BertForSequenceClassification, {"top_k": 1}),
        ("fill-mask", BertForMaskedLM, {"top_k": 1}),
        ("fill-mask", BertForMaskedLM, {"top_k": 3}),
        ("token-classification", BertForTokenClassification, {}),
        ("feature-extraction", BertModel, {}),
        ("feature-extraction", BertModel, {"return_tensors": True}),
    ],
)
def test_returns_one_result_for_each_element_of_any_batch(task, model, args, tmp_path):
    path = saved(tmp_path / "model", model(bert(num_labels=3)))
    texts = [f"the [MASK] sat on {'the ' * n}mat" for n in range(3)]
    handler = HuggingFacePipelineModelHandler(task, path, device="CPU", min_batch_size=3)
    together = handler.predict(texts, args)
    alone = [handler.predict([text], args)[0] for text in texts]
    assert [example for example, _, _ in together] == texts
    for one, other in zip(together, alone, strict=True):
        assert_close(one.inference, other.inference)


def test_passes_candidate_labels_with_the_call(folder):
    names = ["contradiction", "entailment"]
    labels = {
        "id2label": dict(enumerate(names)),
        "label2id": {n: i for i, n in enumerate(names)},
    }
    path = saved(folder / "nli", BertForSequenceClassification(bert(**labels)))
    handler = HuggingFacePipelineModelHandler("zero-shot-classification", path)
    args = {"candidate_labels": ["good", "bad"], "hypothesis_template": "the cat {}"}
    for texts in (TEXTS, TEXTS[:1]):
        results = handler.predict(texts, args)
        assert [result.inference["sequence"] for result in results] == texts
        assert all({*result.inference["labels"]} == {"good", "bad"} for result in results)


@pytest.mark.parametrize("answer", [{"label": "a"}, [{"label": "a"}, {"label": "b"}], ["one"]])
def test_inference_fn_may_return_a_single_result_without_a_list(answer, classifier):
    handler = HuggingFacePipelineModelHandler(
        "text-classification", classifier, inference_fn=lambda batch, pipeline, args: answer
    )
    [result] = handler.predict(TEXTS[:1])
    assert result.inference == ("one" if answer == ["one"] else answer)


def test_generates_the_same_texts_in_a_batch_without_a_padding_token(gpt):
    handler = HuggingFacePipelineModelHandler("text-generation", gpt, min_batch_size=6)
    args = {"max_new_tokens": 4, "do_sample": False, "return_full_text": False}
    together = handler.predict(TEXTS, args)
    alone = [handler.predict([text], args)[0] for text in TEXTS]
    assert [result.inference for result in together] == [result.inference for result in alone]


def test_accepts_lists_of_chat_messages(gpt):
    handler = HuggingFacePipelineModelHandler("text-generation", gpt)
    pipeline = handler.load_model()
    pipeline.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    results = list(handler.run_inference(chats, pipeline, {"max_new_tokens": 2}))
    for chat, result in zip(chats, results, strict=True):
        assert result.inference[0]["generated_text"][0] == chat[0]


def test_update_model_path_replaces_the_model(classifier, folder):
    other = saved(folder / "other", BertForSequenceClassification(bert(num_labels=5)))
    handler = HuggingFacePipelineModelHandler("text-classification", classifier)
    handler.update_model_path(other)
    [result] = handler.predict(TEXTS[:1], {"top_k": None})
    assert len(result.inference) == 5
    assert result.model_id == other


def test_selects_the_device_on_the_worker(classifier, caplog):
    caplog.set_level("WARNING")
    handler = HuggingFacePipelineModelHandler("text-classification", classifier)
    assert "device" not in handler._load_pipeline_args
    assert handler.load_model().device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    for device in ("CPU", "cpu", torch.device("cpu")):
        handler = HuggingFacePipelineModelHandler("text-classification", classifier, device=device)
        assert handler.load_model().device.type == "cpu"


def test_constructor_rejects_conflicting_options(classifier):
    with pytest.raises(OptionError, match=r"needs a task.*PipelineTask"):
        HuggingFacePipelineModelHandler()
    with pytest.raises(OptionError, match="pass only one of them"):
        HuggingFacePipelineModelHandler("ner", device="GPU", load_pipeline_args={"device": "cpu"})
    with pytest.raises(OptionError, match=r"device must be .* 'TPU'"):
        HuggingFacePipelineModelHandler("ner", device="TPU")
    with pytest.raises(TypeError, match="Did you mean 'load_pipeline_args'"):
        HuggingFacePipelineModelHandler("ner", load_pipelin_args={})


def test_names_a_task_that_does_not_fit_the_model(classifier):
    with pytest.raises(ModelLoadError, match="image-classification"):
        HuggingFacePipelineModelHandler("image-classification", classifier).load_model()


@pytest.mark.parametrize(
    ("task", "model_class", "text", "args"),
    [
        ("text-classification", BertForSequenceClassification, "cat " * 50, {"truncation": True}),
        ("feature-extraction", BertModel, "cat " * 50, {"truncation": True}),
        (
            "fill-mask",
            BertForMaskedLM,
            "[MASK] " + "cat " * 50,
            {"tokenizer_kwargs": {"truncation": True}},
        ),
    ],
)
def test_a_text_that_is_too_long_is_truncated_or_names_the_argument(
    task, model_class, text, args, tmp_path
):
    handler = HuggingFacePipelineModelHandler(task, saved(tmp_path, model_class(bert())))
    with pytest.raises(
        ElementError, match=r"has 5[23] tokens, .* at most 32.*'truncation': True"
    ) as e:
        handler.predict([text])
    assert str(args) in str(e.value)
    assert len(handler.predict([text, text], args)) == 2


def test_explains_a_continuation_that_is_too_long(gpt):
    handler = HuggingFacePipelineModelHandler("text-generation", gpt)
    args = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
    with pytest.raises(ElementError, match=r"more than 32 tokens.*lower max_new_tokens"):
        handler.predict(["the cat"], args)


def test_images_and_sounds_of_one_shape_share_a_call(tmp_path):
    for factory in (neighbor_cases.images_of_several_sizes, neighbor_cases.sounds_to_classify):
        handler, examples, args = factory(tmp_path / factory.__name__)
        pipeline = handler.load_model()
        sizes: list[int] = []
        pipeline.model.register_forward_pre_hook(
            lambda model, args, kwargs, sizes=sizes: sizes.append(len(next(iter(kwargs.values())))),
            with_kwargs=True,
        )
        handler.run_inference(examples, pipeline, args)
        assert sorted(sizes) == [1, 1, 2]


def test_the_arguments_of_a_call_are_not_changed(base):
    handler = HuggingFacePipelineModelHandler("feature-extraction", base, max_batch_size=1)
    args = {"truncation": True, "tokenize_kwargs": {"max_length": 3}}
    assert [len(x.inference[0]) for x in handler.predict(TEXTS, args)] == [3] * len(TEXTS)
    assert args == {"truncation": True, "tokenize_kwargs": {"max_length": 3}}


def test_accepts_a_pipeline_that_a_subclass_loads(classifier):
    class Handler(HuggingFacePipelineModelHandler):
        def load_model(self):
            return transformers.pipeline("text-classification", classifier, device="cpu")

    handler = Handler("text-classification", min_batch_size=6)
    expected = HuggingFacePipelineModelHandler("text-classification", classifier).predict(TEXTS)
    for result, other in zip(handler.predict(TEXTS), expected, strict=True):
        assert_close(result.inference, other.inference)


@pytest.mark.parametrize("is_pipeline", [True, False])
def test_each_thread_truncates_to_the_length_of_its_own_call(is_pipeline, base):
    """A fast tokenizer stores the length of its last call."""
    if is_pipeline:
        handler = HuggingFacePipelineModelHandler("feature-extraction", base, device="CPU")
        model = handler.load_model()
        handlers = dict.fromkeys(range(3, 7), handler)
    else:
        handlers = {
            length: HuggingFaceModelHandlerText(base, tokenizer_args={"max_length": length})
            for length in range(3, 7)
        }
    models = {n: model if is_pipeline else one.load_model() for n, one in handlers.items()}

    def count_tokens(length: int) -> set[int]:
        kwargs = {"tokenize_kwargs": {"max_length": length, "truncation": True}}
        found = set()
        for _ in range(15):
            args = kwargs if is_pipeline else None
            [result] = handlers[length].run_inference(["the cat " * 8], models[length], args)
            vectors = result.inference
            found.add(len(vectors[0] if is_pipeline else vectors["last_hidden_state"]))
        return found

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(count_tokens, handlers)) == [{3}, {4}, {5}, {6}]
    finally:
        sys.setswitchinterval(interval)
