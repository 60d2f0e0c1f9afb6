"""What PyTorch rejects is explained: the dtype, the shape or the names of the inputs."""

from __future__ import annotations

import pytest
import torch

from runinference.errors import BatchTypeError, ElementError, ModelInputError
from runinference.pytorch_inference import (
    default_keyed_tensor_inference_fn,
    default_tensor_inference_fn,
)

CPU = torch.device("cpu")


def convolution():
    return torch.nn.Conv2d(3, 2, 3)


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (torch.nn.Linear(3, 2), torch.zeros(3).double(), r"float64 \(3,\).*x.to\(torch.float32\)"),
        (torch.nn.Linear(3, 2), torch.zeros(3).long(), r"int64 \(3,\).*x.to\(torch.float32\)"),
        (torch.nn.Linear(3, 2), torch.zeros(3).half(), r"float16 \(3,\).*x.to\(torch.float32\)"),
        (torch.nn.Linear(3, 2), torch.zeros(4), r"float32 \(4,\) .*shapes cannot be .*reshape"),
        (torch.nn.LSTM(3, 2), torch.zeros(4, 3).double(), r"float64 .*x.to\(torch.float32\)"),
        (torch.nn.LSTM(3, 2), torch.zeros(4, 5), r"\(4, 5\) .*reshape"),
        (convolution(), torch.zeros(1, 8, 8), r"\(1, 8, 8\) .*3 channels.*reshape"),
        (convolution(), torch.zeros(8), r"\(8,\) .*reshape"),
        (convolution(), torch.zeros(3, 8, 8).double(), r"float64 .*x.to\(torch.float32\)"),
        (convolution(), torch.zeros(3, 2, 2), r"Kernel size .*reshape"),
        (torch.nn.Embedding(4, 3), torch.zeros(2), "float32 .*with_preprocess_fn"),
        (torch.nn.Embedding(4, 3), torch.tensor([7]), "index out of range .*index the elements"),
        (torch.nn.LayerNorm(3), torch.zeros(4), "normalized_shape.*reshape"),
    ],
)
def test_names_the_elements_and_the_fix(model, example, message):
    with pytest.raises(ModelInputError, match=message) as raised:
        default_tensor_inference_fn([example] * 2, model.eval(), CPU)
    assert isinstance(raised.value, (ElementError, RuntimeError))
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize(
    "example",
    [
        torch.eye(3).to_sparse_csr(),
        torch.eye(3).to_sparse_csc(),
        torch.nested.nested_tensor([torch.ones(3)]),
        torch.ones(3, 3).to_mkldnn(),
    ],
    ids=lambda example: str(example.layout),
)
def test_tensors_that_cannot_be_stacked_raise_an_error_with_a_fix(example):
    with pytest.raises(BatchTypeError, match=r"cannot be stacked .*to_dense"):
        default_tensor_inference_fn([example] * 2, torch.nn.Linear(3, 2), CPU)


@pytest.mark.parametrize(
    ("example", "args", "message"),
    [
        ({1: torch.zeros(3)}, {}, "no input 1|inputs of the batch"),
        ({"inpt": torch.zeros(3)}, {}, "Did you mean 'input'. Its inputs are: input"),
        ({"input": torch.zeros(3), "mask": torch.zeros(3)}, {}, "'mask'"),
        ({}, {"input": torch.zeros(2, 3), "scale": 1}, "'scale'"),
    ],
)
def test_names_inputs_that_are_missing_or_unknown(example, args, message):
    with pytest.raises(ModelInputError, match=message):
        default_keyed_tensor_inference_fn([example] * 2, torch.nn.Linear(3, 2), CPU, args)


def test_a_tensor_for_a_model_of_several_inputs_suggests_dictionaries():
    with pytest.raises(
        ModelInputError, match=r"missing .*'input2'.*PytorchModelHandlerKeyedTensor"
    ):
        default_tensor_inference_fn([torch.zeros(3)], torch.nn.Bilinear(3, 3, 2), CPU)


class Failing(torch.nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


class OwnError(RuntimeError):
    pass


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad row"),
        RuntimeError("no such device"),
        TypeError("my code"),
        KeyError("x"),
        OwnError("same dtype"),
        RuntimeError("CUDA out of memory: shapes cannot be multiplied"),
    ],
    ids=repr,
)
def test_errors_of_the_model_itself_are_not_changed(error):
    with pytest.raises(type(error)) as raised:
        default_tensor_inference_fn([torch.zeros(3)], Failing(error), CPU)
    assert raised.value is error
