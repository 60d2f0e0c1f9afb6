"""Where a PyTorch model runs, in which precision, and how tensors get there and back."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from runinference.collate.pytree import replaced
from runinference.errors import ModelLoadError, OptionError, suggest
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
    """The device, or the CPU, with a warning, where there is no such device."""
    if device.type == "cpu":
        return device
    try:
        torch.empty(1, device=device)
    except torch.cuda.OutOfMemoryError:
        return device  # it is there, and its user hears of it when the model loads
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


def dtype_named(name: Any) -> Any:
    """The type of numbers for mixed precision that ``name`` says, if any.

    >>> dtype_named("bfloat16")
    torch.bfloat16

    Raises:
        OptionError: It is no type that autocast knows.
    """
    dtype = None if name is None else _MIXED.get(str(name).removeprefix("torch."))
    if name is not None and dtype is None:
        raise OptionError(
            f"autocast must be 'bfloat16' or 'float16', and is {name!r}.{suggest(str(name), _MIXED)}"
        )
    return dtype


_MIXED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: Any, dtype: Any) -> AbstractContextManager[Any]:
    """Within it, operations that gain by it compute in ``dtype``; nothing changes if that is None.

    Raises:
        ModelLoadError: The device does not know mixed precision.
    """
    if dtype is None:
        return nullcontext()
    if not torch.amp.is_autocast_available(device.type):
        raise ModelLoadError(
            f"The device {device} has no mixed precision. Leave autocast out, or convert the model: "
            "load it as float32 and call .half() or .bfloat16() in model_class."
        )
    return torch.autocast(device.type, dtype=dtype)  # type: ignore[no-any-return]


def stack_for(device: Any) -> Callable[[Sequence[Any]], Any]:
    """What stacks tensors that go to a device: for a GPU, into memory that it can copy from by itself."""
    return _stack_pinned if device.type == "cuda" else torch.stack


def to_device(tensor: Any, device: Any) -> Any:
    """The tensor on a device. From pinned memory the copy does not wait, and what follows waits for it."""
    return torch.as_tensor(tensor).to(device, non_blocking=True)


def to_cpu(output: Any, device: Any) -> Any:
    """An output whose tensors are on the CPU, each in one copy; and float32 again after mixed precision."""
    mixed = torch.is_autocast_enabled(device.type)
    if device.type == "cpu" and not mixed:
        return output

    def back(_: Any, part: Any) -> Any:
        if not isinstance(part, torch.Tensor):
            return part
        low = mixed and part.dtype in _MIXED.values()
        return part.to("cpu", torch.float32 if low else part.dtype)

    return replaced(output, back)


def channels_last(model: Any) -> Any:
    """A model of pictures that computes in the order of memory that convolutions are fastest in; it takes any."""
    model = model.to(memory_format=torch.channels_last)
    if not isinstance(
        model, torch.jit.ScriptModule
    ):  # it takes no hooks; its convolutions see to it
        model.register_forward_pre_hook(_inputs_channels_last, with_kwargs=True)
    return model


def _inputs_channels_last(
    model: Any, given: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def last(x: Any) -> Any:
        picture = isinstance(x, torch.Tensor) and x.dim() == 4
        return x.contiguous(memory_format=torch.channels_last) if picture else x

    return tuple(map(last, given)), {name: last(x) for name, x in named.items()}


def _stack_pinned(batch: Sequence[Any]) -> Any:
    first = batch[0]
    alike = all(
        (x.shape, x.dtype, x.device.type) == (first.shape, first.dtype, "cpu") for x in batch
    )
    if not alike:
        return torch.stack(tuple(batch))
    pinned = torch.empty((len(batch), *first.shape), dtype=first.dtype, pin_memory=True)
    return torch.stack(tuple(batch), out=pinned)
