"""How results travel between workers."""

from __future__ import annotations

import apache_beam as beam
import numpy as np
import pytest
import torch
from apache_beam.ml.inference.base import PredictionResult as PredictionResultOfBeam

from runinference import PredictionResult
from runinference.transforms.coders import PredictionResultCoder

CODER = PredictionResultCoder()


def there_and_back(value):
    return CODER.decode(CODER.encode(value))


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(6)[::2],
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.zeros((0, 3)),
        np.array(3.5),
        np.array(["a", "bcd"]),
        np.array([b"a", b"bcd"]),
        np.array([1 + 2j]),
        np.array([True, False]),
        np.array(["2026-11-22"], dtype="datetime64[D]"),
        np.array([{"an": "object"}], dtype=object),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.arange(3).astype(">i4"),
    ],
)
def test_arrays_arrive_as_they_left(value):
    found = there_and_back(PredictionResult(value, value, "m"))
    for part in (found.example, found.inference):
        assert part.dtype == value.dtype
        assert part.shape == value.shape
        assert part.tolist() == value.tolist()
    found.example[...] = value  # writeable


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(6.0).reshape(2, 3),
        torch.arange(6).reshape(2, 3).T,
        torch.zeros(0, 3),
        torch.tensor(3.5, dtype=torch.float64),
        torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.tensor([1 + 2j]).conj(),
        torch.ones(2, requires_grad=True),
        torch.ones(3, 3).to_sparse(),
        torch.nn.Parameter(torch.ones(2)),
    ],
)
def test_tensors_arrive_as_they_left(value):
    found = there_and_back(PredictionResult(value, {"rows": [value]})).inference["rows"][0]
    assert type(found) is type(value)
    assert found.dtype == value.dtype
    assert found.requires_grad == value.requires_grad
    assert torch.equal(found.detach().to_dense(), value.detach().to_dense())


@pytest.mark.parametrize("scalar", [np.int64(7), np.float32(0.1), np.bool_(True)])
def test_scalars_of_numpy_keep_their_type(scalar):
    found = there_and_back(PredictionResult(1, scalar)).inference
    assert type(found) is type(scalar)
    assert found == scalar


@pytest.mark.parametrize(
    "value", [None, "text", 3, 2.5, [1, "a"], {"k": (1, None)}, {1, 2}, b"bytes"]
)
def test_other_values_arrive_as_they_left(value):
    assert there_and_back(PredictionResult("x", value, "model")) == ("x", value, "model")


def test_what_is_no_result_is_coded_all_the_same():
    assert there_and_back("text") == "text"
    found = there_and_back(PredictionResultOfBeam("x", 1, "m"))
    assert type(found) is PredictionResultOfBeam


def test_a_row_of_a_batch_is_coded_alone():
    batch = torch.zeros(256, 768)
    assert len(CODER.encode(PredictionResult(0, batch[7], "model.pt"))) < 3_200
    assert len(CODER.encode(PredictionResult(0, batch.numpy()[7], "model.pt"))) < 3_200
    result = PredictionResult(torch.zeros(8), torch.zeros(1000), "model.pt")
    assert len(CODER.encode(result)) < 4_300


def test_the_coder_is_registered():
    assert beam.coders.registry.get_coder(PredictionResult) == CODER
    keyed = beam.coders.registry.get_coder(beam.typehints.Tuple[str, PredictionResult])
    key, result = keyed.decode(keyed.encode(("k", PredictionResult(1, 2))))
    assert (key, result) == ("k", (1, 2, None))


def test_results_survive_a_shuffle():
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        results = pipeline | beam.Create([PredictionResult(np.ones(2), torch.ones(2), "m")])
        results = (
            results | beam.Map(lambda r: r).with_output_types(PredictionResult) | beam.Reshuffle()
        )
        _ = results | beam.Map(assert_equal)


def assert_equal(result):
    assert result.example.tolist() == result.inference.tolist() == [1, 1]
