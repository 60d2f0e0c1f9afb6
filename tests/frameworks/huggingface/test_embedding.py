"""The handler that embeds texts, compared with sentence-transformers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from common import run
from runinference import RunInference
from runinference.errors import ModelLoadError, OptionError
from runinference.huggingface_inference import HuggingFaceModelHandlerEmbedding
from tiny_transformers import MINILM, TEXTS

LONG = "Income tax is due in May, unless it is not. " * 60
SENTENCES = ["A cat", "", LONG, "  Hello   World ", "Ein Kätzchen 漢字", "x"]


@pytest.fixture(scope="module")
def reference():
    import sentence_transformers as library

    return library.SentenceTransformer(MINILM, device="cpu")


def test_embeddings_equal_those_of_sentence_transformers(reference):
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
def test_each_pooling_equals_that_of_sentence_transformers(pooling, normalize, base):
    import sentence_transformers as library
    from sentence_transformers import models as modules

    layers = [modules.Transformer(base), modules.Pooling(16, pooling_mode=pooling)]
    layers += [modules.Normalize()] * normalize
    model = library.SentenceTransformer(modules=layers, device="cpu")
    expected = model.encode(TEXTS, convert_to_tensor=True)
    handler = HuggingFaceModelHandlerEmbedding(base, pooling=pooling, normalize=normalize)
    found = torch.stack([result.inference for result in handler.predict(TEXTS)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_reads_the_settings_from_the_files_of_the_model(base, tmp_path):
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


def test_names_unsupported_layers(base, tmp_path):
    shutil.copytree(base, tmp_path / "dense")
    dense = [{"idx": 1, "path": "1_Dense", "type": "sentence_transformers.models.Dense"}]
    (tmp_path / "dense" / "modules.json").write_text(json.dumps(dense))
    with pytest.raises(ModelLoadError, match="a layer 'Dense'"):
        HuggingFaceModelHandlerEmbedding(str(tmp_path / "dense")).load_model()
    HuggingFaceModelHandlerEmbedding(
        str(tmp_path / "dense"), pooling="mean", normalize=False
    ).load_model()


def test_suggests_a_name_for_an_unknown_pooling(base):
    with pytest.raises(OptionError, match="Did you mean 'mean'"):
        HuggingFaceModelHandlerEmbedding(base, pooling="means")  # type: ignore[arg-type]
