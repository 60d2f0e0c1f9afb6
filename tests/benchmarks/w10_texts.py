"""W10: 512 short texts and a Hugging Face text classification pipeline.

Loading the pipeline takes a fifth of the time of the bare loop. Only here, the bare loop loads its model, too.
"""

import functools
import operator
import random
import sys
import tempfile
import time
from pathlib import Path

import apache_beam as beam
import numpy as np
import torch
import transformers
from apache_beam.ml.inference import base as beam_base

from benchmarks.harness import Case, ExampleSink, Outcome, Sink, identity, run_pipeline
from benchmarks.placeholders import placeholder_package
from runinference import RunInference
from runinference.huggingface_inference import HuggingFacePipelineModelHandler

SIZES = (1, 8, 32, 64, 128, 256)
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
WORDS = (
    "the",
    "a",
    "beam",
    "model",
    "row",
    "text",
    "good",
    "bad",
    "fast",
    "slow",
    "batch",
    "stream",
    "never",
)


def cases(scale):
    n = max(32, int(512 * scale))
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    folder = save_model()
    pipeline = load(folder)
    ours = HuggingFacePipelineModelHandler("text-classification", folder, device="CPU")
    beam_handler = import_beam_handler()("text-classification", folder, device="CPU")
    yield Case(
        workload="W10",
        variant="text classification",
        n=n,
        runs={
            "limit": functools.partial(load_and_loop, folder, n, best_size(pipeline, n)),
            "floor": functools.partial(floor, n),
            "ours": functools.partial(run_with, n, RunInference, ours),
            "Beam": functools.partial(run_with, n, beam_base.RunInference, beam_handler),
        },
        check=functools.partial(check, pipeline, n),
        goals={"ours of the ideal": ("≥", 0.85), "ours ÷ Beam": ("≥", 5)},
    )


def import_beam_handler():
    """Import Beam's handler with placeholders for TensorFlow and a class that Transformers 5 removed."""
    with placeholder_package("tensorflow", "Tensor"):
        _ = transformers.AutoModel, transformers.Pipeline
        sys.modules["transformers"].TFAutoModel = type("TFAutoModel", (), {})
        from apache_beam.ml.inference import huggingface_inference
    return huggingface_inference.HuggingFacePipelineModelHandler


@functools.cache
def texts(n):
    """Return texts of 5 to 10 words that start with their number."""
    rng = random.Random(0)
    return [
        " ".join([str(number), *rng.choices(WORDS, k=rng.randint(4, 9))])
        for number in range(1, n + 1)
    ]


@functools.cache
def save_model(model_class=transformers.BertForSequenceClassification, **config):
    """Save a BERT model, by default a small one, with its tokenizer and return the directory."""
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    digits = [*"0123456789", *(f"##{digit}" for digit in range(10))]
    (folder / "vocab.txt").write_text("\n".join([*special, *digits, *WORDS]))
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    vocab_size = len(special) + len(digits) + len(WORDS)
    config = transformers.BertConfig(vocab_size=vocab_size, **{**SMALL, **config})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model_class(config).save_pretrained(folder)
    return str(folder)


def best_size(pipeline, n):
    def seconds(size):
        start = time.perf_counter()
        bare_loop(pipeline, n, size)
        return time.perf_counter() - start

    bare_loop(pipeline, n, 8)
    return min(SIZES, key=lambda size: min(seconds(size), seconds(size)))


def number(text):
    """Return the number at the start of a text, from 1."""
    return int(text.partition(" ")[0])


#: The score in an answer of the pipeline.
score = operator.itemgetter("score")


def load(folder):
    return transformers.pipeline("text-classification", model=folder, device="cpu")


def load_and_loop(folder, n, size):
    return bare_loop(load(folder), n, size)


def bare_loop(pipeline, n, size):
    outcome = Outcome()
    outcome.add_batch([*map(number, texts(n))], [*map(score, pipeline(texts(n), batch_size=size))])
    return outcome


def floor(n):
    return run_pipeline(functools.partial(texts, n), beam.Map(identity), ExampleSink(number))


def run_with(n, transform, handler):
    return run_pipeline(functools.partial(texts, n), transform(handler), Sink(number, score))


@functools.cache
def expected(pipeline, n):
    return pipeline(texts(n), batch_size=1)


def check(pipeline, n, contender, outcome):
    """Check that every text came out once, with the correct label and score."""
    numbers = np.arange(1, n + 1)
    if contender == "floor":
        return outcome.check(numbers)
    answers = expected(pipeline, n)
    outcome.check(numbers, [*map(score, answers)], tolerance=1e-5)
    for text, inference in outcome.sample:
        correct = answers[number(text) - 1]
        np.testing.assert_allclose(inference["score"], correct["score"], rtol=1e-5, atol=1e-5)
        assert inference["label"] == correct["label"] or abs(inference["score"] - 0.5) < 1e-5
