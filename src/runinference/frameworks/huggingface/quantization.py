"""Quantize embeddings, like the sentence-transformers library."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from runinference.errors import OptionError, suggest
from runinference.extras import need

torch = need("torch", extra="transformers")

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
_COMPUTE = "compute the ranges from an array with a sample of embeddings: np.stack([sample.min(0), sample.max(0)])"
_BITS = (128, 64, 32, 16, 8, 4, 2, 1)


class Quantization:
    """Converts embeddings of shape (batch, dimensions) to a precision.

    With ``"int8"`` and ``"uint8"``, the range of each dimension is divided into 256 buckets. With ``"binary"`` and
    ``"ubinary"``, a dimension is one bit: whether it is positive. Eight bits are one number, the first bit first.

    >>> Quantization("ubinary", None)(torch.tensor([[0.5, -0.5, 0.0, 0.1]]))
    tensor([[144]], dtype=torch.uint8)

    Args:
        precision: The name of the precision.
        ranges: The lowest and highest values of each dimension: numbers of shape (2, dimensions).

    Raises:
        OptionError: The precision is unknown, or its ranges are missing or invalid.
    """

    def __init__(self, precision: str, ranges: Any) -> None:
        if precision not in PRECISIONS:
            raise OptionError(
                f"precision must be one of {', '.join(PRECISIONS)}, but is {precision!r}."
                f"{suggest(str(precision), PRECISIONS)}"
            )
        if (ranges is not None) != precision.endswith("int8"):
            given = "missing" if ranges is None else "set"
            raise OptionError(
                f"precision is {precision!r} and ranges is {given}. The precisions int8 and uint8 need ranges, "
                f"and others have none. To fix this, {'leave it out' if given == 'set' else _COMPUTE}."
            )
        self.precision = precision
        self.ranges = None if ranges is None else _check_ranges(ranges)

    def __call__(self, vectors: Any) -> Any:
        vectors = vectors.float()
        if self.precision == "float32":
            return vectors
        if self.ranges is None:
            bits = torch.nn.functional.pad(vectors > 0, (0, -vectors.shape[-1] % 8))
            weights = torch.tensor(_BITS, device=vectors.device)
            numbers = (bits.unflatten(-1, (-1, 8)) * weights).sum(-1)
        else:
            starts, ends = torch.as_tensor(self.ranges, device=vectors.device)
            if len(starts) != vectors.shape[-1]:
                raise OptionError(
                    f"ranges has {len(starts)} dimensions, but the embeddings have {vectors.shape[-1]}. To fix "
                    "this, compute ranges from embeddings of the same model with the same truncate_dim."
                )
            steps = (ends - starts) / 255
            steps = torch.where(steps == 0, 1, steps)
            numbers = ((vectors - starts) / steps).floor().clamp(0, 255)
        if self.precision in ("int8", "binary"):
            return (numbers - 128).to(torch.int8)
        return numbers.to(torch.uint8)


def _check_ranges(ranges: Any) -> np.ndarray[Any, Any]:
    try:
        found = np.asarray(ranges, dtype=np.float32)
        is_valid = found.shape == (2, found.size // 2) and np.isfinite(found).all()
        is_valid = is_valid and (found[0] <= found[1]).all()
    except (TypeError, ValueError):
        is_valid = False
    if not is_valid:
        raise OptionError(
            "ranges must be finite numbers of shape (2, dimensions), the lowest values and then the highest, but "
            f"is {ranges!r:.200}. To fix this, {_COMPUTE}."
        )
    return found
