"""Tiny models whose results would depend on the other elements of a batch if the handler padded every batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from runinference import huggingface_inference as hf
from tiny_transformers import TEXTS, WORDS, bert, save_with_tokenizer, tokenizer

ENCODER: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 34,
    "initializer_range": 1.0,
    "pad_token_id": 0,
}
DECODER: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 34,
    "initializer_range": 1.0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
WAV2VEC: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (8, 8),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
    "vocab_size": len(WORDS),
    "pad_token_id": 0,
}


def sounds() -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=size).astype(np.float32) for size in (1600, 800, 1600, 2000)]


def images() -> list[Any]:
    rng = np.random.default_rng(0)
    shapes = ((32, 32, 3), (48, 32, 3), (32, 32, 3), (40, 64, 3))
    return [Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)) for shape in shapes]


def classify_texts(path: Path, model: Any, **options: Any) -> hf.HuggingFacePipelineModelHandler:
    save_with_tokenizer(path, model, **options)
    return hf.HuggingFacePipelineModelHandler("text-classification", str(path), device="CPU")


def decoder_without_padding(path: Path) -> Any:
    config = transformers.GPT2Config(**DECODER, num_labels=3)
    model = transformers.GPT2ForSequenceClassification(config)
    return classify_texts(path, model, closed=False), TEXTS, {"top_k": None}


def decoder_with_another_padding_token(path: Path) -> Any:
    config = transformers.GPT2Config(**DECODER, num_labels=3, pad_token_id=4)
    model = transformers.GPT2ForSequenceClassification(config)
    return classify_texts(path, model, pad_token="[PAD]"), TEXTS, {"top_k": None}


def encoder_padded_on_the_left(path: Path) -> Any:
    model = transformers.BertForSequenceClassification(bert(num_labels=3))
    return classify_texts(path, model, padding_side="left"), TEXTS, {"top_k": None}


def convolutions_over_tokens(path: Path) -> Any:
    config = transformers.ConvBertConfig(**ENCODER, embedding_size=16, num_labels=3)
    model = transformers.ConvBertForSequenceClassification(config)
    return classify_texts(path, model), TEXTS, {"top_k": None}


def model_without_a_mask(path: Path) -> Any:
    options = {name: value for name, value in ENCODER.items() if name != "num_attention_heads"}
    model = transformers.FNetModel(transformers.FNetConfig(**options))
    save_with_tokenizer(path, model, model_input_names=["input_ids", "token_type_ids"])
    return hf.HuggingFaceModelHandlerText(str(path)), TEXTS, None


def generator(path: Path) -> Any:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**DECODER))
    save_with_tokenizer(path, model, closed=False)
    return hf.HuggingFacePipelineModelHandler("text-generation", str(path), device="CPU")


def generator_with_a_total_length(path: Path) -> Any:
    return generator(path), ["", *TEXTS], {"do_sample": False, "max_length": 12}


def generator_with_a_penalty(path: Path) -> Any:
    args = {"do_sample": False, "max_new_tokens": 4, "repetition_penalty": 2.0}
    return generator(path), TEXTS, args


def texts_to_generate_from(path: Path) -> Any:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**DECODER))
    save_with_tokenizer(path, model, closed=False, bos_token="[CLS]")
    handler = hf.HuggingFaceModelHandlerText(
        str(path), transformers.AutoModelForCausalLM, method="generate"
    )
    return handler, ["", *TEXTS], {"do_sample": False, "max_length": 12}


def attentions(path: Path) -> Any:
    save_with_tokenizer(path, transformers.BertModel(bert()))
    load_model_args = {"attn_implementation": "eager"}
    handler = hf.HuggingFaceModelHandlerText(str(path), load_model_args=load_model_args)
    return handler, TEXTS, {"output_attentions": True}


def embeddings_of_empty_texts(path: Path) -> Any:
    save_with_tokenizer(path, transformers.RobertaModel(transformers.RobertaConfig(**ENCODER)))
    tokenizer(closed=False, pad_token="[PAD]").save_pretrained(path)
    return hf.HuggingFaceModelHandlerEmbedding(str(path), pooling="max"), ["", *TEXTS, ""], None


def sounds_to_transcribe(path: Path) -> Any:
    torch.manual_seed(0)
    model = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**WAV2VEC))
    with torch.no_grad():
        model.lm_head.weight.mul_(50)
    save_with_tokenizer(path, model)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(path)
    task = "automatic-speech-recognition"
    return hf.HuggingFacePipelineModelHandler(task, str(path), device="CPU"), sounds(), None


def sounds_to_classify(path: Path) -> Any:
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(**WAV2VEC, num_labels=3)
    transformers.Wav2Vec2ForSequenceClassification(config).save_pretrained(path)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(path)
    handler = hf.HuggingFacePipelineModelHandler("audio-classification", str(path), device="CPU")
    return handler, sounds(), None


def images_of_several_sizes(path: Path) -> Any:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3
    )
    transformers.ResNetForImageClassification(config).save_pretrained(path)
    transformers.ViTImageProcessor(do_resize=False).save_pretrained(path)
    handler = hf.HuggingFacePipelineModelHandler("image-classification", str(path), device="CPU")
    return handler, images(), {"top_k": 3}


def objects_in_images(path: Path) -> Any:
    torch.manual_seed(0)
    config = transformers.YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=5,
        num_labels=3,
    )
    transformers.YolosForObjectDetection(config).save_pretrained(path)
    size = {"shortest_edge": 32, "longest_edge": 64}
    transformers.YolosImageProcessor(size=size).save_pretrained(path)
    handler = hf.HuggingFacePipelineModelHandler("object-detection", str(path), device="CPU")
    return handler, images(), {"threshold": 0.0}


#: Functions that save a model and return its handler, examples and inference arguments.
FACTORIES: list[Callable[[Path], tuple[Any, list[Any], dict[str, Any] | None]]] = [
    decoder_without_padding,
    decoder_with_another_padding_token,
    encoder_padded_on_the_left,
    convolutions_over_tokens,
    model_without_a_mask,
    generator_with_a_total_length,
    generator_with_a_penalty,
    texts_to_generate_from,
    attentions,
    embeddings_of_empty_texts,
    sounds_to_transcribe,
    sounds_to_classify,
    images_of_several_sizes,
    objects_in_images,
]
