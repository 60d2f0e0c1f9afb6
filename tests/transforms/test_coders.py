"""The coder of PredictionResult: values, types and sizes are kept, and each wire format stays readable."""

from __future__ import annotations

import datetime

import apache_beam as beam
import ml_dtypes
import numpy as np
import pytest
import torch
from apache_beam.ml.inference.base import PredictionResult as PredictionResultOfBeam

from runinference import PredictionResult
from runinference.errors import CoderVersionError, RunInferenceError
from runinference.transforms.coders import PredictionResultCoder

CODER = PredictionResultCoder()


class TensorSubclass(torch.Tensor):
    pass


def round_trip(value):
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
        np.arange(6)[::-2],
        np.array(["2026-11-22", "NaT"], dtype="datetime64[ns]"),
        np.array([1, 2], dtype="timedelta64[s]"),
        np.array([b"a\0", b"b"], dtype="S4"),
        np.zeros(2, "S0"),
        np.zeros(2, "V5"),
        np.array([1.5], np.longdouble),
        np.array(["a", "bcd"], dtype=np.dtypes.StringDType()),
        np.array([1, 2.5], dtype=ml_dtypes.bfloat16),
        np.array([1, 2], dtype=ml_dtypes.float8_e4m3fn),
        np.array([1, 2], dtype=ml_dtypes.int4),
    ],
)
def test_arrays_keep_their_dtype_shape_and_values(value):
    found = round_trip(PredictionResult(value, value, "m"))
    for field in (found.example, found.inference):
        assert field.dtype == value.dtype
        assert field.shape == value.shape
        assert field.tolist() == value.tolist()
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
        torch.arange(4.0)[1::3],  # one number with a stride
        torch.arange(9).to(torch.bfloat16).reshape(3, 3)[1:2, 1:2],
        torch.tensor([1 + 2j, 3, 4])[1::2].conj(),
        torch.tensor([1 + 2j]).conj().imag,  # with the bit for negation
        torch.ones(1).expand(4),
        torch.ones(3)[1:2].expand(1, 1),
        torch.ones(2).as_subclass(TensorSubclass),
        torch.ones(2, requires_grad=True) * 2,
        torch.eye(3).to_sparse_csr(),
        torch.eye(4).to_sparse_bsr((2, 2)),
        torch.rand(1, 3, 2, 2).contiguous(memory_format=torch.channels_last),
        torch.ones(2, dtype=torch.uint16),
        torch.inference_mode()(torch.ones)(2),
    ],
)
def test_tensors_keep_their_type_dtype_and_values(value):
    found = round_trip(PredictionResult(value, {"rows": [value]})).inference["rows"][0]
    assert type(found) is type(value)
    assert found.dtype == value.dtype
    assert found.requires_grad == value.requires_grad
    assert torch.equal(found.detach().to_dense(), value.detach().to_dense())


@pytest.mark.parametrize(
    "value",
    [
        torch.nested.nested_tensor([torch.zeros(2), torch.ones(3)]),
        torch.nested.nested_tensor([torch.zeros(2), torch.ones(3)], layout=torch.jagged),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        torch.empty(3, device="meta"),
        torch.ones(2, dtype=torch.float8_e5m2),
        torch.ones(2, dtype=torch.float8_e8m0fnu),
        torch.ones(2, dtype=torch.complex32),
        np.ma.array([1, 2, 3], mask=[0, 1, 0]),
        np.matrix([[1, 2]]),
        np.rec.array([(1, 2.0)]),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])[0],
        np.bytes_(b"ends in zero\0"),
        np.str_("text"),
        np.str_("ends in zero\0"),
        np.datetime64("2026-11-22"),
        ml_dtypes.bfloat16(1.5),
    ],
    ids=lambda value: f"{type(value).__name__}-{value.dtype}",
)
def test_unusual_arrays_and_tensors_are_unchanged(value):
    found = round_trip(PredictionResult(value, value)).inference
    assert type(found) is type(value)
    assert found.dtype == value.dtype
    if isinstance(value, torch.Tensor) and value.is_nested:
        found, value = found.unbind(), value.unbind()
    assert repr(found) == repr(value)
    if isinstance(value, (str, bytes)):  # NumPy doesn't show zeros at the end
        assert len(found) == len(value)


@pytest.mark.parametrize("scalar", [np.int64(7), np.float32(0.1), np.bool_(True)])
def test_numpy_scalars_keep_their_type(scalar):
    found = round_trip(PredictionResult(1, scalar)).inference
    assert type(found) is type(scalar)
    assert found == scalar


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        3,
        2.5,
        [1, "a"],
        {"k": (1, None)},
        {1, 2},
        b"bytes",
        "half a pair: \ud83d",
        {"\udc00": [("\ud83d", 1)], "é": "\U0001f600"},
    ],
)
def test_other_values_are_unchanged(value):
    assert round_trip(PredictionResult("x", value, "model")) == ("x", value, "model")


def test_values_that_are_not_our_results_are_encoded_too():
    assert round_trip("text") == "text"
    found = round_trip(PredictionResultOfBeam("x", 1, "m"))
    assert type(found) is PredictionResultOfBeam


def test_a_row_of_a_batch_is_encoded_without_the_batch():
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


#: Encoded values of each version of the wire format. Running jobs hold such bytes: never change an entry, and
#: add the new ones with each new version.
ENCODED = {
    1: [
        ("0101000000", PredictionResult(None, None, None)),
        ("0101010102400400000000000004016d", PredictionResult(1, 2.5, "m")),
        ("010109010402c3a904016d", PredictionResult(True, "\u00e9", "m")),
        ("01010302006104047465787404016d", PredictionResult(b"\x00a", "text", "m")),
        (
            "0101070104016b0602010100050301010401610701040178050102400000000000000004016d",
            PredictionResult({"k": (1, None)}, [1, "a", {"x": [2.0]}], "m"),
        ),
        (
            "0101ff00033c663402020318000000000000803f0000004000004040000080400000a040ff00033c6938000803"
            "0000000000000004016d",
            PredictionResult(
                np.arange(6, dtype="<f4").reshape(2, 3), np.array(3, dtype="<i8"), "m"
            ),
        ),
        (
            "0101ff00033c553201021061000000000000006200000063000000ff00037c53320102046100626304016d",
            PredictionResult(np.array(["a", "bc"]), np.array([b"a", b"bc"]), "m"),
        ),
        ("01010101ff01033c663400040000003f04016d", PredictionResult(1, np.float32(0.5), "m")),
        (
            "0101ff0205696e743634010318000000000000000001000000000000000200000000000000ff020862666c6f"
            "6174313602010204c03f204004016d",
            PredictionResult(
                torch.arange(3), torch.tensor([[1.5, 2.5]], dtype=torch.bfloat16), "m"
            ),
        ),
        (
            "010101000702040673636f726573ff00033c6638010108000000000000f03f04036964730501ff0205696e74"
            "33320101040700000000",
            PredictionResult(
                0,
                {"scores": np.array([1.0]), "ids": [torch.tensor([7], dtype=torch.int32)]},
                None,
            ),
        ),
        (
            "0101ff00033c663802000300ff0207666c6f617433320200030004016d",
            PredictionResult(np.zeros((0, 3)), torch.zeros(0, 3), "m"),
        ),
        (
            "01010100ff032b80059520000000000000008c086461746574696d65948c0464617465949394430407ea0b1b"
            "94859452942e04016d",
            PredictionResult(0, datetime.date(2026, 11, 27), "m"),
        ),
        ("0100040474657874", "text"),
    ]
}
CASES = [(version, *case) for version, cases in ENCODED.items() for case in cases]


@pytest.mark.parametrize(("version", "encoded", "value"), CASES)
def test_values_of_each_wire_format_version_are_decoded(version, encoded, value):
    data = bytes.fromhex(encoded)
    assert data[0] == version
    assert_same(CODER.decode(data), value)


@pytest.mark.parametrize(("encoded", "value"), ENCODED[max(ENCODED)])
def test_the_latest_wire_format_is_the_one_that_is_written(encoded, value):
    if "datetime" not in repr(value):  # the bytes of a pickle depend on the version of Python
        assert CODER.encode(value).hex() == encoded


def test_an_unknown_wire_format_version_raises_an_error_with_both_versions():
    data = bytes([77]) + CODER.encode(PredictionResult(1, 2))[1:]
    with pytest.raises(CoderVersionError, match=r"version 77: .* supports version 1\.") as caught:
        CODER.decode(data)
    assert isinstance(caught.value, (RunInferenceError, ValueError))
    assert "same version of runinference on all workers" in str(caught.value)
    assert "drain" in str(caught.value)


def assert_same(found, expected):
    """Compares types, dtypes, shapes and values, also inside of containers."""
    assert type(found) is type(expected)
    if isinstance(expected, (np.ndarray, np.generic, torch.Tensor)):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tolist() == expected.tolist()
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        assert_same(list(found.values()), list(expected.values()))
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected
