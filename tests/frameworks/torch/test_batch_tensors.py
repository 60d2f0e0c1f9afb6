"""The first dimension of each output of a PyTorch model is the batch, whatever the size of the batch."""

from __future__ import annotations

import pytest
import torch

from runinference import pytorch_inference
from runinference.errors import ResultMismatchError
from runinference.pytorch_inference import PytorchModelHandlerTensor


class Recurrent(torch.nn.Module):
    """Returns the outputs and the states of a recurrent layer in some form."""

    def __init__(self, form, layer=torch.nn.LSTM, layers=1):
        super().__init__()
        self.layer = layer(3, 4, num_layers=layers, batch_first=True)
        self.form = form
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.form(*self.layer(x))


def check(model, size):
    rows = list(torch.zeros(size, 5, 3))
    pytorch_inference.default_tensor_inference_fn(rows, model, torch.device("cpu"))


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(
    ("layer", "form"),
    [
        (torch.nn.LSTM, lambda out, states: (out, states)),
        (torch.nn.LSTM, lambda out, states: states),
        (torch.nn.LSTM, lambda out, states: {"out": out, "hidden": states[0]}),
        (torch.nn.GRU, lambda out, state: (out, state)),
        (torch.nn.GRU, lambda out, state: state),
        (torch.nn.RNN, lambda out, state: out.transpose(0, 1)[:1]),
    ],
)
def test_states_are_an_error_where_they_are_as_long_as_the_batch(layer, form, layers):
    if layers > 1 and layer is torch.nn.RNN:
        form = lambda out, state: (out, out.transpose(0, 1)[: state.shape[0]])  # noqa: E731
    with pytest.raises(
        ResultMismatchError, match=r"its first dimension is not the batch.*transpose"
    ):
        check(Recurrent(form, layer, layers).eval(), layers)


class Transposed(torch.nn.Module):
    """Returns an output whose last dimension is the batch."""

    def forward(self, x):
        return x.sum(1).T


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_an_output_of_two_dimensions_that_ends_with_the_batch_is_an_error_for_each_size(size):
    with pytest.raises(ResultMismatchError):
        check(Transposed(), size)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "form",
    [
        lambda out, states: (out, tuple(state.transpose(0, 1) for state in states)),
        lambda out, states: {"out": out, "n": torch.tensor(1.0), "names": ["a"] * len(out)},
        lambda out, states: (out[:, -1], None),
    ],
)
def test_outputs_that_follow_the_batch_are_accepted_and_checked_once(form, size):
    model = Recurrent(form).eval()
    check(model, size)
    check(model, size)
    assert model.calls == 3


def test_a_single_tensor_is_not_checked_without_need():
    model = Recurrent(lambda out, states: out[:, -1]).eval()
    check(model, 5)
    assert model.calls == 1
    check(model, 4)  # the size of each row, too
    assert model.calls == 3


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.unbind(0),
        lambda x: [x.mean(), x.sum()],
        lambda x: (x, torch.zeros(2, 5)),
        lambda x: [x, x],
        lambda x: [{"a": x}, {"a": x + 1}],
    ],
)
def test_the_outcome_does_not_depend_on_the_batch_size(tmp_path, form, size, monkeypatch):
    monkeypatch.setattr(Scaled, "form", staticmethod(form))
    torch.save(Scaled().state_dict(), tmp_path / "model.pt")
    handler = PytorchModelHandlerTensor(str(tmp_path / "model.pt"), Scaled, min_batch_size=size)
    with pytest.raises(ResultMismatchError):
        handler.predict(torch.ones(size, 2))


class Scaled(torch.nn.Module):
    form = staticmethod(lambda x: x)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.form(x * self.weight)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_lists_are_split_as_the_handler_declares(tmp_path, size, monkeypatch):
    torch.save(Scaled().state_dict(), tmp_path / "model.pt")

    def predict(form, list_output):
        monkeypatch.setattr(Scaled, "form", staticmethod(form))
        handler = PytorchModelHandlerTensor(
            str(tmp_path / "model.pt"), Scaled, min_batch_size=size, list_output=list_output
        )
        return [result.inference for result in handler.predict(torch.ones(size, 2))]

    for pair in predict(lambda x: [x, x + 1], "multi_output"):
        assert [part.tolist() for part in pair] == [[2, 2], [3, 3]]
    rows = predict(lambda x: list(x.unbind(0)), "per_element")
    assert [row.tolist() for row in rows] == [[2, 2]] * size


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_list_of_dictionaries_may_have_arrays_as_long_as_the_batch(tmp_path, size, monkeypatch):
    boxes = lambda x: [{"boxes": torch.ones(2, 4)} for _ in x]  # noqa: E731
    monkeypatch.setattr(Scaled, "form", staticmethod(boxes))
    torch.save(Scaled().state_dict(), tmp_path / "model.pt")
    handler = PytorchModelHandlerTensor(str(tmp_path / "model.pt"), Scaled, min_batch_size=size)
    results = handler.predict(torch.ones(size, 2))
    assert [tuple(result.inference["boxes"].shape) for result in results] == [(2, 4)] * size


def test_random_numbers_of_the_model_are_not_affected(tmp_path):
    class Sampling(torch.nn.Module):
        def forward(self, x):
            return {"x": x + torch.rand_like(x)}

    torch.manual_seed(0)
    expected = torch.rand(2, 5, 3), torch.rand(2, 5, 3)
    torch.manual_seed(0)
    model = Sampling()
    for random in expected:
        results = pytorch_inference.default_tensor_inference_fn(
            list(torch.zeros(2, 5, 3)), model, torch.device("cpu")
        )
        assert torch.equal(torch.stack([result.inference["x"] for result in results]), random)
