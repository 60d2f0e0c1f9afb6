"""The PyTorch handlers: weights and TorchScript, tensors and dictionaries of tensors."""

from __future__ import annotations

import collections
import logging

import numpy as np
import pytest
import safetensors.torch
import torch

from common import run
from runinference import KeyedModelHandler, RunInference
from runinference.errors import (
    BatchShapeError,
    ElementError,
    ModelLoadError,
    ModelNotFoundError,
    OptionError,
    ResultMismatchError,
)
from runinference.pytorch_inference import (
    PytorchModelHandlerKeyedTensor,
    PytorchModelHandlerTensor,
    make_keyed_tensor_model_fn,
    make_tensor_model_fn,
)

ROWS = torch.arange(12.0).reshape(6, 2)


class Linear(torch.nn.Module):
    """Maps 2 features to ``width`` numbers; methods return them as a dictionary or a tuple."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, width)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.layer(x) * scale

    def as_dict(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.layer(x)
        return {"sum": y.sum(-1), "all": y}

    def as_tuple(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer(x), x

    def merged(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).sum(0, keepdim=True)


class Pairs(torch.nn.Module):
    """Adds two keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, left: torch.Tensor, right: torch.Tensor, bias: float = 0.0) -> torch.Tensor:
        return self.weight * left + right + bias

    def difference(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left - right


@pytest.fixture
def weights(tmp_path):
    torch.save(Linear().state_dict(), tmp_path / "linear.pt")
    return str(tmp_path / "linear.pt")


def handler(path, **options):
    return PytorchModelHandlerTensor(path, Linear, **options)


def test_runs_the_model_in_a_pipeline(weights):
    results = run(list(ROWS), RunInference(handler(weights)))
    assert len(results) == 6
    for result in results:
        torch.testing.assert_close(result.inference, Linear()(result.example).detach())
        assert result.model_id == weights


def test_results_own_their_memory_and_have_no_gradient(weights):
    for result in handler(weights, min_batch_size=6).predict(ROWS):
        assert result.inference.untyped_storage().nbytes() == 3 * 4
        assert not result.inference.requires_grad
        assert not result.inference.is_inference()


def test_creates_the_model_with_model_params(tmp_path):
    torch.save(Linear(width=5).state_dict(), tmp_path / "wide.pt")
    [result] = handler(str(tmp_path / "wide.pt"), model_params={"width": 5}).predict(ROWS[:1])
    assert result.inference.shape == (5,)


def test_loads_safetensors(tmp_path):
    path = str(tmp_path / "linear.safetensors")
    safetensors.torch.save_file(Linear().state_dict(), path)
    [result] = handler(path).predict(ROWS[:1])
    torch.testing.assert_close(result.inference, Linear()(ROWS[0]).detach())


def test_loads_torch_script_without_a_class(tmp_path):
    path = str(tmp_path / "script.pt")
    torch.jit.script(Linear()).save(path)
    [result] = PytorchModelHandlerTensor(torch_script_model_path=path).predict(ROWS[:1])
    torch.testing.assert_close(result.inference, Linear()(ROWS[0]).detach())
    assert result.model_id == path


def test_loads_the_model_frozen_in_evaluation_mode(weights):
    model = handler(weights).load_model()
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_passes_inference_args_to_the_model_as_keywords(weights):
    [once] = handler(weights).predict(ROWS[:1])
    [thrice] = handler(weights).predict(ROWS[:1], {"scale": 3.0})
    torch.testing.assert_close(thrice.inference, 3 * once.inference)


def test_make_tensor_model_fn_calls_a_method_of_the_model(weights):
    results = handler(
        weights, inference_fn=make_tensor_model_fn("as_dict"), min_batch_size=4
    ).predict(ROWS[:4])
    assert [set(result.inference) for result in results] == [{"sum", "all"}] * 4
    torch.testing.assert_close(results[2].inference["all"], Linear()(ROWS[2]).detach())


def test_splits_a_tuple_of_outputs(weights):
    results = handler(
        weights, inference_fn=make_tensor_model_fn("as_tuple"), min_batch_size=4
    ).predict(ROWS[:4])
    assert len(results) == 4
    assert torch.equal(results[3].inference[1], ROWS[3])


def test_suggests_a_name_for_an_unknown_method(weights):
    with pytest.raises(AttributeError, match="no method 'as_dic'. Did you mean 'as_dict'"):
        handler(weights, inference_fn=make_tensor_model_fn("as_dic")).predict(ROWS)


def test_passes_the_model_and_its_device_to_inference_fn(weights):
    def inference_fn(batch, model, device, inference_args, model_id):
        assert device == torch.device("cpu")
        assert inference_args == {}
        return [(model_id, model(x.to(device)).detach().shape) for x in batch]

    assert handler(weights, inference_fn=inference_fn).predict(ROWS[:1]) == [(weights, (3,))]


def test_passes_dictionaries_to_the_model_as_keywords(tmp_path):
    path = str(tmp_path / "pairs.pt")
    torch.save(Pairs().state_dict(), path)
    pairs = [{"left": torch.tensor([float(n)]), "right": torch.tensor([1.0])} for n in range(3)]
    keyed = PytorchModelHandlerKeyedTensor(path, Pairs, min_batch_size=3)
    assert [result.inference.item() for result in keyed.predict(pairs)] == [1, 3, 5]
    assert [result.inference.item() for result in keyed.predict(pairs, {"bias": 1.0})] == [2, 4, 6]
    differs = PytorchModelHandlerKeyedTensor(
        path, Pairs, inference_fn=make_keyed_tensor_model_fn("difference")
    )
    assert [result.inference.item() for result in differs.predict(pairs)] == [-1, 0, 1]
    results = run(list(enumerate(pairs)), RunInference(KeyedModelHandler(keyed)))
    assert sorted((key, result.inference.item()) for key, result in results) == [
        (0, 1),
        (1, 3),
        (2, 5),
    ]


def test_names_the_element_with_different_keys(tmp_path):
    path = str(tmp_path / "pairs.pt")
    torch.save(Pairs().state_dict(), path)
    one = torch.ones(1)
    with pytest.raises(
        BatchShapeError,
        match=r"Element 1 .* keys \['left'\], but element 0 has \['left', 'right'\]",
    ):
        PytorchModelHandlerKeyedTensor(path, Pairs, min_batch_size=2).predict(
            [{"left": one, "right": one}, {"left": one}]
        )


def test_get_num_bytes_counts_the_data_of_tensors(weights):
    assert handler(weights).get_num_bytes([torch.zeros(1000)] * 4) == 16_000
    keyed = PytorchModelHandlerKeyedTensor(weights, Linear)
    batch = [{"x": torch.zeros(1000)}]
    assert 4_000 <= keyed.get_num_bytes(batch) < 4_100


def test_names_a_missing_file(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no file '.*missing\.pt' \(state_dict_path\)"):
        handler(str(tmp_path / "missing.pt")).predict(ROWS)
    with pytest.raises(ModelNotFoundError, match=r"\(torch_script_model_path\)"):
        PytorchModelHandlerTensor(torch_script_model_path=str(tmp_path / "missing.pt")).predict(
            ROWS
        )


def test_names_keys_and_shapes_of_weights_that_do_not_fit(weights):
    with pytest.raises(
        ModelLoadError,
        match=r"do not fit Linear: different shape: layer.weight is \(3, 2\) in the file and \(7, 2\)",
    ):
        handler(weights, model_params={"width": 7}).predict(ROWS)
    with pytest.raises(
        ModelLoadError, match=r"missing from the file: weight; not in the model: layer.weight"
    ):
        PytorchModelHandlerTensor(weights, Pairs).predict(ROWS)


def test_explains_a_checkpoint_with_several_entries(tmp_path):
    path = str(tmp_path / "checkpoint.pt")
    torch.save({"epoch": 3, "model": Linear().state_dict()}, path)
    with pytest.raises(ModelLoadError, match="checkpoint with several entries.*'model'"):
        handler(path).predict(ROWS)


def test_explains_weights_saved_from_data_parallel(tmp_path):
    path = str(tmp_path / "parallel.pt")
    torch.save({f"module.{key}": value for key, value in Linear().state_dict().items()}, path)
    with pytest.raises(ModelLoadError, match=r"save model\.module\.state_dict\(\)"):
        handler(path).predict(ROWS)


def test_does_not_unpickle_a_complete_model(tmp_path):
    path = str(tmp_path / "complete.pt")
    torch.save(Linear(), path)
    with pytest.raises(ModelLoadError, match=r"torch\.save\(model\.state_dict\(\), path\)"):
        handler(path).predict(ROWS)


def test_explains_torch_script_passed_as_weights_and_weights_passed_as_torch_script(
    tmp_path, weights
):
    path = str(tmp_path / "script.pt")
    torch.jit.script(Linear()).save(path)
    with pytest.raises(ModelLoadError, match="pass it as torch_script_model_path"):
        handler(path).predict(ROWS)
    with pytest.raises(
        ModelLoadError, match="pass it as state_dict_path together with model_class"
    ):
        PytorchModelHandlerTensor(torch_script_model_path=weights).predict(ROWS)


@pytest.mark.parametrize("name", ["junk.pt", "junk.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04junk"])
def test_names_a_file_that_is_not_a_model(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelLoadError, match=rf"{name}.*may be truncated"):
        handler(str(tmp_path / name)).predict(ROWS)


def test_explains_a_file_that_holds_a_list(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelLoadError, match="holds a list, not a state dictionary"):
        handler(str(tmp_path / "list.pt")).predict(ROWS)


def test_names_the_element_with_a_different_shape(weights):
    with pytest.raises(
        BatchShapeError, match=r"Element 1 of the batch has shape \(5,\), while 2 of 3"
    ):
        handler(weights, min_batch_size=3).predict([ROWS[0], torch.zeros(5), ROWS[1]])


@pytest.mark.parametrize(
    "other", [torch.ones(2, dtype=dtype) for dtype in (torch.int64, torch.float64, torch.bool)]
)
def test_names_the_element_with_a_different_dtype(weights, other):
    with pytest.raises(
        BatchShapeError, match=r"Element 1 .* has the dtype torch\..*lambda x: x\.to"
    ):
        handler(weights, min_batch_size=2).predict([ROWS[0], other])


def test_suggests_a_conversion_for_elements_that_are_not_tensors(weights):
    with pytest.raises(
        BatchShapeError,
        match=r"Element 0 .* is of type ndarray, .*with_preprocess_fn\(torch.as_tensor\)",
    ):
        handler(weights).predict([np.zeros(2)])


def test_raises_for_an_output_of_the_wrong_length(weights):
    with pytest.raises(ResultMismatchError, match="returned 1 result for a batch of 6"):
        handler(weights, inference_fn=make_tensor_model_fn("merged"), min_batch_size=6).predict(
            ROWS
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"state_dict_path": "w.pt"}, "state_dict_path needs model_class"),
        ({"model_class": Linear}, "model_class needs state_dict_path"),
        (
            {"torch_script_model_path": "s.pt", "state_dict_path": "w.pt", "model_class": Linear},
            "pass it alone",
        ),
        (
            {"state_dict_path": "w.pt", "model_class": Linear, "device": "qpu"},
            "device must be 'CPU', 'GPU' or",
        ),
    ],
)
def test_constructor_rejects_conflicting_options(arguments, message):
    with pytest.raises(OptionError, match=message):
        PytorchModelHandlerTensor(**arguments)


def test_load_model_requires_a_file():
    with pytest.raises(OptionError, match="has no model. To fix this, pass state_dict_path"):
        PytorchModelHandlerTensor().predict(ROWS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_falls_back_to_the_cpu_with_a_warning(weights, caplog):
    with caplog.at_level(logging.WARNING):
        results = handler(weights, device="GPU").predict(ROWS)
    assert len(results) == 6
    assert "runs on the CPU" in caplog.text


def test_model_class_may_be_a_function(weights):
    def make(width):
        return Linear(width)

    handler = PytorchModelHandlerTensor(weights, make, model_params={"width": 3})
    assert len(run(list(ROWS), RunInference(handler))) == 6


def test_loads_a_state_dict_in_an_ordered_dict(tmp_path):
    path = str(tmp_path / "ordered.pt")
    torch.save(collections.OrderedDict(Linear().state_dict()), path)
    assert len(handler(path).predict(ROWS)) == 6


def test_suggests_a_keyed_handler_for_keyed_elements(weights):
    with pytest.raises(ElementError, match=r"KeyedModelHandler\(handler\)"):
        handler(weights).predict([("key", ROWS[0])])


def test_names_model_params_that_the_class_does_not_accept(weights):
    with pytest.raises(
        ModelLoadError, match=r"Linear cannot be created with model_params=\{'widht': 3\}"
    ):
        handler(weights, model_params={"widht": 3}).predict(ROWS)


def test_error_messages_contain_no_ansi_codes(tmp_path):
    path = str(tmp_path / "complete.pt")
    torch.save(Linear(), path)
    with pytest.raises(ModelLoadError) as caught:
        handler(path).predict(ROWS)
    assert "\x1b" not in str(caught.value)
