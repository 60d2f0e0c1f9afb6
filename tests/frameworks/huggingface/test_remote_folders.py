"""Models in folders on remote storage load as from the local disk, and leave nothing on it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import apache_beam as beam
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, BertModel

from common import RUNNER, CollectElements, run
from in_memory_file_system import InMemory
from runinference import ModelMetadata, RunInference
from runinference.errors import ModelLoadError, ModelNotFoundError
from runinference.huggingface_inference import (
    HuggingFaceModelHandlerEmbedding,
    HuggingFaceModelHandlerKeyedTensor,
    HuggingFaceModelHandlerTensor,
    HuggingFaceModelHandlerText,
    HuggingFacePipelineModelHandler,
)
from tiny_transformers import IDS, TEXTS, assert_close, bert, saved

STORE = "inmemory://bucket"
CLASSIFIER = AutoModelForSequenceClassification


@pytest.fixture
def store(monkeypatch, tmp_path):
    """A remote file system, and a folder of temporary files that is empty in the end."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(InMemory, "files", {})
    monkeypatch.setattr(InMemory, "faults", [])
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield InMemory
    assert not os.listdir(tmp_path / "temporary")


def upload(folder, name="model"):
    """Copy a local folder to the remote file system, and return its path there."""
    for path in filter(Path.is_file, Path(folder).rglob("*")):
        InMemory.files[f"{STORE}/{name}/{path.relative_to(folder)}"] = path.read_bytes()
    return f"{STORE}/{name}"


HANDLERS = {
    "tensor": lambda uri: HuggingFaceModelHandlerTensor(uri, AutoModel),
    "keyed": lambda uri: HuggingFaceModelHandlerKeyedTensor(uri, AutoModel, "pt"),
    "text": lambda uri: HuggingFaceModelHandlerText(uri, CLASSIFIER),
    "tokenizer": lambda uri: HuggingFaceModelHandlerText(uri, CLASSIFIER, tokenizer=uri),
    "lengths": lambda uri: HuggingFaceModelHandlerText(uri, CLASSIFIER, max_padded_size=20),
    "embedding": lambda uri: HuggingFaceModelHandlerEmbedding(uri, normalize=True),
    "device map": lambda uri: HuggingFaceModelHandlerText(
        uri, CLASSIFIER, load_model_args={"device_map": "cpu"}
    ),
    "pipeline": lambda uri: HuggingFacePipelineModelHandler("text-classification", uri),
}
EXAMPLES = {"tensor": IDS, "keyed": [{"input_ids": ids} for ids in IDS]}


@pytest.mark.parametrize("name", HANDLERS)
def test_a_folder_on_remote_storage_gives_the_results_of_a_local_one(name, store, classifier):
    examples = EXAMPLES.get(name, TEXTS)
    uri = upload(classifier)
    reads = []
    store.faults += [lambda path, content: content[:3], *[lambda p, c: reads.append(p) or c] * 99]
    local = HANDLERS[name](classifier).predict(examples)
    remote = HANDLERS[name](uri).predict(examples)
    for one, other in zip(remote, local, strict=True):
        assert_close(one.inference, other.inference)
        assert one.model_id == uri
    assert reads.count(f"{uri}/model.safetensors") == 1


def test_a_pipeline_with_probabilities_reads_the_classes(store, classifier):
    handler = HuggingFacePipelineModelHandler("text-classification", upload(classifier))
    rows = [{"text": text} for text in TEXTS]
    transform = RunInference(handler, columns=["text"], output="label", probabilities="p_{}")
    results = run(rows, transform)
    assert [*results[0]._asdict()] == ["text", "label", "p_LABEL_0", "p_LABEL_1", "p_LABEL_2"]


def test_a_model_update_names_a_folder_on_remote_storage(store, base, tmp_path):
    torch.manual_seed(1)
    model = BertModel(bert())
    torch.nn.init.zeros_(model.embeddings.word_embeddings.weight)
    updated = saved(tmp_path / "updated", model)
    handler = HuggingFaceModelHandlerEmbedding(upload(base))
    output = []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        metadata = ModelMetadata(upload(updated, "updated"), "updated")
        updates = pipeline | "updates" >> beam.Create([metadata])
        results = (
            pipeline
            | beam.Create(TEXTS, reshuffle=False)
            | RunInference(handler, model_metadata_pcoll=updates)
        )
        results | beam.ParDo(CollectElements(output))
    expected = HuggingFaceModelHandlerEmbedding(updated).predict(TEXTS)
    for one, other in zip(CollectElements.take(output), expected, strict=True):
        assert_close(one.inference, other.inference)
        assert one.model_id == f"{STORE}/updated"


@pytest.mark.parametrize("name", ["tensor", "text", "embedding", "pipeline"])
def test_errors_name_the_folder_and_not_its_copy(name, store, base, tmp_path):
    with pytest.raises(ModelNotFoundError, match=f"no files in the directory '{STORE}/model'"):
        HANDLERS[name](f"{STORE}/model").load_model()
    cut = Path(shutil.copytree(base, tmp_path / "cut"))
    (cut / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelLoadError, match=f"'{STORE}/cut'.*files are complete") as caught:
        HANDLERS[name](upload(cut, "cut")).load_model()
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(ModelLoadError, match="'unknown://model'.*To fix this, check"):
        HANDLERS[name]("unknown://model").load_model()
