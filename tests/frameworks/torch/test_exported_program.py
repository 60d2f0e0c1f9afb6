"""torch.export programs: positional and named inputs, dynamic and static dimensions."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from common import run
from runinference import RunInference
from runinference.errors import (
    BatchShapeError,
    ElementError,
    ModelLoadError,
    ModelNotFoundError,
    OptionError,
)
from runinference.pytorch_inference import (
    PytorchModelHandlerKeyedTensor,
    PytorchModelHandlerTensor,
)

ROWS = torch.arange(12.0).reshape(6, 2)
DYNAMIC = {0: torch.export.Dim.AUTO}


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scores": self.layer(x)}


class Difference(torch.nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left - right


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Programs exported with a dynamic or static batch dimension, and positional or named inputs."""
    folder = tmp_path_factory.mktemp("programs")
    x, y, model, minus = torch.zeros(4, 2), torch.ones(4, 2), Linear().eval(), Difference()
    both, dynamic = {"left": x, "right": y}, {"left": DYNAMIC, "right": DYNAMIC}
    for name, program in {
        "dynamic": torch.export.export(model, (x,), dynamic_shapes=(DYNAMIC,)),
        "static": torch.export.export(model, (x,)),
        "named": torch.export.export(minus, (), both, dynamic_shapes=dynamic),
        "positional": torch.export.export(minus, (x, y), dynamic_shapes=dynamic),
    }.items():
        torch.export.save(program, folder / f"{name}.pt2")
    return folder


def handler(path, **options):
    return PytorchModelHandlerTensor(torch_export_model_path=str(path), **options)


def test_predicts_the_same_as_the_original_model(folder):
    path = folder / "dynamic.pt2"
    results = run(list(ROWS), RunInference(handler(path)))
    assert len(results) == 6
    for example, inference, model_id in results:
        torch.testing.assert_close(inference["scores"], Linear().layer(example).detach())
        assert model_id == str(path)


@pytest.mark.parametrize("name", ["named", "positional"])
def test_accepts_dictionaries_however_it_was_exported(folder, name):
    minus = PytorchModelHandlerKeyedTensor(torch_export_model_path=str(folder / f"{name}.pt2"))
    pairs = [{"right": torch.ones(2), "left": torch.full((2,), float(n))} for n in range(5)]
    assert [result.inference[0].item() for result in minus.predict(pairs)] == [-1, 0, 1, 2, 3]


def test_names_missing_and_unknown_inputs(folder):
    minus = PytorchModelHandlerKeyedTensor(torch_export_model_path=str(folder / "positional.pt2"))
    one = torch.ones(2)
    with pytest.raises(ElementError, match="input 'right' is missing"):
        minus.predict([{"left": one}])
    with pytest.raises(ElementError, match="no input 'rihgt'. Did you mean 'right'"):
        minus.predict([{"left": one, "rihgt": one}])


def test_suggests_the_batch_size_of_a_static_program(folder):
    path = folder / "static.pt2"
    with pytest.raises(
        BatchShapeError, match="exactly 4. .* min_batch_size=4 and max_batch_size=4"
    ):
        handler(path, min_batch_size=3, max_batch_size=3).predict(ROWS)
    assert len(handler(path, min_batch_size=4, max_batch_size=4).predict(ROWS[:4])) == 4


def test_names_the_shapes_of_an_element_and_of_the_input(folder):
    with pytest.raises(
        BatchShapeError, match=r"have shape \(5,\), and the model's input 'x' takes \(2"
    ):
        handler(folder / "dynamic.pt2").predict([torch.zeros(5)])


def test_moves_the_program_to_its_device(folder):
    model = handler(folder / "dynamic.pt2", device="meta").load_model()
    assert {weight.device.type for weight in model.parameters()} == {"meta"}


def test_update_model_path_replaces_the_program(folder):
    changed = handler(folder / "static.pt2")
    changed.update_model_path(str(folder / "dynamic.pt2"))
    [result] = changed.predict(ROWS[:1])
    assert result.model_id == str(folder / "dynamic.pt2")


def test_checks_the_digest_of_the_file(folder):
    path = folder / "dynamic.pt2"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(handler(path, model_sha256=digest).predict(ROWS)) == 6
    with pytest.raises(ModelLoadError, match="SHA-256 digest .* was not loaded"):
        handler(path, model_sha256="0" * 64).predict(ROWS)


@pytest.mark.parametrize("kind", ["empty", "page", "half", "weights"])
def test_explains_a_file_that_is_not_a_program(folder, tmp_path, kind):
    complete = (folder / "dynamic.pt2").read_bytes()
    torch.save(Linear().state_dict(), tmp_path / "weights.pt")
    content = {"empty": b"", "page": b"<html>", "half": complete[: len(complete) // 2]}
    (tmp_path / "m.pt2").write_bytes(content.get(kind) or (tmp_path / "weights.pt").read_bytes())
    with pytest.raises(
        ModelLoadError, match=r"m\.pt2.* may be truncated, or .* as state_dict_path"
    ):
        handler(tmp_path / "m.pt2").predict(ROWS)


def test_explains_a_program_passed_as_weights_or_torch_script(folder):
    path = str(folder / "dynamic.pt2")
    with pytest.raises(ModelLoadError, match="pass it as torch_export_model_path"):
        PytorchModelHandlerTensor(path, Linear).predict(ROWS)
    with pytest.raises(ModelLoadError, match="as torch_export_model_path"):
        PytorchModelHandlerTensor(torch_script_model_path=path).predict(ROWS)


def test_names_a_missing_file(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no\.pt2' \(torch_export_model_path\)"):
        handler(Path(tmp_path) / "no.pt2").predict(ROWS)


def test_rejects_two_complete_models():
    with pytest.raises(
        OptionError,
        match="torch_script_model_path holds a complete model. To fix this, pass it alone",
    ):
        PytorchModelHandlerTensor(torch_script_model_path="a", torch_export_model_path="b")
