"""The tensors of a call of a PyTorch model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from runinference.extras import need

torch = need("torch", extra="torch")


class BatchTensors(NamedTuple):
    """The tensors of a model's call. Their first dimension is the batch."""

    args: list[Any]
    kwargs: dict[str, Any]

    def repeat_first(self, size: int) -> BatchTensors:
        """Return the tensors of a batch that has the first element ``size`` times."""

        def repeat(tensor: Any) -> Any:
            return torch.cat([tensor[:1]] * size)

        kwargs = {name: repeat(tensor) for name, tensor in self.kwargs.items()}
        return BatchTensors([*map(repeat, self.args)], kwargs)

    def call_again(self, function: Callable[..., Any], size: int) -> Any:
        """Call a model with its first element ``size`` times, without an effect on later random numbers."""
        tensors = self.repeat_first(size)
        device = next(iter([*tensors.args, *tensors.kwargs.values()])).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return function(*tensors.args, **tensors.kwargs)
