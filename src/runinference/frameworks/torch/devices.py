"""Devices, mixed precision and memory formats for PyTorch models."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from runinference.errors import ModelLoadError, OptionError, suggest
from runinference.extras import need

torch = need("torch", extra="torch")

_LOGGER = logging.getLogger(__name__)


def parse_device(name: Any) -> Any:
    """Convert Beam's ``"CPU"`` or ``"GPU"``, or any PyTorch device name, to a ``torch.device``.

    >>> parse_device("GPU")
    device(type='cuda')
    """
    if isinstance(name, torch.device):
        return name
    lower = name.lower() if isinstance(name, str) else name
    try:
        return torch.device("cuda" if lower == "gpu" else lower)
    except (RuntimeError, TypeError) as error:
        raise OptionError(
            f"device must be 'CPU', 'GPU' or a PyTorch device such as 'cuda:1', but is {name!r}."
        ) from error


def parse_devices(names: Any) -> tuple[Any, ...]:
    """Convert the name of a device, or a list of them, to a tuple of ``torch.device``.

    >>> parse_devices(["cuda:0", "cuda:1"])
    (device(type='cuda', index=0), device(type='cuda', index=1))
    """
    if not isinstance(names, (list, tuple)):
        return (parse_device(names),)
    if not names:
        raise OptionError("device is an empty list. To fix this, name at least one device.")
    return tuple(map(parse_device, names))


def find_devices(devices: Sequence[Any]) -> list[Any]:
    """Return those of the devices that this machine has, or the CPU if it has none of them."""
    found = [device for device in devices if resolve_device(device) == device]
    return found or [torch.device("cpu")]


@functools.cache
def resolve_device(device: Any) -> Any:
    """Return ``device``. If this machine has no such device, log a warning and return the CPU."""
    if device.type == "cpu":
        return device
    try:
        torch.empty(1, device=device)
    except torch.cuda.OutOfMemoryError:
        return device  # The device exists. Loading the model reports the lack of memory.
    except (RuntimeError, AssertionError) as error:
        _LOGGER.warning(
            "The device %s is not available (%s). If the model has no other device, it runs on the CPU.",
            device,
            error,
        )
        return torch.device("cpu")
    return device


def get_model_device(model: Any, device: Any) -> Any:
    """Return the device of the model's weights, or ``device`` (if available) for a model without weights."""
    weights = model.parameters() if isinstance(model, torch.nn.Module) else iter(())
    weight = next(weights, None)
    return resolve_device(device) if weight is None else weight.device


def parse_autocast_dtype(name: Any) -> Any:
    """Convert ``"bfloat16"`` or ``"float16"`` to its ``torch.dtype``; None stays None.

    >>> parse_autocast_dtype("bfloat16")
    torch.bfloat16
    """
    if name is None:
        return None
    key = str(name).removeprefix("torch.")
    if key not in AUTOCAST_DTYPES:
        raise OptionError(
            f"autocast must be 'bfloat16' or 'float16', but is {name!r}.{suggest(key, AUTOCAST_DTYPES)}"
        )
    return AUTOCAST_DTYPES[key]


AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: Any, dtype: Any) -> AbstractContextManager[Any]:
    """Return a context for mixed precision in ``dtype``, or one without effect if ``dtype`` is None."""
    if dtype is None:
        return nullcontext()
    if not torch.amp.is_autocast_available(device.type):
        raise ModelLoadError(
            f"The device {device} doesn't support mixed precision. To fix this, leave autocast out, or convert "
            "the model: load it as float32 and call .half() or .bfloat16() in model_class."
        )
    return torch.autocast(device.type, dtype=dtype)  # type: ignore[no-any-return]


def use_channels_last(model: Any) -> Any:
    """Convert a model's weights, and each 4-dimensional input of its calls, to ``torch.channels_last``."""
    model = model.to(memory_format=torch.channels_last)
    # TorchScript accepts no hooks with keywords; its convolutions convert their inputs themselves.
    if not isinstance(model, torch.jit.ScriptModule):
        model.register_forward_pre_hook(_convert_inputs, with_kwargs=True)
    return model


def _convert_inputs(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    return tuple(map(_to_channels_last, args)), {k: _to_channels_last(v) for k, v in kwargs.items()}


def _to_channels_last(value: Any) -> Any:
    is_image = isinstance(value, torch.Tensor) and value.dim() == 4
    return value.contiguous(memory_format=torch.channels_last) if is_image else value
