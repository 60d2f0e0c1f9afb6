"""Load programs that ``torch.export`` wrote, and call them with positional or named inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runinference.collate.named_inputs import InputSpec, check_input_names, check_input_shape
from runinference.errors import ModelLoadError
from runinference.extras import need
from runinference.frameworks.torch.loading import first_sentence
from runinference.model_file import open_model

torch = need("torch", extra="torch")


class ExportedModule(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A ``torch.export`` program that takes tensors by position or by input name, however it was exported."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.program = program.module()
        self.inputs = _get_inputs(program)
        self.n_positional = _count_positional_inputs(program)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program, after checking the names and the shapes of its inputs."""
        if self.n_positional is None:
            return self.program(*args, **kwargs)
        names = [one.name for one in self.inputs]
        values = {**dict(zip(names, args, strict=False)), **kwargs}
        check_input_names(list(values), self.inputs)
        for one in self.inputs:
            if one.shape:
                check_input_shape(values[one.name], one, len(values[one.name]))
        positional = [values.pop(name) for name in names[: self.n_positional]]
        return self.program(*positional, **values)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the program, but not the checks of its inputs."""
        self.program.compile(*args, **kwargs)


def load_exported_program(
    path: str, device: Any, load_model_args: Mapping[str, Any], sha256: str | None = None
) -> ExportedModule:
    """Load a file that ``torch.export.save`` wrote, which may run code, and move the program to a device."""
    with open_model(path, "torch_export_model_path", sha256) as file:
        try:
            program = torch.export.load(file, **load_model_args)
        except Exception as error:
            raise ModelLoadError(
                f"The file {path!r} (torch_export_model_path) cannot be loaded as a torch.export program "
                f"({first_sentence(error)}). It may be truncated, or saved by another PyTorch version than "
                f"{torch.__version__}. If it holds TorchScript, pass it as torch_script_model_path; if it holds "
                "weights, as state_dict_path."
            ) from error
    if any(weight.device != device for weight in program.state_dict.values()):
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return ExportedModule(program)


def _get_inputs(program: Any) -> list[InputSpec]:
    """Return the program's inputs; in their shapes, dynamic dimensions are symbols instead of numbers."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    shapes = [tuple(getattr(nodes[name].meta.get("val"), "shape", ())) for name in names]
    return [InputSpec(name, None, shape) for name, shape in zip(names, shapes, strict=True)]


def _count_positional_inputs(program: Any) -> int | None:
    """Return the number of positional inputs, or None if some inputs aren't tensors."""
    args, kwargs = program.example_inputs or ((), {})
    if not all(isinstance(value, torch.Tensor) for value in (*args, *kwargs.values())):
        return None
    return len(args)
