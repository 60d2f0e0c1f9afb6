"""Padding of examples, and unpadding of their results."""

from __future__ import annotations

import pickle
from typing import NamedTuple

import numpy as np
import pytest
import torch
from apache_beam.ml.inference.base import RunInference as BeamsRunInference
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from common import run
from runinference import KeyedModelHandler, RunInference
from runinference.batching.policy import resolve_policy
from runinference.collate.padding import Padding
from runinference.collate.stack import stack_arrays
from runinference.errors import BatchShapeError, OptionError, UnknownOptionError
from runinference.pytorch_inference import (
    PytorchModelHandlerKeyedTensor,
    PytorchModelHandlerTensor,
    make_keyed_tensor_model_fn,
    make_tensor_model_fn,
)
from runinference.sklearn_inference import SklearnModelHandlerNumpy

WIDTH = 8  # of the hidden states, and the length of the longest text


def bert() -> BertModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "max_position_embeddings": 16, "num_hidden_layers": 1}
    return BertModel(
        BertConfig(hidden_size=WIDTH, num_attention_heads=2, intermediate_size=16, **sizes)
    )


def text(length: int) -> dict[str, torch.Tensor]:
    return {"input_ids": 1 + torch.arange(length) % 19}


TEXTS = [text(n) for n in (3, WIDTH, 1, 5, WIDTH)]
TOKENS = Padding(value={"input_ids": 0}, mask="attention_mask")


@pytest.fixture(scope="module")
def texts_model(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("bert") / "bert.pt")
    torch.save(bert().state_dict(), path)
    return path


def on_texts(path, **options):
    return PytorchModelHandlerKeyedTensor(path, bert, min_batch_size=len(TEXTS), **options)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_padding_does_not_change_the_output_of_a_transformer(texts_model):
    model = bert().eval()
    for one, result in zip(
        TEXTS, on_texts(texts_model, padding=TOKENS).predict(TEXTS), strict=True
    ):
        alone = model(input_ids=one["input_ids"][None])
        close(result.inference["last_hidden_state"], alone.last_hidden_state[0].detach())
        close(result.inference["pooler_output"], alone.pooler_output[0].detach())


def test_padding_without_a_mask_changes_the_output(texts_model):
    without = Padding(value={"input_ids": 0})
    short, _ = on_texts(texts_model, padding=without).predict(TEXTS[:2])
    masked, _ = on_texts(texts_model, padding=TOKENS).predict(TEXTS[:2])
    assert not torch.allclose(short.inference["pooler_output"], masked.inference["pooler_output"])


def test_keeps_the_example_and_results_own_their_memory(texts_model):
    for one, result in zip(
        TEXTS, on_texts(texts_model, padding=TOKENS).predict(TEXTS), strict=True
    ):
        assert result.example is one
        states = result.inference["last_hidden_state"]
        assert states.untyped_storage().nbytes() == 4 * states.numel()
        assert not states.is_inference()


def test_pads_an_existing_mask_with_zeros(texts_model):
    masked = [{**one, "attention_mask": torch.ones_like(one["input_ids"])} for one in TEXTS]
    with_mask = on_texts(texts_model, padding=TOKENS).predict(masked)
    without_mask = on_texts(texts_model, padding=TOKENS).predict(TEXTS)
    for one, other in zip(with_mask, without_mask, strict=True):
        close(one.inference["pooler_output"], other.inference["pooler_output"])


def test_max_padded_size_uses_the_length_of_the_padding(texts_model):
    handler = PytorchModelHandlerKeyedTensor(
        texts_model, bert, padding=TOKENS, max_padded_size=2 * WIDTH
    )
    assert resolve_policy(handler).length(TEXTS[1]) == WIDTH
    assert resolve_policy(KeyedModelHandler(handler)).length(("key", TEXTS[0])) == 3
    assert len(handler.predict(TEXTS)) == len(TEXTS)
    given = PytorchModelHandlerKeyedTensor(
        texts_model, bert, padding=TOKENS, max_padded_size=99, batch_length_fn=len
    )
    assert resolve_policy(given).length_fn is len


@pytest.mark.parametrize("transform", [RunInference, BeamsRunInference])
def test_padding_works_in_our_pipelines_and_in_beams(texts_model, transform):
    handler = on_texts(texts_model, padding=TOKENS, max_padded_size=100)
    keyed = [(n, one) for n, one in enumerate(TEXTS)]
    results = dict(run(keyed, transform(KeyedModelHandler(handler))))
    lengths = [len(results[n].inference["last_hidden_state"]) for n in range(len(TEXTS))]
    assert lengths == [len(one["input_ids"]) for one in TEXTS]


class Parts(NamedTuple):
    tokens: torch.Tensor
    classes: torch.Tensor
    loss: torch.Tensor


class Tagger(torch.nn.Module):
    """A model with outputs per token and per text. Counts its calls."""

    calls = 0

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(classes))

    def forward(self, x, mask=None):
        type(self).calls += 1
        return 2 * x

    def mean(self, x, mask):
        return (x * mask).sum(1) / mask.sum(1)

    def parts(self, x, mask):
        return Parts(x, self.mean(x, mask)[:, None] * self.weight, x.sum())

    def nested(self, x, mask):
        return {"layers": (x, (x, None)), "name": ["a"] * len(x)}

    def transposed(self, x):
        return x.transpose(1, 2)

    def squeezed(self, x, mask=None):
        return x.squeeze()


@pytest.fixture
def tagger(tmp_path):
    torch.save(Tagger().state_dict(), tmp_path / "tagger.pt")
    Tagger.calls = 0
    return str(tmp_path / "tagger.pt")


ZEROS = Padding()
ROWS = [torch.arange(1.0, 1 + n) for n in (2, 4, 1, 3)]


def on_rows(path, method=None, padding=ZEROS, **options):
    if method:
        options["inference_fn"] = make_tensor_model_fn(method)
    options = {"min_batch_size": 4, **options}
    return PytorchModelHandlerTensor(path, Tagger, padding=padding, **options)


def test_pads_tensors_and_unpads_results(tagger):
    for row, result in zip(ROWS, on_rows(tagger).predict(ROWS), strict=True):
        assert torch.equal(result.inference, 2 * row)


def test_passes_the_mask_of_tensors_as_a_keyword(tagger):
    results = on_rows(tagger, "mean", Padding(value=99, mask="mask")).predict(ROWS)
    assert [float(result.inference) for result in results] == [1.5, 2.5, 1, 2]


def test_does_not_cut_outputs_that_have_the_padded_length_by_chance(tagger):
    results = on_rows(tagger, "parts", Padding(mask="mask")).predict(ROWS)
    assert [len(result.inference.tokens) for result in results] == [2, 4, 1, 3]
    assert [len(result.inference.classes) for result in results] == [4, 4, 4, 4]
    assert all(isinstance(result.inference, Parts) for result in results)


def test_unpads_nested_outputs(tagger):
    results = on_rows(tagger, "nested", Padding(mask="mask")).predict(ROWS)
    for row, result in zip(ROWS, results, strict=True):
        first, (second, nothing) = result.inference["layers"]
        assert len(first) == len(second) == len(row)
        assert nothing is None
        assert result.inference["name"] == "a"


def test_checks_once_per_model_which_outputs_follow_the_length(tagger):
    handler = on_rows(tagger)
    for _ in range(3):
        handler.predict(ROWS[1:])
    assert Tagger.calls == 3 + 1


def test_does_not_check_the_outputs_if_all_lengths_are_equal(tagger):
    on_rows(tagger).predict([ROWS[0]] * 4)
    assert Tagger.calls == 1


def test_unpads_outputs_of_a_model_that_squeezes(tagger):
    results = on_rows(tagger, "squeezed").predict(ROWS)
    assert [len(result.inference) for result in results] == [2, 4, 1, 3]


def test_unpad_false_keeps_the_padding(tagger):
    results = on_rows(tagger, padding=Padding(value=-1, unpad=False)).predict(ROWS[:3])
    assert [result.inference.tolist() for result in results][2] == [2, -2, -2, -2]
    assert Tagger.calls == 1


def test_pads_and_unpads_on_the_left(tagger):
    left = Padding(value=-1, mask="mask", side="left")
    joined = left.join(ROWS[:2], lambda batch, *_: torch.stack(batch))
    assert joined.tolist() == [[-1, -1, 1, 2], [1, 2, 3, 4]]
    assert left.masks(ROWS[:2])["mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    for row, result in zip(ROWS, on_rows(tagger, padding=left).predict(ROWS), strict=True):
        assert torch.equal(result.inference, 2 * row)


def test_pads_another_dimension(tagger):
    rows = [torch.full((2, n), float(n)) for n in (3, 1, 2)]
    for row, result in zip(
        rows, on_rows(tagger, padding=Padding(dim=1), min_batch_size=3).predict(rows), strict=True
    ):
        assert torch.equal(result.inference, 2 * row)


def test_does_not_unpad_an_output_with_the_length_in_another_dimension(tagger):
    rows = [torch.ones(n, 2) for n in (3, 1)]
    results = on_rows(tagger, "transposed", min_batch_size=2).predict(rows)
    assert [result.inference.shape for result in results] == [(2, 3), (2, 3)]


def test_pads_an_empty_example(tagger):
    rows = [torch.zeros(0), torch.ones(2), torch.ones(3)]
    results = on_rows(tagger, min_batch_size=3).predict(rows)
    assert [len(result.inference) for result in results] == [0, 2, 3]


@pytest.mark.parametrize("lengths", [[5, 0], [0, 5], [1, 0], [0, 1, 1], [5, 3, 0], [0, 0], [2, 0]])
@pytest.mark.parametrize("side", ["right", "left"])
def test_an_empty_example_gets_an_empty_result_in_any_batch(tagger, lengths, side):
    handler = on_rows(tagger, padding=Padding(side=side), min_batch_size=8)
    rows = [torch.arange(1.0, 1 + n) for n in lengths]
    for row, result in zip(rows, handler.predict(rows), strict=True):
        assert torch.equal(result.inference, 2 * row)


def test_an_empty_example_does_not_cut_outputs_that_have_the_padded_length_by_chance(tagger):
    handler = on_rows(tagger, "parts", Padding(mask="mask"))
    results = handler.predict([torch.zeros(0), torch.ones(4)])
    assert [len(result.inference.tokens) for result in results] == [0, 4]
    assert [len(result.inference.classes) for result in results] == [4, 4]


def test_dictionaries_with_an_empty_example_are_unpadded(tagger):
    handler = PytorchModelHandlerKeyedTensor(
        tagger, Tagger, padding=Padding(value={"x": 0}, mask="mask"), min_batch_size=2
    )
    results = handler.predict([{"x": torch.zeros(0)}, {"x": torch.ones(3)}])
    assert [len(result.inference) for result in results] == [0, 3]


@pytest.mark.parametrize("empty", [torch.tensor([]), torch.zeros(0, dtype=torch.int32)])
def test_an_empty_example_has_the_dtype_of_the_others(tagger, empty):
    for batch in ([empty, torch.tensor([7, 8])], [torch.tensor([7, 8]), empty]):
        results = on_rows(tagger, min_batch_size=2).predict(batch)
        assert {result.inference.dtype for result in results} == {torch.int64}
    rows = Padding(value=-1).join([[], [2**53 + 1]], stack_arrays)
    assert rows.tolist() == [[-1], [2**53 + 1]]


@pytest.mark.parametrize(
    ("value", "example"),
    [
        (0.5, torch.tensor([1])),
        (-1, torch.tensor([1], dtype=torch.uint8)),
        (2, torch.tensor([True])),
        (float("nan"), torch.tensor([1])),
        (-1e9, torch.tensor([1.0], dtype=torch.float16)),
        (2**24 + 1, torch.tensor([1.0])),
        (0.5, np.array([1])),
        (300, np.array([1], np.uint8)),
        (-1e9, np.array([1], np.float16)),
        (0, np.array(["a"])),
        (0, np.array(["a"], object)),
        (0, np.array(["2020"], "M8[s]")),
    ],
)
def test_a_value_that_the_examples_cannot_hold_raises_an_error(value, example):
    for batch in ([example], [example, example[:0]]):
        with pytest.raises(OptionError, match=r"Padding has the value .*, which .* cannot hold"):
            Padding(value).join(batch, stack_arrays)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(5.0, np.int64), (True, np.int8), (0.1, np.float32), (float("-inf"), np.float16), (0, bool)],
)
def test_a_value_that_the_examples_can_hold_is_used(value, dtype):
    joined = Padding(value).join([np.zeros(1, dtype), np.zeros(2, dtype)], stack_arrays)
    assert joined.dtype == dtype
    assert joined[0, 1] == np.array(value, dtype)


def test_pads_each_key_and_uses_the_length_of_the_first():
    padding = Padding(value={"source": 0, "target": -100}, mask="mask")
    batch = [
        {"source": np.ones(2), "target": np.ones(5), "speaker": np.array(7)},
        {"source": np.ones(3), "target": np.ones(1), "speaker": np.array(8)},
    ]
    joined = padding.join_keys(batch, stack_arrays)
    assert {key: value.shape for key, value in joined.items()} == {
        "source": (2, 3),
        "target": (2, 5),
        "speaker": (2,),
        "mask": (2, 3),
    }
    assert joined["target"][1].tolist() == [1, -100, -100, -100, -100]
    assert [padding.length(one) for one in batch] == [2, 3]


def test_one_value_pads_all_keys_that_have_the_dimension():
    batch = [{"ids": np.ones(n), "types": np.ones(n), "speaker": np.array(n)} for n in (1, 2)]
    joined = Padding(value=5).join_keys(batch, stack_arrays)
    assert joined["types"].tolist() == [[1, 5], [1, 1]]
    assert joined["speaker"].tolist() == [1, 2]


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=6),
    st.sampled_from(["right", "left"]),
)
def test_the_mask_selects_the_values_of_the_examples(rows, side):
    padding = Padding(value=-1, mask="mask", side=side)
    arrays = [np.array(row, np.int64) for row in rows]
    joined, mask = padding.join(arrays, stack_arrays), padding.masks(arrays)["mask"]
    assert joined.shape == mask.shape == (len(rows), max(map(len, rows)))
    assert [line[shown == 1].tolist() for line, shown in zip(joined, mask, strict=True)] == rows
    assert (joined[mask == 0] == -1).all()


def test_a_handler_with_padding_can_be_pickled(tagger):
    twin = pickle.loads(pickle.dumps(on_rows(tagger, "mean", Padding(mask="mask"))))
    assert len(twin.predict(ROWS)) == 4


def test_the_error_for_different_shapes_suggests_padding(tagger):
    plain = PytorchModelHandlerTensor(tagger, Tagger, min_batch_size=2)
    with pytest.raises(BatchShapeError, match=r"pad them with padding=Padding\(\), resize"):
        plain.predict(ROWS[:2])
    wide = [torch.ones(2, 3), torch.ones(2, 1)]
    with pytest.raises(BatchShapeError, match=r"padding=Padding\(dim=1\)"):
        plain.predict(wide)
    with pytest.raises(
        BatchShapeError, match=r"one shape\. To fix this, resize or pad them with with_prep"
    ):
        plain.predict([torch.ones(2, 3), torch.ones(1, 1)])


def test_the_error_for_different_shapes_names_the_key(texts_model):
    with pytest.raises(BatchShapeError, match=r"Element 0 of the batch's 'input_ids' has shape"):
        on_texts(texts_model).predict(TEXTS)


def test_the_error_for_a_ragged_key_suggests_padding_it(texts_model):
    typed = [{**one, "token_type_ids": torch.zeros_like(one["input_ids"])} for one in TEXTS]
    with pytest.raises(
        BatchShapeError, match="'token_type_ids' has .* name 'token_type_ids' in the value of"
    ):
        on_texts(texts_model, padding=TOKENS).predict(typed)


def test_the_error_for_another_ragged_dimension_names_the_element(tagger):
    rows = [torch.ones(2, 3), torch.ones(4, 3), torch.ones(2, 5)]
    with pytest.raises(
        BatchShapeError,
        match=r"Element 2 of the batch has shape \(2, 5\), but element 0 has \(2, 3\)",
    ):
        on_rows(tagger, min_batch_size=3).predict(rows)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (np.array(1), r"shape \(\) has no dimension 0"),
        ({"a": np.ones(1), "b": np.ones(2)}, r"lengths \{'a': 1, 'b': 2\}.*list the keys to pad"),
    ],
)
def test_an_example_without_one_length_raises_an_error(example, message):
    with pytest.raises(BatchShapeError, match=message):
        Padding().length(example)


def test_the_error_for_a_missing_key_names_it():
    with pytest.raises(BatchShapeError, match=r"names the key 'input_ids', .* \['ids'\]"):
        TOKENS.length({"ids": np.ones(1)})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value": "0"}, "must be a number, or a dictionary"),
        ({"value": {}}, "must be a number, or a dictionary"),
        ({"dim": -1}, "0 or greater, but is -1"),
        ({"side": "top"}, "'right' or 'left', but is 'top'"),
    ],
)
def test_invalid_padding_raises_an_error(fields, message):
    with pytest.raises(OptionError, match=message):
        Padding(**fields)


def test_padding_without_an_effect_raises_an_error(tagger):
    with pytest.raises(OptionError, match="no effect on your own inference_fn"):
        PytorchModelHandlerTensor(tagger, Tagger, padding=Padding(), inference_fn=print)
    with pytest.raises(OptionError, match="must be a number here"):
        PytorchModelHandlerTensor(tagger, Tagger, padding=TOKENS)
    with pytest.raises(UnknownOptionError, match="no option 'padding'"):
        SklearnModelHandlerNumpy(model_uri="model.pickle", padding=Padding())


def test_pads_dictionaries_for_another_method_of_the_model(tagger):
    handler = PytorchModelHandlerKeyedTensor(
        tagger,
        Tagger,
        inference_fn=make_keyed_tensor_model_fn("mean"),
        padding=Padding(mask="mask"),
        min_batch_size=4,
    )
    results = handler.predict([{"x": row} for row in ROWS])
    assert [float(result.inference) for result in results] == [1.5, 2.5, 1, 2]
