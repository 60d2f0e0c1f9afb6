"""Compile PyTorch models with ``torch.compile``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from runinference.errors import ModelLoadError, OptionError, suggest
from runinference.extras import need
from runinference.frameworks.torch.loading import first_sentence

torch = need("torch", extra="torch")


def parse_compile_option(value: Any) -> dict[str, Any] | None:
    """Convert the option ``compile`` to keywords for ``torch.compile``, or None if the model isn't compiled.

    >>> parse_compile_option("max-autotune")
    {'mode': 'max-autotune'}
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
            f"compile must be True, a mode such as 'max-autotune', or a dictionary of keywords, but is {value!r}."
        )
    known = [name for name in inspect.signature(torch.compile).parameters if name != "model"]
    for name in value:
        if name not in known:
            raise OptionError(f"torch.compile has no keyword {name!r}.{suggest(name, known)}")
    return dict(value)


def uses_cuda_graphs(args: Mapping[str, Any]) -> bool:
    """Return whether ``torch.compile`` uses CUDA graphs with these arguments. Each thread records them again.

    >>> uses_cuda_graphs({"mode": "reduce-overhead"}), uses_cuda_graphs({})
    (True, False)
    """
    backend = args.get("backend", "inductor")
    if backend != "inductor":
        return bool(backend == "cudagraphs")
    # An unknown mode is an error when the model is loaded.
    mode_options = torch._inductor.list_mode_options().get(args.get("mode"), {})
    options = {**mode_options, **(args.get("options") or {})}
    return bool(options.get("triton.cudagraphs", torch._inductor.config.triton.cudagraphs))


def compile_model(model: Any, args: dict[str, Any], device: Any) -> None:
    """Mark a model to be compiled at its first call; raise `ModelLoadError` if this machine can't compile."""
    try:
        torch.compile(lambda x: x + 1, **args)(torch.zeros(2, device=device))
    except Exception as error:
        reason = first_sentence(getattr(error, "inner_exception", error))
        raise ModelLoadError(
            f"The model cannot be compiled here ({reason}). To fix this, install what torch.compile needs on "
            "each worker: for a CPU, a C++ compiler such as g++; for a GPU, Triton. Or leave compile out."
        ) from error
    model.compile(**args)
