"""Compiled PyTorch models: the same answers, and a word where a machine cannot compile."""

from __future__ import annotations

import shutil

import pytest
import torch

from runinference.errors import ModelLoadError, OptionError
from runinference.pytorch_inference import PytorchModelHandlerTensor

ROWS = torch.arange(12.0).reshape(6, 2)


def make() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.GELU())


@pytest.fixture
def weights(tmp_path):
    torch.save(make().state_dict(), tmp_path / "model.pt")
    return str(tmp_path / "model.pt")


def test_keywords_reach_the_backend_and_answers_are_the_same(weights):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    handler = PytorchModelHandlerTensor(weights, make, compile={"backend": backend})
    model = handler.load_model()
    assert len(compiled) == 1, "one line was compiled, to see whether this machine can"
    for size in (4, 5, 6):
        results = handler.run_inference(list(ROWS[:size]), model)
        found = torch.stack([result.inference for result in results])
        torch.testing.assert_close(found, make()(ROWS[:size]).detach())
    assert len(compiled) == 3, "once for the first size, once for all others"


def test_an_exported_program_is_compiled(tmp_path):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    program = torch.export.export(
        make().eval(), (ROWS,), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )
    torch.export.save(program, tmp_path / "m.pt2")
    handler = PytorchModelHandlerTensor(
        torch_export_model_path=str(tmp_path / "m.pt2"), compile={"backend": backend}
    )
    found = torch.stack([result.inference for result in handler.predict(ROWS)])
    torch.testing.assert_close(found, make()(ROWS).detach())
    assert len(compiled) >= 2


@pytest.mark.skipif(not shutil.which("g++"), reason="PyTorch compiles for a CPU with g++")
def test_true_means_the_compiler_of_pytorch(weights):
    handler = PytorchModelHandlerTensor(weights, make, compile=True, min_batch_size=6)
    found = torch.stack([result.inference for result in handler.predict(ROWS)])
    torch.testing.assert_close(found, make()(ROWS).detach())


def test_without_a_compiler_the_model_does_not_load(weights, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(torch._inductor.config, "fx_graph_cache", False)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/nowhere/c++"))
    with pytest.raises(
        ModelLoadError, match="No working C.. compiler .* compiler such as g.., on a"
    ):
        PytorchModelHandlerTensor(weights, make, compile=True).load_model()


def test_a_backend_that_fails_is_told_when_the_model_loads(weights):
    def broken(graph, inputs):
        raise RuntimeError("no backend today")

    with pytest.raises(ModelLoadError, match="cannot be compiled here .*no backend today"):
        PytorchModelHandlerTensor(weights, make, compile={"backend": broken}).load_model()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("max-autotun", "no mode 'max-autotun'. Did you mean 'max-autotune'"),
        ({"bakend": "eager"}, "no keyword 'bakend'. Did you mean 'backend'"),
        (3, "must be True, a mode such as 'max-autotune', or a dictionary"),
    ],
)
def test_what_torch_compile_does_not_know_is_refused_at_once(weights, value, message):
    with pytest.raises(OptionError, match=message):
        PytorchModelHandlerTensor(weights, make, compile=value)


def test_torch_script_is_not_compiled():
    with pytest.raises(OptionError, match="does not compile TorchScript"):
        PytorchModelHandlerTensor(torch_script_model_path="m.pt", compile=True)
