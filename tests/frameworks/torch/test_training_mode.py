"""Models in training mode, whose predictions depend on the other elements of a batch."""

from __future__ import annotations

import functools

import pytest
import torch

from runinference.errors import ModelLoadError
from runinference.pytorch_inference import PytorchModelHandlerTensor

ROWS = list(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))


def make_model(*layers):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 3), *layers)


def make_without_statistics():
    return make_model(torch.nn.BatchNorm1d(3, track_running_stats=False))


def save(path, kind, model, training):
    model.train(training)
    if kind == "trace":
        torch.jit.save(torch.jit.trace(model, torch.stack(ROWS), check_trace=False), path)
        return functools.partial(PytorchModelHandlerTensor, torch_script_model_path=str(path))
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(model, (torch.stack(ROWS),), dynamic_shapes=shapes), path)
    return functools.partial(PytorchModelHandlerTensor, torch_export_model_path=str(path))


@pytest.mark.parametrize("kind", ["trace", "export"])
@pytest.mark.parametrize("layer", [torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5)])
def test_refuses_files_in_training_mode(kind, layer, tmp_path):
    handler = save(tmp_path / "training.pt2", kind, make_model(layer), training=True)
    with pytest.raises(ModelLoadError, match=r"in training mode.*model\.eval\(\)"):
        handler().load_model()
    handler = save(tmp_path / "evaluation.pt2", kind, make_model(layer), training=False)
    together, alone = handler().predict(ROWS), handler().predict(ROWS[:1])
    torch.testing.assert_close(together[0].inference, alone[0].inference)


def test_refuses_normalization_by_the_batch_unless_each_element_is_a_batch(tmp_path):
    torch.save(make_without_statistics().state_dict(), tmp_path / "model.pt")
    handler = functools.partial(
        PytorchModelHandlerTensor, str(tmp_path / "model.pt"), make_without_statistics
    )
    with pytest.raises(ModelLoadError, match=r"BatchNorm1d in training mode.*max_batch_size=1"):
        handler().load_model()
    handler(max_batch_size=1).load_model()
