"""Errors of loading, and loading from the cache of the Hub."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import transformers
from transformers import AutoModel, AutoModelForSequenceClassification, BertModel

from runinference.errors import ModelLoadError, ModelNotFoundError, OptionError
from runinference.huggingface_inference import (
    HuggingFaceModelHandlerTensor,
    HuggingFaceModelHandlerText,
    HuggingFacePipelineModelHandler,
)
from tiny_transformers import MINILM, TEXTS, assert_close, bert


def test_suggests_a_name_for_a_missing_directory(base):
    for load in (
        lambda path: HuggingFaceModelHandlerTensor(path, AutoModel),
        lambda path: HuggingFaceModelHandlerText(path),
        lambda path: HuggingFacePipelineModelHandler("feature-extraction", path),
    ):
        with pytest.raises(ModelNotFoundError, match="Did you mean 'base'"):
            load(base.replace("base", "bass")).load_model()


def test_explains_a_name_that_is_not_on_the_hub():
    handler = HuggingFaceModelHandlerTensor("no-one/no-model", AutoModel)
    with pytest.raises(ModelNotFoundError, match=r"'no-one/no-model'.*save_pretrained"):
        handler.load_model()


def test_rejects_files(base):
    handler = HuggingFaceModelHandlerTensor(f"{base}/config.json", AutoModel)
    with pytest.raises(ModelLoadError, match="pass the directory"):
        handler.load_model()


def test_names_missing_weights_and_a_missing_tokenizer(base, tmp_path):
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
def test_explains_truncated_weights(keep, base, tmp_path):
    path = Path(shutil.copytree(base, tmp_path / "cut"))
    weights = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(weights[:keep])
    with pytest.raises(ModelLoadError, match="files are complete"):
        HuggingFaceModelHandlerTensor(str(path), AutoModel).load_model()


def test_explains_files_of_another_format(base, tmp_path):
    path = Path(shutil.copytree(base, tmp_path / "other"))
    (path / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelLoadError, match="files are complete"):
        HuggingFaceModelHandlerTensor(str(path), AutoModel).load_model()
    (path / "config.json").write_text("no JSON")
    with pytest.raises(ModelLoadError, match=r"'.*other' \(model_uri\)"):
        HuggingFaceModelHandlerTensor(str(path), AutoModel).load_model()


def test_requires_a_recent_version_of_transformers(monkeypatch):
    def import_again():
        path = sys.modules["runinference.frameworks.huggingface.loading"].__file__
        spec = importlib.util.spec_from_file_location("loading", path)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "runinference\[transformers\]"'):
        import_again()
    old = types.ModuleType("transformers")
    old.__version__ = "4.39.3"
    monkeypatch.setitem(sys.modules, "transformers", old)
    with pytest.raises(ImportError, match=r"4\.39\.3 is too old: 4\.40 .* pip install -U"):
        import_again()


def test_names_a_class_that_does_not_fit_the_model(base):
    handler = HuggingFaceModelHandlerTensor(base, transformers.AutoModelForSpeechSeq2Seq)
    with pytest.raises(ModelLoadError, match="has another type"):
        handler.load_model()


def test_rejects_a_model_without_trained_head(base):
    handler = HuggingFaceModelHandlerTensor(base, AutoModelForSequenceClassification)
    with pytest.raises(ModelLoadError, match=r"classifier\.bias.*saved from BertModel\."):
        handler.load_model()
    trusting = {"output_loading_info": False}
    HuggingFaceModelHandlerTensor(
        base, AutoModelForSequenceClassification, load_model_args=trusting
    ).load_model()


def test_rejects_a_pipeline_without_trained_head(base, masked, classifier):
    for model in (base, masked):
        handler = HuggingFacePipelineModelHandler("text-classification", model)
        with pytest.raises(ModelLoadError, match=r"classifier\.bias.*trained for this task"):
            handler.load_model()
    HuggingFacePipelineModelHandler("feature-extraction", classifier).load_model()


def test_constructor_rejects_invalid_classes_names_and_devices(base):
    with pytest.raises(OptionError, match="no from_pretrained"):
        HuggingFaceModelHandlerTensor(base, "AutoModel")
    with pytest.raises(OptionError, match="model_uri must be a directory"):
        HuggingFaceModelHandlerTensor("", AutoModel)
    with pytest.raises(OptionError, match="device must be"):
        HuggingFaceModelHandlerText(base, device="TPU")


def test_does_not_run_code_from_the_repository(base, tmp_path):
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


def hub_cache(folder: Path, name: str, model: str) -> Path:
    """Create a cache, in the layout of the Hub, that holds one model."""
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


def test_loads_models_from_the_cache_of_the_hub(classifier, tmp_path):
    cache = hub_cache(tmp_path, "tiny/classifier", classifier)
    args = {"cache_dir": str(cache)}
    expected = HuggingFaceModelHandlerText(classifier, AutoModelForSequenceClassification).predict(
        TEXTS
    )
    handler = HuggingFaceModelHandlerText(
        "tiny/classifier", AutoModelForSequenceClassification, load_model_args=args
    )
    for one, other in zip(handler.predict(TEXTS), expected, strict=True):
        assert_close(one.inference, other.inference)
        assert one.model_id == "tiny/classifier"


def test_works_offline(tmp_path):
    """Runs in a new process, because Transformers reads the location of the cache when it is imported."""
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
