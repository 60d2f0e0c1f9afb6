"""The tensors of a batch of rows."""

from __future__ import annotations

from typing import Any

from runinference.collate.row_features import Features
from runinference.collate.row_inputs import RowInput
from runinference.errors import ElementError, describe
from runinference.extras import need

torch = need("torch", extra="torch")


class TensorInput(RowInput):
    """A tensor of shape (rows, columns), or a tensor for each column if ``keyed``.

    Floats have PyTorch's default dtype, like the weights of a model.

    Args:
        keyed: Whether the model takes tensors by name.
        is_table: Whether the handler takes all rows as one batch. If not, it takes the tensors of each row.
    """

    def __init__(self, keyed: bool, is_table: bool = True) -> None:
        self._keyed = keyed
        self.is_table = is_table

    def collate(self, features: Features, model: Any) -> Any:
        if not self.is_table:
            return [
                self._make_example(features, row)
                for row in zip(*map(features.values, features.names), strict=True)
            ]
        if not self._keyed:
            return _to_tensor(features.matrix())
        return {name: _to_tensor(features.array(name)) for name in features.names}

    def _make_example(self, features: Features, row: tuple[Any, ...]) -> Any:
        tensors = [*map(_to_tensor, row)]
        if self._keyed:
            return dict(zip(features.names, tensors, strict=True))
        return tensors[0] if len(tensors) == 1 else torch.stack(tensors)


def _to_tensor(value: Any) -> Any:
    try:
        tensor = torch.as_tensor(value)
    except TypeError as error:
        raise ElementError(
            f"The columns hold values that can't be in a tensor ({describe(error, 200)}). To fix this, convert "
            "texts, times, and missing values to numbers before RunInference."
        ) from error
    return tensor.to(torch.get_default_dtype()) if tensor.dtype is torch.float64 else tensor
