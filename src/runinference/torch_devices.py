"""Where a PyTorch model runs: on the device that was asked for, if this machine has it."""

from __future__ import annotations

import functools
import logging
from typing import Any

from runinference.errors import OptionError
from runinference.extras import need

torch = need("torch", extra="torch")

_LOGGER = logging.getLogger(__name__)


def device_named(name: Any) -> Any:
    """The device of PyTorch that ``name`` says; ``"CPU"`` and ``"GPU"``, Beam's words, are among them.

    >>> device_named("GPU")
    device(type='cuda')

    Raises:
        OptionError: PyTorch knows no such device.
    """
    if isinstance(name, torch.device):
        return name
    lower = name.lower() if isinstance(name, str) else name
    try:
        return torch.device("cuda" if lower == "gpu" else lower)
    except (RuntimeError, TypeError) as error:
        raise OptionError(
            f"device must be 'CPU', 'GPU' or a device of PyTorch such as 'cuda:1', and is {name!r}."
        ) from error


@functools.cache
def usable(device: Any) -> Any:
    """The device, or the CPU where there is no such GPU."""
    if device.type != "cuda":
        return device
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        _LOGGER.warning(
            "The model runs on the CPU: the device %s cannot be used (%s).", device, error
        )
        return torch.device("cpu")
    return device


def device_of(model: Any, device: Any) -> Any:
    """Where a model's weights are; for one without weights, the device it was meant for."""
    if (
        isinstance(model, torch.nn.Module)
        and (weight := next(model.parameters(), None)) is not None
    ):
        return weight.device
    return usable(device)
