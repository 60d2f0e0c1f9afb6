"""Programs of torch.export: loaded from their files, and called by position or by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runinference.collate.named_inputs import Input, check_names, check_shape
from runinference.errors import ModelLoadError
from runinference.extras import need
from runinference.frameworks.torch.loading import first_sentence
from runinference.model_file import open_model

torch = need("torch", extra="torch")


class Exported(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A program that ``torch.export`` wrote, as a module.

    It is called with tensors by position or by the names of its inputs, whichever way it was exported. What it was
    exported for it needs: sizes that were not free must be the same.
    """

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.program = program.module()
        self.inputs = _inputs(program)
        self.by_position = _by_position(program)

    def forward(self, *given: Any, **named: Any) -> Any:
        """The program's output.

        Raises:
            BatchShapeError: The batch has another size or shape than the program was exported for.
            ElementError: An input is missing or unknown.
        """
        if self.by_position is None:
            return self.program(*given, **named)
        names = [one.name for one in self.inputs]
        values = {**dict(zip(names, given, strict=False)), **named}
        check_names(list(values), self.inputs)
        for one in self.inputs:
            if one.shape:
                check_shape(values[one.name], one, len(values[one.name]))
        first = [values.pop(name) for name in names[: self.by_position]]
        return self.program(*first, **values)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the program, and not what looks at its inputs before."""
        self.program.compile(*args, **kwargs)


def read_exported(
    path: str, device: Any, load_model_args: Mapping[str, Any], sha256: str | None = None
) -> Exported:
    """The program in a file of ``torch.export.save``.

    Such a file may hold pickled objects, and loading it may run code: load only files that you trust.

    Args:
        path: The file.
        device: Where the program runs.
        load_model_args: Keywords for ``torch.export.load``.
        sha256: The digest that the file must have.

    Raises:
        ModelNotFoundError: There is no such file.
        ModelLoadError: The file is of another kind, truncated, or has another digest.
    """
    with open_model(path, "torch_export_model_path", sha256) as file:
        try:
            program = torch.export.load(file, **load_model_args)
        except Exception as error:
            raise ModelLoadError(
                f"The file {path!r} (torch_export_model_path) cannot be loaded as a program of torch.export "
                f"({first_sentence(error)}). It may be truncated, or written by another version of PyTorch than "
                f"{torch.__version__}; if it is TorchScript, give it as torch_script_model_path, and if it holds "
                "weights, as state_dict_path."
            ) from error
    if any(weight.device != device for weight in program.state_dict.values()):
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return Exported(program)


def _inputs(program: Any) -> list[Input]:
    """The inputs of a program with their shapes; a size that is free is no number."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    shapes = [tuple(getattr(nodes[name].meta.get("val"), "shape", ())) for name in names]
    return [Input(name, None, shape) for name, shape in zip(names, shapes, strict=True)]


def _by_position(program: Any) -> int | None:
    """How many inputs are given by position, before the named ones; None where some are no tensors."""
    args, kwargs = program.example_inputs or ((), {})
    if not all(isinstance(value, torch.Tensor) for value in (*args, *kwargs.values())):
        return None
    return len(args)
