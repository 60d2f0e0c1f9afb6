"""PyTorch models, from weights and from TorchScript, on tensors and on dictionaries of tensors."""

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
    """Two features in, ``width`` numbers out; also as a dictionary and a tuple."""

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
    """Adds what two keywords hold."""

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


def test_a_pipeline_says_what_the_model_says(weights):
    results = run(list(ROWS), RunInference(handler(weights)))
    assert len(results) == 6
    for result in results:
        torch.testing.assert_close(result.inference, Linear()(result.example).detach())
        assert result.model_id == weights


def test_results_own_their_memory_and_know_no_gradient(weights):
    for result in handler(weights, min_batch_size=6).predict(ROWS):
        assert result.inference.untyped_storage().nbytes() == 3 * 4
        assert not result.inference.requires_grad
        assert not result.inference.is_inference()


def test_model_params_make_the_model(tmp_path):
    torch.save(Linear(width=5).state_dict(), tmp_path / "wide.pt")
    [result] = handler(str(tmp_path / "wide.pt"), model_params={"width": 5}).predict(ROWS[:1])
    assert result.inference.shape == (5,)


def test_safetensors_are_read(tmp_path):
    path = str(tmp_path / "linear.safetensors")
    safetensors.torch.save_file(Linear().state_dict(), path)
    [result] = handler(path).predict(ROWS[:1])
    torch.testing.assert_close(result.inference, Linear()(ROWS[0]).detach())


def test_torch_script_needs_no_class(tmp_path):
    path = str(tmp_path / "script.pt")
    torch.jit.script(Linear()).save(path)
    [result] = PytorchModelHandlerTensor(torch_script_model_path=path).predict(ROWS[:1])
    torch.testing.assert_close(result.inference, Linear()(ROWS[0]).detach())
    assert result.model_id == path


def test_the_model_is_in_evaluation_mode_and_frozen(weights):
    model = handler(weights).load_model()
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_inference_args_are_keywords_of_the_model(weights):
    [once] = handler(weights).predict(ROWS[:1])
    [thrice] = handler(weights).predict(ROWS[:1], {"scale": 3.0})
    torch.testing.assert_close(thrice.inference, 3 * once.inference)


def test_another_method_is_called(weights):
    results = handler(
        weights, inference_fn=make_tensor_model_fn("as_dict"), min_batch_size=4
    ).predict(ROWS[:4])
    assert [set(result.inference) for result in results] == [{"sum", "all"}] * 4
    torch.testing.assert_close(results[2].inference["all"], Linear()(ROWS[2]).detach())


def test_a_tuple_of_outputs_is_one_for_each_element(weights):
    results = handler(
        weights, inference_fn=make_tensor_model_fn("as_tuple"), min_batch_size=4
    ).predict(ROWS[:4])
    assert len(results) == 4
    assert torch.equal(results[3].inference[1], ROWS[3])


def test_a_method_that_is_not_there_is_named_with_the_nearest(weights):
    with pytest.raises(AttributeError, match="no method 'as_dic'. Did you mean 'as_dict'"):
        handler(weights, inference_fn=make_tensor_model_fn("as_dic")).predict(ROWS)


def test_inference_fn_gets_the_model_and_its_device(weights):
    def through(batch, model, device, inference_args, model_id):
        assert device == torch.device("cpu")
        assert inference_args == {}
        return [(model_id, model(x.to(device)).detach().shape) for x in batch]

    assert handler(weights, inference_fn=through).predict(ROWS[:1]) == [(weights, (3,))]


def test_dictionaries_become_keywords(tmp_path):
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


def test_a_dictionary_of_other_keys_is_named(tmp_path):
    path = str(tmp_path / "pairs.pt")
    torch.save(Pairs().state_dict(), path)
    one = torch.ones(1)
    with pytest.raises(
        BatchShapeError,
        match=r"Element 1 .* keys \['left'\], and element 0 has \['left', 'right'\]",
    ):
        PytorchModelHandlerKeyedTensor(path, Pairs, min_batch_size=2).predict(
            [{"left": one, "right": one}, {"left": one}]
        )


def test_bytes_are_what_the_tensors_hold(weights):
    assert handler(weights).get_num_bytes([torch.zeros(1000)] * 4) == 16_000
    keyed = PytorchModelHandlerKeyedTensor(weights, Linear)
    batch = [{"x": torch.zeros(1000)}]
    assert 4_000 <= keyed.get_num_bytes(batch) < 4_100


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no file '.*missing\.pt' \(state_dict_path\)"):
        handler(str(tmp_path / "missing.pt")).predict(ROWS)
    with pytest.raises(ModelNotFoundError, match=r"\(torch_script_model_path\)"):
        PytorchModelHandlerTensor(torch_script_model_path=str(tmp_path / "missing.pt")).predict(
            ROWS
        )


def test_weights_that_do_not_fit_are_named_by_key_and_shape(weights):
    with pytest.raises(
        ModelLoadError,
        match=r"do not fit Linear: of another shape: layer.weight is \(3, 2\) in the file and \(7, 2\)",
    ):
        handler(weights, model_params={"width": 7}).predict(ROWS)
    with pytest.raises(
        ModelLoadError, match=r"missing from the file: weight; not in the model: layer.weight"
    ):
        PytorchModelHandlerTensor(weights, Pairs).predict(ROWS)


def test_a_checkpoint_of_several_parts_is_told(tmp_path):
    path = str(tmp_path / "checkpoint.pt")
    torch.save({"epoch": 3, "model": Linear().state_dict()}, path)
    with pytest.raises(ModelLoadError, match="checkpoint with several parts.*'model'"):
        handler(path).predict(ROWS)


def test_weights_of_data_parallel_are_told(tmp_path):
    path = str(tmp_path / "parallel.pt")
    torch.save({f"module.{key}": value for key, value in Linear().state_dict().items()}, path)
    with pytest.raises(ModelLoadError, match=r"save model\.module\.state_dict\(\)"):
        handler(path).predict(ROWS)


def test_a_whole_model_is_not_unpickled(tmp_path):
    path = str(tmp_path / "whole.pt")
    torch.save(Linear(), path)
    with pytest.raises(ModelLoadError, match=r"torch\.save\(model\.state_dict\(\), path\)"):
        handler(path).predict(ROWS)


def test_torch_script_in_the_place_of_weights_is_told_and_the_other_way_round(tmp_path, weights):
    path = str(tmp_path / "script.pt")
    torch.jit.script(Linear()).save(path)
    with pytest.raises(ModelLoadError, match="give it as torch_script_model_path"):
        handler(path).predict(ROWS)
    with pytest.raises(
        ModelLoadError, match="give it as state_dict_path together with model_class"
    ):
        PytorchModelHandlerTensor(torch_script_model_path=weights).predict(ROWS)


@pytest.mark.parametrize("name", ["junk.pt", "junk.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04junk"])
def test_junk_in_place_of_weights_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelLoadError, match=rf"{name}.*may be truncated"):
        handler(str(tmp_path / name)).predict(ROWS)


def test_a_list_in_place_of_weights_is_named(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelLoadError, match="holds a list, not a state dictionary"):
        handler(str(tmp_path / "list.pt")).predict(ROWS)


def test_a_tensor_of_another_shape_than_its_batch_is_named(weights):
    with pytest.raises(
        BatchShapeError, match=r"Element 1 of the batch has shape \(5,\), while 2 of 3"
    ):
        handler(weights, min_batch_size=3).predict([ROWS[0], torch.zeros(5), ROWS[1]])


def test_what_is_no_tensor_is_named_with_its_cure(weights):
    with pytest.raises(
        BatchShapeError,
        match=r"Element 0 .* is of type ndarray, .*with_preprocess_fn\(torch.as_tensor\)",
    ):
        handler(weights).predict([np.zeros(2)])


def test_an_output_of_another_length_is_an_error(weights):
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
            "give it alone",
        ),
        (
            {"state_dict_path": "w.pt", "model_class": Linear, "device": "qpu"},
            "device must be 'CPU', 'GPU' or",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused_at_construction(arguments, message):
    with pytest.raises(OptionError, match=message):
        PytorchModelHandlerTensor(**arguments)


def test_neither_weights_nor_script_is_told_when_the_model_loads():
    with pytest.raises(OptionError, match="has no model: give state_dict_path"):
        PytorchModelHandlerTensor().predict(ROWS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests what happens where there is no GPU")
def test_without_a_gpu_the_model_runs_on_the_cpu_with_a_warning(weights, caplog):
    with caplog.at_level(logging.WARNING):
        results = handler(weights, device="GPU").predict(ROWS)
    assert len(results) == 6
    assert "runs on the CPU" in caplog.text


def test_a_model_may_be_made_by_a_function(weights):
    def make(width):
        return Linear(width)

    handler = PytorchModelHandlerTensor(weights, make, model_params={"width": 3})
    assert len(run(list(ROWS), RunInference(handler))) == 6


def test_a_state_dict_in_an_ordered_dict_is_read(tmp_path):
    path = str(tmp_path / "ordered.pt")
    torch.save(collections.OrderedDict(Linear().state_dict()), path)
    assert len(handler(path).predict(ROWS)) == 6


def test_keyed_elements_for_a_handler_without_keys_are_told_apart(weights):
    with pytest.raises(ElementError, match=r"KeyedModelHandler\(handler\)"):
        handler(weights).predict([("key", ROWS[0])])


def test_a_keyword_that_the_class_does_not_take_is_told_with_model_params(weights):
    with pytest.raises(
        ModelLoadError, match=r"Linear cannot be made with model_params=\{'widht': 3\}"
    ):
        handler(weights, model_params={"widht": 3}).predict(ROWS)


def test_messages_hold_no_codes_that_colour_a_terminal(tmp_path):
    path = str(tmp_path / "whole.pt")
    torch.save(Linear(), path)
    with pytest.raises(ModelLoadError) as caught:
        handler(path).predict(ROWS)
    assert "\x1b" not in str(caught.value)
