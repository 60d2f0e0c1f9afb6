"""W3: 1,024 token sequences of log-normal length and a 4-layer BERT. The amount of padding dominates."""

import functools
import tempfile
from pathlib import Path

import apache_beam as beam
import numpy as np
import torch
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import pytorch_inference as beam_pytorch
from apache_beam.transforms.util import SortAndBatchElements
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.harness import (
    Case,
    ExampleSink,
    Outcome,
    Sink,
    check_share,
    identity,
    run_pipeline,
)
from runinference import Padding, RunInference
from runinference.pytorch_inference import PytorchModelHandlerKeyedTensor

BUDGET = 2_048
BUCKETS = [16, 32, 64, 128, 256]
CONFIG = {
    "vocab_size": 1_000,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 512,
    "num_labels": 8,
}


class Classifier(torch.nn.Module):
    """A BERT classifier that counts its input tokens, padding included."""

    n_tokens = 0

    def __init__(self):
        super().__init__()
        self.bert = BertForSequenceClassification(BertConfig(**CONFIG))

    def forward(self, input_ids, attention_mask):
        Classifier.n_tokens += input_ids.numel()
        return self.bert(input_ids=input_ids, attention_mask=attention_mask).logits


def cases(scale):
    n = max(48, int(1_024 * scale))
    torch.set_num_threads(1)
    model, path = save_model()
    options = {"state_dict_path": path, "model_class": Classifier}
    ours = PytorchModelHandlerKeyedTensor(
        **options,
        padding=Padding(value={"input_ids": 0}, mask="attention_mask"),
        max_padded_size=BUDGET,
    )
    beam_handler = functools.partial(
        beam_pytorch.PytorchModelHandlerKeyedTensor, **options, inference_fn=predict_padded
    )
    fixed = {"min_batch_size": 32, "max_batch_size": 32}
    elements = {"Beam": n // 4}
    buckets = {"batch_length_fn": length, "batch_bucket_boundaries": BUCKETS}
    sort = SortAndBatchElements(1, 1_024, BUDGET, length)
    runs = {
        "limit": functools.partial(bare_loop, model, n),
        "floor": functools.partial(floor, n),
        "ours": functools.partial(run_with, n, RunInference(ours)),
        "Beam": functools.partial(
            run_with, elements["Beam"], beam_base.RunInference(beam_handler(**fixed))
        ),
        "Beam with buckets": functools.partial(
            run_with,
            n,
            beam_base.RunInference(beam_handler(**fixed, **buckets, max_batch_duration_secs=60)),
        ),
        "Beam, sorted manually": functools.partial(
            run_with, n, sort, beam_base.RunInference(beam_handler().with_no_batching())
        ),
    }
    yield Case(
        workload="W3",
        variant="log-normal lengths",
        n=n,
        runs={
            name: functools.partial(run_and_count, run, elements.get(name, n))
            for name, run in runs.items()
        },
        check=check_share(functools.partial(check, model), n, elements),
        elements=elements,
        goals={
            "ours of the ideal": ("≥", 1),
            "ours ÷ Beam": ("≥", 3),
            "ours ÷ Beam, sorted manually": ("≥", 1.1),
            "tokens per real token, ours": ("≤", 1.1),
        },
    )


@functools.cache
def sequences(n):
    """Return dictionaries of one tensor. The first two tokens identify the sequence."""
    generator = np.random.default_rng(0)
    lengths = np.exp(generator.normal(3.6, 0.9, n)).clip(4, 512).astype(int)
    elements = []
    for number, size in enumerate(lengths):
        tokens = generator.integers(1, CONFIG["vocab_size"], size)
        tokens[:2] = 1 + number // 100, 1 + number % 100
        elements.append({"input_ids": torch.from_numpy(tokens)})
    return elements


def length(element):
    return len(element["input_ids"])


def get_number(element):
    """Return the number that identifies a sequence, from 1."""
    first, second = element["input_ids"][:2].tolist()
    return (first - 1) * 100 + second


@functools.cache
def save_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Classifier().eval().requires_grad_(False)
    path = Path(tempfile.mkdtemp(prefix="benchmark-")) / "bert.pt"
    torch.save(model.state_dict(), path)
    return model, str(path)


def pad(batch):
    """Pad a batch to its longest sequence and create the attention mask."""
    ids = torch.nn.utils.rnn.pad_sequence([x["input_ids"] for x in batch], batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def predict_padded(batch, model, device, inference_args=None, model_id=None):
    """Pad and predict, as a user of Beam's handler would."""
    with torch.inference_mode():
        logits = model(**pad(batch))
    return [beam_base.PredictionResult(x, y, model_id) for x, y in zip(batch, logits, strict=True)]


@functools.cache
def ideal_batches(n, budget=BUDGET):
    """Return batches of at most `budget` padded tokens, sorted by decreasing length."""
    result, batch = [], []
    for element in sorted(sequences(n), key=length, reverse=True):
        if batch and length(batch[0]) * (len(batch) + 1) > budget:
            result.append(batch)
            batch = []
        batch.append(element)
    return [*result, batch]


def value(logits):
    """Return one logit of a sequence for the checksum."""
    return logits.numpy().item(0)


def bare_loop(model, n):
    outcome = Outcome()
    with torch.inference_mode():
        for batch in ideal_batches(n):
            outcome.add_batch([*map(get_number, batch)], model(**pad(batch))[:, 0])
    return outcome


def floor(n):
    return run_pipeline(
        functools.partial(sequences, n), beam.Map(identity), ExampleSink(get_number)
    )


def run_with(n, *steps):
    return run_pipeline(functools.partial(sequences, n), *steps, Sink(get_number, value))


def run_and_count(run, n):
    """Run a contender and count the input tokens of the model per real token."""
    Classifier.n_tokens = 0
    outcome = run()
    share = Classifier.n_tokens / sum(map(length, sequences(n)))
    outcome.metrics = {"tokens per real token": share} if share else {}
    return outcome


@functools.cache
def expected(model, n):
    with torch.inference_mode():
        return np.stack([model(**pad([element]))[0].numpy() for element in sequences(n)])


def check(model, n, contender, outcome):
    """Check that every sequence came out once, with the same logits as without padding."""
    numbers = np.arange(1, n + 1)
    if contender == "floor":
        return outcome.check(numbers)
    logits = expected(model, n)
    outcome.check(numbers, logits[:, 0], tolerance=1e-5)
    for element, inference in outcome.sample:
        correct = logits[get_number(element) - 1]
        np.testing.assert_allclose(inference, correct, rtol=1e-4, atol=1e-5)
