"""Find how many tokens a Transformers model accepts."""

from __future__ import annotations

from typing import Any

from runinference.extras import need

torch = need("torch", extra="transformers")


def find_max_tokens(model: Any) -> int | None:
    """Return the number of tokens that the position embeddings of a model cover, or None if it has none.

    Models that compute positions, such as those with rotary embeddings, have no position embeddings.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        model = model.get_encoder()
    sizes = [_count_positions(parent) for parent in model.modules()]
    return min((size for size in sizes if size is not None), default=None)


def _count_positions(parent: Any) -> int | None:
    """Return the number of tokens that the position embeddings of a module with token embeddings cover."""
    tables = {name: child for name, child in parent.named_children() if _is_table(child)}
    positions = [table for name, table in tables.items() if "pos" in name or name == "wpe"]
    if not positions or len(tables) == len(positions):
        return None
    table = positions[0]
    return len(table.weight) - _find_first_position(parent, table)


def _find_first_position(parent: Any, table: Any) -> int:
    """Return the row of the first token: RoBERTa, BART and others leave out the first rows of the table."""
    if (padding_idx := getattr(table, "padding_idx", None)) is not None:
        return int(padding_idx) + 1
    if isinstance(offset := getattr(table, "offset", None), int):
        return offset
    ids = getattr(parent, "position_ids", None)
    return int(ids.min()) if isinstance(ids, torch.Tensor) and ids.numel() else 0


def _is_table(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim == 2
