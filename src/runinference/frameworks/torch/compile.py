"""Whether and how a PyTorch model is compiled, and whether this machine can."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from runinference.errors import ModelLoadError, OptionError, suggest
from runinference.extras import need
from runinference.frameworks.torch.loading import first_sentence

torch = need("torch", extra="torch")


def compile_args(value: Any) -> dict[str, Any] | None:
    """The keywords for ``torch.compile`` that an option says; None if nothing is to be compiled.

    >>> compile_args("max-autotune")
    {'mode': 'max-autotune'}

    Args:
        value: True or False, a mode, or keywords.

    Raises:
        OptionError: There is no such mode or keyword.
    """
    if value is None or isinstance(value, bool):
        return {} if value else None
    if isinstance(value, str):
        modes = torch._inductor.list_mode_options()
        if value not in modes:
            raise OptionError(
                f"torch.compile has no mode {value!r}.{suggest(value, modes)} Its modes are {', '.join(modes)}."
            )
        return {"mode": value}
    if not isinstance(value, Mapping):
        raise OptionError(
            "compile must be True, a mode such as 'max-autotune', or a dictionary of keywords for torch.compile, "
            f"and is {value!r}."
        )
    known = [name for name in inspect.signature(torch.compile).parameters if name != "model"]
    for name in value:
        if name not in known:
            raise OptionError(f"torch.compile has no keyword {name!r}.{suggest(name, known)}")
    return dict(value)


def compile_model(model: Any, args: dict[str, Any], device: Any) -> None:
    """Lets a model be compiled when it is first called.

    Raises:
        ModelLoadError: This machine cannot compile; found with a function of one line.
    """
    try:
        torch.compile(_one_more, **args)(torch.zeros(2, device=device))
    except Exception as error:
        said = first_sentence(getattr(error, "inner_exception", error))
        raise ModelLoadError(
            f"The model cannot be compiled here ({said}). Workers need what torch.compile needs: "
            "on a CPU a C++ compiler such as g++, on a GPU Triton. Or leave compile out."
        ) from error
    model.compile(**args)


def _one_more(x: Any) -> Any:
    return x + 1
