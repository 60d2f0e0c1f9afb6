"""torch.compile: the same predictions, and an error on machines that cannot compile."""

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


def test_passes_keywords_to_the_compiler_and_predicts_the_same(weights):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    handler = PytorchModelHandlerTensor(weights, make, compile={"backend": backend})
    model = handler.load_model()
    assert len(compiled) == 1, "only the one-line check was compiled"
    for size in (4, 5, 6):
        results = handler.run_inference(list(ROWS[:size]), model)
        found = torch.stack([result.inference for result in results])
        torch.testing.assert_close(found, make()(ROWS[:size]).detach())
    assert len(compiled) == 3, "once for the first size, once for all other sizes"


def test_compiles_an_exported_program(tmp_path):
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
def test_true_selects_the_default_compiler(weights):
    handler = PytorchModelHandlerTensor(weights, make, compile=True, min_batch_size=6)
    found = torch.stack([result.inference for result in handler.predict(ROWS)])
    torch.testing.assert_close(found, make()(ROWS).detach())


def test_load_model_fails_without_a_compiler(weights, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(torch._inductor.config, "fx_graph_cache", False)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/nowhere/c++"))
    with pytest.raises(
        ModelLoadError, match="No working C.. compiler .* compiler such as g..; for a"
    ):
        PytorchModelHandlerTensor(weights, make, compile=True).load_model()


def test_load_model_fails_if_the_backend_fails(weights):
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
def test_constructor_rejects_unknown_modes_and_keywords(weights, value, message):
    with pytest.raises(OptionError, match=message):
        PytorchModelHandlerTensor(weights, make, compile=value)


def test_constructor_rejects_compile_with_torch_script():
    with pytest.raises(OptionError, match="does not compile TorchScript"):
        PytorchModelHandlerTensor(torch_script_model_path="m.pt", compile=True)


@pytest.mark.parametrize(
    ("value", "device", "max_calls"),
    [
        ("reduce-overhead", "cuda:0", 1),
        ("max-autotune", ["cuda:0", "cuda:1"], 1),
        ({"backend": "cudagraphs"}, "GPU", 1),
        ({"options": {"triton.cudagraphs": True}}, "GPU", 1),
        ("max-autotune-no-cudagraphs", "GPU", 2),
        ({"backend": "eager", "mode": "reduce-overhead"}, "GPU", 2),
        ({"mode": "unknown"}, "GPU", 2),  # an error when the model is loaded
        (True, "GPU", 2),
        (None, "GPU", 2),
        ("max-autotune", "CPU", 2),
    ],
)
def test_calls_with_cuda_graphs_do_not_overlap(weights, value, device, max_calls):
    handler = PytorchModelHandlerTensor(weights, make, device=device, compile=value)
    assert handler.call_overlap().max_calls == max_calls
