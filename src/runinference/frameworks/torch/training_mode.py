"""Reject PyTorch models in training mode, whose predictions depend on the other elements of the batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from runinference.errors import ModelLoadError
from runinference.extras import need

torch = need("torch", extra="torch")

#: The operators that behave differently in training mode, and the position of the argument that sets it.
_OPERATORS = {
    "batch_norm": 5,
    "native_batch_norm": 5,
    "_native_batch_norm_legit": 5,
    "_native_batch_norm_legit_functional": 5,
    "dropout": 2,
    "native_dropout": 2,
}
_BATCH_NORMS = (
    torch.nn.BatchNorm1d,
    torch.nn.BatchNorm2d,
    torch.nn.BatchNorm3d,
    torch.nn.SyncBatchNorm,
)


def check_evaluation_mode(model: Any, name: str) -> None:
    """Raise `ModelLoadError` for a model that normalizes by the statistics of the batch, or drops values.

    Args:
        model: A module. Objects of other classes are not checked.
        name: The name of the model for the error message.
    """
    if isinstance(model, torch.jit.ScriptModule):
        found = _find_in_script(model)
    elif isinstance(model, torch.fx.GraphModule):
        found = _find_in_graph(model)
    elif isinstance(model, torch.nn.Module):
        found = _find_in_module(model)
    else:
        return
    if (layer := next(found, None)) is not None:
        raise ModelLoadError(
            f"{name} runs {layer} in training mode, so its predictions would depend on the other elements of the "
            "batch or on chance. To fix this, call model.eval() before the model is exported or traced, let "
            "layers for batch normalization track running statistics, or set max_batch_size=1."
        )


def _find_in_module(model: Any) -> Iterator[str]:
    for module in model.modules():
        if isinstance(module, _BATCH_NORMS) and (module.training or module.running_mean is None):
            yield type(module).__name__


def _find_in_graph(model: Any) -> Iterator[str]:
    for node in model.graph.nodes:
        operator = str(node.target).removeprefix("aten.").partition(".")[0]
        position = _OPERATORS.get(operator)
        if position is not None and node.args[position : position + 1] == (True,):
            yield operator


def _find_in_script(model: Any) -> Iterator[str]:
    graph = getattr(model, "inlined_graph", None)
    if graph is None:
        return
    for operator, position in _OPERATORS.items():
        for node in graph.findAllNodes(f"aten::{operator}"):
            values = list(node.inputs())
            if values[position].toIValue() is True:
                yield operator
