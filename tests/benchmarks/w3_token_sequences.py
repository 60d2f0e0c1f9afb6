"""W3: 1,024 token sequences of very different lengths, and a BERT of 4 layers: who pads least?"""

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

from benchmarks.harness import Case, Keep, KeepResult, Outcome, run_pipeline
from runinference import Padding, PredictionResult, RunInference
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
    """The BERT; counts the tokens that it gets, padding included."""

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
    model, path = saved()
    options = {"state_dict_path": path, "model_class": Classifier}
    ours = PytorchModelHandlerKeyedTensor(
        **options,
        padding=Padding(value={"input_ids": 0}, mask="attention_mask"),
        max_padded_size=BUDGET,
    )
    peer = functools.partial(
        beam_pytorch.PytorchModelHandlerKeyedTensor, **options, inference_fn=padded_by_hand
    )
    fixed = {"min_batch_size": 32, "max_batch_size": 32}
    buckets = {"batch_length_fn": length, "batch_bucket_boundaries": BUCKETS}
    sort = SortAndBatchElements(1, 1_024, BUDGET, length)
    runs = {
        "limit": functools.partial(bare_loop, model, n),
        "floor": functools.partial(floor, n),
        "ours": functools.partial(run_with, n, RunInference(ours)),
        "Beam": functools.partial(run_with, n, beam_base.RunInference(peer(**fixed))),
        "Beam with buckets": functools.partial(
            run_with,
            n,
            beam_base.RunInference(peer(**fixed, **buckets, max_batch_duration_secs=60)),
        ),
        "Beam, sorted by hand": functools.partial(
            run_with, n, sort, beam_base.RunInference(peer().with_no_batching())
        ),
    }
    yield Case(
        workload="W3",
        variant="log-normal lengths",
        n=n,
        runs={name: functools.partial(counted, run, n) for name, run in runs.items()},
        check=functools.partial(check, model, n),
        goals={
            "ours of the ideal": ("≥", 0.95),
            "ours ÷ Beam": ("≥", 3),
            "ours ÷ Beam, sorted by hand": ("≥", 1),
            "tokens a real one, ours": ("≤", 1.1),
        },
    )


@functools.cache
def sequences(n):
    """The elements: dictionaries of one tensor, whose first two tokens tell them apart."""
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


def number_of(element):
    first, second = element["input_ids"][:2].tolist()
    return (first - 1) * 100 + second - 1


@functools.cache
def saved():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Classifier().eval().requires_grad_(False)
    path = Path(tempfile.mkdtemp(prefix="benchmark-")) / "bert.pt"
    torch.save(model.state_dict(), path)
    return model, str(path)


def padded(batch):
    """A batch and its mask, padded to its longest sequence."""
    ids = torch.nn.utils.rnn.pad_sequence([x["input_ids"] for x in batch], batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def padded_by_hand(batch, model, device, inference_args=None, model_id=None):
    """What a user of Beam's writes."""
    with torch.inference_mode():
        logits = model(**padded(batch))
    return [beam_base.PredictionResult(x, y, model_id) for x, y in zip(batch, logits, strict=True)]


@functools.cache
def ideal_batches(n):
    """All sequences by length, longest first, in batches of at most so many tokens with padding."""
    made, batch = [], []
    for element in sorted(sequences(n), key=length, reverse=True):
        if batch and length(batch[0]) * (len(batch) + 1) > BUDGET:
            made.append(batch)
            batch = []
        batch.append(element)
    return [*made, batch]


def bare_loop(model, n):
    examples, logits = [], []
    with torch.inference_mode():
        for batch in ideal_batches(n):
            examples.extend(batch)
            logits.extend(model(**padded(batch)))
    return Outcome(examples, logits)


def floor(n):
    return run_pipeline(functools.partial(results, n), beam.Map(identity), beam.ParDo(Keep()))


@functools.cache
def results(n):
    return [PredictionResult(element, torch.zeros(8), "bert.pt") for element in sequences(n)]


def identity(result):
    return result


def run_with(n, *steps):
    return run_pipeline(functools.partial(sequences, n), *steps, beam.ParDo(KeepResult()))


def counted(run, n):
    """A run, and how many tokens the model got for each real one."""
    Classifier.n_tokens = 0
    outcome = run()
    share = Classifier.n_tokens / sum(map(length, sequences(n)))
    facts = {"tokens a real one": share} if share else {}
    return Outcome(outcome.examples, outcome.inferences, facts)


@functools.cache
def right(model, n):
    with torch.inference_mode():
        return np.stack([model(**padded([element]))[0].numpy() for element in sequences(n)])


def check(model, n, contestant, outcome):
    """Every sequence came out once, and each with the logits that it gets alone, without padding."""
    if contestant == "floor":
        assert len(outcome.examples) == n
        return
    numbers = [number_of(element) for element in outcome.examples]
    assert sorted(numbers) == list(range(n))
    logits = torch.stack(list(outcome.inferences)).numpy()
    np.testing.assert_allclose(logits, right(model, n)[numbers], rtol=1e-4, atol=1e-5)
