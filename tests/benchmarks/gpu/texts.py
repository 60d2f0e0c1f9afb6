"""Token sequences and BERT-base, texts and sentence-transformers, and texts and a Hugging Face pipeline."""

import functools
import random

import apache_beam as beam
import numpy as np
import torch
import transformers
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import pytorch_inference as beam_pytorch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from transformers import BertConfig, BertForSequenceClassification

from benchmarks import w3_token_sequences as w3
from benchmarks import w10_texts as w10
from benchmarks.gpu.setup import load_weights, make_folder, save_weights
from benchmarks.gpu.tensors import number
from benchmarks.harness import Case, ExampleSink, Outcome, Sink, identity, run_pipeline
from runinference import Padding, RunInference
from runinference.huggingface_inference import (
    HuggingFaceModelHandlerEmbedding,
    HuggingFacePipelineModelHandler,
)
from runinference.pytorch_inference import PytorchModelHandlerKeyedTensor

transformers.utils.logging.disable_progress_bar()

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
MINILM = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1_536,
}
DEFAULT_LOOP = "sentence-transformers"


class Classifier(torch.nn.Module):
    """A BERT classifier that returns logits. Its default size is that of BERT-base."""

    def __init__(self, **config):
        super().__init__()
        self.bert = BertForSequenceClassification(BertConfig(num_labels=8, **config))

    def forward(self, input_ids, attention_mask):
        return self.bert(input_ids=input_ids, attention_mask=attention_mask).logits


def token_cases(setup):
    n, budget, config = setup.choose((2_048, 16_384, {}), (48, 256, SMALL))
    make_model = functools.partial(Classifier, **config)
    weights = save_weights("bert", make_model)
    options = {"state_dict_path": weights, "model_class": Classifier, "model_params": config}
    ours = functools.partial(
        PytorchModelHandlerKeyedTensor,
        **options,
        device=setup.name,
        padding=Padding(value={"input_ids": 0}, mask="attention_mask"),
        max_padded_size=budget,
    )
    beam_handler = beam_pytorch.PytorchModelHandlerKeyedTensor(
        **options,
        device=setup.beam_name,
        inference_fn=predict_padded,
        min_batch_size=32,
        max_batch_size=32,
    )
    run = functools.partial(w3.run_with, n)
    for variant, precision in (("float32", None), ("bfloat16", "bfloat16")):
        runs = {
            "limit": functools.partial(
                token_loop, setup, weights, make_model, n, budget, precision
            ),
            "floor": functools.partial(w3.floor, n),
            "ours": functools.partial(run, RunInference(ours(autocast=precision))),
        }
        if precision is None:
            runs["Beam"] = functools.partial(run, beam_base.RunInference(beam_handler))
        yield Case(
            workload="BERT-base",
            variant=f"{variant}, budget of {budget:,} tokens",
            n=n,
            runs=runs,
            check=functools.partial(check_tokens, setup, weights, make_model, n, bool(precision)),
            goals={"ours of the ideal": ("≥", 0.9)},
        )


def token_loop(setup, weights, make_model, n, budget, precision=None):
    """Compute batches of similar lengths in turn."""
    device, outcome = setup.device, Outcome()
    model = load_weights(weights, make_model, device)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, bool(precision)):
        for batch in w3.ideal_batches(n, budget):
            inputs = {name: ids.to(device) for name, ids in w3.pad(batch).items()}
            outcome.add_batch([*map(w3.get_number, batch)], model(**inputs)[:, 0].float().cpu())
    return outcome


def predict_padded(batch, model, device, inference_args=None, model_id=None):
    """Pad and predict, as a user of Beam's handler would."""
    with torch.inference_mode():
        logits = model(**{name: ids.to(device) for name, ids in w3.pad(batch).items()}).cpu()
    return [beam_base.PredictionResult(x, y, model_id) for x, y in zip(batch, logits, strict=True)]


@functools.cache
def token_logits(setup, weights, make_model, n):
    """Return the first logit of each sequence without padding, in the order of their numbers."""
    model = load_weights(weights, make_model, setup.device)
    with torch.inference_mode():
        inputs = ({k: v.to(setup.device) for k, v in w3.pad([x]).items()} for x in w3.sequences(n))
        return np.array([model(**each)[0, 0].item() for each in inputs])


def check_tokens(setup, weights, make_model, n, low_precision, contender, outcome):
    """Check that each sequence came out once with its logits, within the precision of the model."""
    numbers = np.arange(1, n + 1)
    if contender == "floor":
        return outcome.check(numbers)
    logits, tolerance = token_logits(setup, weights, make_model, n), 3e-2 if low_precision else 1e-3
    outcome.check(numbers, logits, tolerance)
    for element, output in outcome.sample:
        difference = abs(output[0].item() - logits[w3.get_number(element) - 1])
        assert difference <= 5 * tolerance * np.abs(logits).max(), f"differs by {difference}"


@functools.cache
def texts(n, n_words):
    """Return texts that start with their number, from 1, and have log-normal lengths."""
    rng = random.Random(0)
    counts = [min(int(rng.lognormvariate(3, 0.8)) + 1, n_words) for _ in range(n)]
    words = (rng.choices(w10.WORDS, k=count) for count in counts)
    return [" ".join([str(number), *chosen]) for number, chosen in enumerate(words, 1)]


def embedding_cases(setup):
    n, n_words, config = setup.choose((4_096, 200, MINILM), (48, 20, SMALL))
    folder = str(make_folder("embeddings"))
    source = w10.save_model(transformers.BertModel, **config, max_position_embeddings=512)
    pooling = Pooling(config["hidden_size"], pooling_mode="mean")
    SentenceTransformer(modules=[Transformer(source), pooling], device="cpu").save(folder)
    make_texts = functools.partial(texts, n, n_words)
    ours = functools.partial(HuggingFaceModelHandlerEmbedding, folder, device=setup.name)
    budget = 16_384

    def run(handler):
        return run_pipeline(make_texts, RunInference(handler), Sink(w10.number, number))

    yield Case(
        workload="Embeddings",
        variant="MiniLM with 6 layers, log-normal lengths",
        n=n,
        runs={
            "limit": functools.partial(embedding_loop, setup, folder, make_texts),
            "floor": lambda: run_pipeline(make_texts, beam.Map(identity), ExampleSink(w10.number)),
            "ours": functools.partial(run, ours()),
            "ours with a token budget": functools.partial(run, ours(max_padded_size=budget)),
        },
        check=functools.partial(check_embeddings, setup, folder, make_texts),
        goals={
            "ours of the ideal": ("≥", 1),
            "ours with a token budget of the ideal": ("≥", 1),
        },
    )


def embedding_loop(setup, folder, make_texts):
    """Embed with sentence-transformers and its default options, which sort texts by length."""
    outcome = Outcome()
    model = SentenceTransformer(folder, device=setup.name)
    embeddings = model.encode(make_texts(), show_progress_bar=False)
    outcome.add_batch([*map(w10.number, make_texts())], embeddings[:, 0])
    return outcome


@functools.cache
def embeddings(setup, folder, make_texts):
    model = SentenceTransformer(folder, device=setup.name)
    return model.encode(make_texts(), batch_size=1, show_progress_bar=False)


def check_embeddings(setup, folder, make_texts, contender, outcome):
    """Check that each text came out once with its embedding."""
    numbers = np.arange(1, len(make_texts()) + 1)
    if contender == "floor":
        return outcome.check(numbers)
    correct = embeddings(setup, folder, make_texts)
    outcome.check(numbers, correct[:, 0], tolerance=1e-3)
    for text, embedding in outcome.sample:
        expected = correct[w10.number(text) - 1]
        np.testing.assert_allclose(
            embedding, expected, rtol=1e-2, atol=1e-2 * np.abs(correct).max()
        )


def pipeline_cases(setup):
    n, n_words, config = setup.choose((983, 100, {}), (32, 20, SMALL))
    transformers.logging.set_verbosity_error()
    base = BertConfig()
    sizes = {name: getattr(base, name) for name in SMALL} | config
    folder = w10.save_model(BertForSequenceClassification, **sizes, max_position_embeddings=512)
    make_texts = functools.partial(texts, n, n_words)
    ours = HuggingFacePipelineModelHandler("text-classification", folder, device=setup.name)
    beam_handler = w10.import_beam_handler()("text-classification", folder, device=setup.beam_name)

    def run(transform):
        return run_pipeline(make_texts, transform, Sink(w10.number, w10.score))

    yield Case(
        workload="Hugging Face pipeline",
        variant="text classification, BERT-base",
        n=n,
        runs={
            "limit": functools.partial(pipeline_loop, setup, folder, make_texts, 64),
            "floor": lambda: run_pipeline(make_texts, beam.Map(identity), ExampleSink(w10.number)),
            "ours": lambda: run(RunInference(ours)),
            "Beam": lambda: run(beam_base.RunInference(beam_handler)),
        },
        check=functools.partial(check_answers, setup, folder, make_texts),
        goals={"ours of the ideal": ("≥", 0.95)},
    )


def answer(setup, folder, make_texts, size):
    pipeline = transformers.pipeline("text-classification", model=folder, device=setup.device)
    return pipeline(make_texts(), batch_size=size)


def pipeline_loop(setup, folder, make_texts, size):
    outcome = Outcome()
    answers = answer(setup, folder, make_texts, size)
    outcome.add_batch([*map(w10.number, make_texts())], [*map(w10.score, answers)])
    return outcome


@functools.cache
def scores(setup, folder, make_texts):
    return [*map(w10.score, answer(setup, folder, make_texts, 1))]


def check_answers(setup, folder, make_texts, contender, outcome):
    """Check that each text came out once with its score."""
    numbers = np.arange(1, len(make_texts()) + 1)
    if contender == "floor":
        return outcome.check(numbers)
    correct = scores(setup, folder, make_texts)
    outcome.check(numbers, correct, tolerance=1e-3)
    for text, found in outcome.sample:
        assert abs(found["score"] - correct[w10.number(text) - 1]) < 1e-2
