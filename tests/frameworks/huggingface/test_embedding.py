"""The handler that embeds texts, compared with sentence-transformers."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import BertModel

from common import run
from runinference import RunInference
from runinference.errors import ModelLoadError, OptionError
from runinference.huggingface_inference import HuggingFaceModelHandlerEmbedding
from tiny_transformers import MINILM, TEXTS, bert, saved

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


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize(
    "pooling",
    ["mean", "cls", "weightedmean", ("max", "mean_sqrt_len_tokens"), ("lasttoken", "mean")],
)
def test_settings_in_files_are_those_of_sentence_transformers(
    pooling, include_prompt, base, tmp_path
):
    import sentence_transformers as library
    from sentence_transformers import models as modules

    layers = [
        modules.Transformer(base, max_seq_length=9, do_lower_case=True),
        modules.Pooling(16, pooling_mode=pooling, include_prompt=include_prompt),
        modules.Normalize(),
    ]
    model = library.SentenceTransformer(
        modules=layers, device="cpu", prompts={"q": "good "}, default_prompt_name="q",
        truncate_dim=7,
    )  # fmt: skip
    model.save(str(tmp_path))
    texts = [*TEXTS, "", "The CAT [MASK]", "the cat " * 9]
    expected = model.encode(texts, convert_to_tensor=True)
    handler = HuggingFaceModelHandlerEmbedding(str(tmp_path), min_batch_size=len(texts))
    found = torch.stack([result.inference for result in handler.predict(texts)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    lengths = HuggingFaceModelHandlerEmbedding(str(tmp_path), normalize=True).predict(TEXTS)
    assert {round(float(x.inference.norm()), 4) for x in lengths} == {1.0}


def test_the_embedding_of_a_text_without_tokens_is_zero(tmp_path):
    path = saved(tmp_path, BertModel(bert()), closed=False)
    for pooling in ("mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"):
        handler = HuggingFaceModelHandlerEmbedding(path, pooling=pooling, normalize=True)
        for batch in ([""], ["", "cat", ""]):
            results = handler.predict(batch)
            assert [bool(x.inference.any()) for x in results] == [x == "cat" for x in batch]
            assert {x.inference.shape for x in results} == {(16,)}


LIBRARY = "sentence_transformers.models."
TRANSFORMER = {"idx": 0, "path": "", "type": LIBRARY + "Transformer"}
POOLING = {"idx": 1, "path": "1_Pooling", "type": LIBRARY + "Pooling"}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", [TRANSFORMER], "no layer 'Pooling'"),
        ("modules.json", [TRANSFORMER, {**POOLING, "type": "other.Pooling"}], "layer 'other.Pooling'"),
        ("modules.json", [{**TRANSFORMER, "path": "0_Bert"}, POOLING], "in the folder '0_Bert'"),
        *(
            ("modules.json", [TRANSFORMER, POOLING, {**POOLING, "type": LIBRARY + kind}], f"{kind!r}")
            for kind in ("Dense", "CNN", "LSTM", "LayerNorm", "WeightedLayerPooling")
        ),
        ("1_Pooling/config.json", {"pooling_mode_best_tokens": True}, "pooling_mode_best_tokens"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "best"]}, "the pooling best"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "'fill-mask'"),
        ("sentence_bert_config.json", {"modality_config": {"message": {}}}, "'modality_config'"),
        ("sentence_bert_config.json", {"query_expansion": {"method": "mask"}}, "'query_expansion'"),
        ("sentence_bert_config.json", {"query_length": 32}, "'query_length'"),
        ("sentence_bert_config.json", {"tokenizer_name_or_path": "bert"}, "'tokenizer_name_or_path'"),
        ("sentence_bert_config.json", {"model_args": {"dtype": "bfloat16"}}, "set 'dtype' in load_model"),
        ("sentence_roberta_config.json", {"tokenizer_args": {"x": 1}}, "set 'x' in load_tokenizer_args"),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"text": {"max_length": 3}}},
            "set 'max_length' in tokenizer_args",
        ),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "default prompt 'q'"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "a SparseEncoder"),
    ],
)  # fmt: skip
def test_refuses_settings_that_it_does_not_support(file, content, message, base, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    (tmp_path / "model" / "1_Pooling").mkdir()
    (tmp_path / "model" / "modules.json").write_text(json.dumps([TRANSFORMER, POOLING]))
    HuggingFaceModelHandlerEmbedding(str(tmp_path / "model")).load_model()
    (tmp_path / "model" / file).write_text(json.dumps(content))
    with pytest.raises(ModelLoadError, match=message):
        HuggingFaceModelHandlerEmbedding(str(tmp_path / "model")).load_model()


def test_prepends_the_prompt_to_the_first_text_of_a_pair(base):
    handler = HuggingFaceModelHandlerEmbedding(base, prompt="good ")
    plain = HuggingFaceModelHandlerEmbedding(base)
    [result], [expected] = handler.predict([("cat", "mat")]), plain.predict([("good cat", "mat")])
    torch.testing.assert_close(result.inference, expected.inference)


def embed(path, texts, **options):
    handler = HuggingFaceModelHandlerEmbedding(path, **options)
    return torch.stack([result.inference for result in handler.predict(texts)])


@pytest.mark.parametrize("normalize", [None, True])
def test_truncated_embeddings_equal_those_of_sentence_transformers(normalize, reference):
    texts = SENTENCES[3:]
    found = embed(MINILM, texts, truncate_dim=100, normalize=normalize)
    expected = reference.encode(
        texts, convert_to_tensor=True, truncate_dim=100, normalize_embeddings=bool(normalize)
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert bool((found.norm(dim=-1) > 0.99).all()) == bool(normalize)


def test_truncate_dim_takes_precedence_over_the_files(base, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    (tmp_path / "model" / "config_sentence_transformers.json").write_text('{"truncate_dim": 4}')
    path = str(tmp_path / "model")
    assert embed(path, TEXTS).shape == (len(TEXTS), 4)
    assert embed(path, TEXTS, truncate_dim=8).shape == (len(TEXTS), 8)


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("truncate_dim", [None, 9])
def test_quantized_embeddings_equal_those_of_sentence_transformers(precision, truncate_dim, base):
    from sentence_transformers.quantization import quantize_embeddings

    floats = embed(base, [*TEXTS, ""], truncate_dim=truncate_dim)
    sample = floats[:4].numpy()  # other embeddings are out of these ranges
    ranges = np.stack([sample.min(0), sample.max(0)])
    ranges[:, 2] = ranges[0, 2]
    uses_ranges = {"ranges": ranges} if precision.endswith("int8") else {}
    found = embed(base, [*TEXTS, ""], truncate_dim=truncate_dim, precision=precision, **uses_ranges)
    expected = quantize_embeddings(floats, precision, **uses_ranges)
    assert found.dtype == torch.from_numpy(expected).dtype
    assert found.tolist() == expected.tolist()


def test_half_precision_models_have_quantized_embeddings(base):
    options = {"load_model_args": {"dtype": torch.float16}}
    floats = embed(base, TEXTS, **options)
    assert floats.dtype == torch.float16
    assert embed(base, TEXTS, precision="float32", **options).dtype == torch.float32
    signs = embed(base, TEXTS, precision="ubinary", **options)
    assert signs.tolist() == np.packbits(floats.numpy() > 0, axis=-1).tolist()


RANGES = np.array([[-1.0] * 16, [1.0] * 16])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncate_dim": 0}, "truncate_dim"),
        ({"precision": "int4"}, "Did you mean 'int8'"),
        ({"precision": "int8"}, "need ranges"),
        ({"precision": "binary", "ranges": RANGES}, "leave it out"),
        ({"ranges": RANGES}, "set precision"),
        ({"precision": "uint8", "ranges": RANGES[0]}, r"of shape \(2, dimensions\)"),
        ({"precision": "uint8", "ranges": RANGES[::-1]}, r"of shape \(2, dimensions\)"),
        ({"precision": "uint8", "ranges": RANGES * np.nan}, r"of shape \(2, dimensions\)"),
        ({"precision": "uint8", "ranges": RANGES * np.inf}, r"of shape \(2, dimensions\)"),
        ({"precision": "uint8", "ranges": "low"}, r"of shape \(2, dimensions\)"),
    ],
)
def test_invalid_precisions_raise_errors(options, message, base):
    with pytest.raises(OptionError, match=message):
        HuggingFaceModelHandlerEmbedding(base, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncate_dim": 17}, "17, but the embeddings of the model have 16"),
        ({"truncate_dim": 17, "precision": "binary"}, "have 16"),
        (
            {"precision": "int8", "ranges": RANGES[:, :8]},
            "8 dimensions, but the embeddings have 16",
        ),
        (
            {"precision": "int8", "ranges": RANGES[:, :1]},
            "1 dimensions, but the embeddings have 16",
        ),
    ],
)
def test_other_numbers_of_dimensions_raise_errors_when_the_model_is_loaded(options, message, base):
    with pytest.raises(OptionError, match=message):
        HuggingFaceModelHandlerEmbedding(base, **options).load_model()
