"""Pool the vectors of tokens to the embedding of a text, like the sentence-transformers library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from runinference.errors import OptionError
from runinference.extras import need
from runinference.frameworks.huggingface.batch_mode import accepts_mask
from runinference.frameworks.huggingface.quantization import Quantization

torch = need("torch", extra="transformers")


@dataclass(frozen=True)
class EmbeddingSettings:
    """How token vectors become the embedding of a text.

    Attributes:
        poolings: The poolings, whose vectors are concatenated.
        prompt_tokens: Number of tokens at the start of each text to leave out.
        normalize: Whether to scale the embedding to length 1.
        dimensions: Number of dimensions of the embedding to keep. None for all.
        normalize_last: Whether to scale the embedding to length 1 after the number of dimensions is reduced.
        min_dimensions: The number of dimensions that the embedding must have before it is reduced.
        quantization: Converts the embedding to another precision. None for no conversion.
    """

    poolings: Sequence[str]
    prompt_tokens: int = 0
    normalize: bool = False
    dimensions: int | None = None
    normalize_last: bool = False
    min_dimensions: int = 0
    quantization: Quantization | None = None


class PoolingModel(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A model that returns one vector for each text."""

    def __init__(self, model: Any, settings: EmbeddingSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self._takes_mask = accepts_mask(model)

    @property
    def is_quantized(self) -> bool:
        return bool(getattr(self.model, "is_quantized", False))

    def forward(self, attention_mask: Any, **inputs: Any) -> Any:
        if self._takes_mask:
            # Attention to no token at all is not a number.
            first = attention_mask.sum(1, keepdim=True) == 0
            inputs["attention_mask"] = torch.cat(
                [attention_mask[:, :1] | first, attention_mask[:, 1:]], 1
            )
        vectors = self.model(**inputs)["last_hidden_state"]
        settings = self.settings
        mask = attention_mask.clone()
        mask[:, : settings.prompt_tokens] = 0
        pooled = torch.cat([pool(vectors, mask, pooling) for pooling in settings.poolings], -1)
        pooled = pooled.masked_fill(mask.sum(1, keepdim=True) == 0, 0)
        if settings.normalize:
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
        if pooled.shape[-1] < settings.min_dimensions:
            raise OptionError(
                f"truncate_dim is {settings.min_dimensions}, but the embeddings of the model have "
                f"{pooled.shape[-1]} dimensions. To fix this, set it to a lower number, or leave it out."
            )
        pooled = pooled[..., : settings.dimensions]
        if settings.normalize_last:
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
        return pooled if settings.quantization is None else settings.quantization(pooled)


def pool(vectors: Any, mask: Any, pooling: str) -> Any:
    """Pool token vectors of shape (batch, tokens, width) to (batch, width). The mask is 0 for other tokens.

    >>> pool(torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]]), torch.tensor([[1, 1, 0]]), "mean")
    tensor([[2., 3.]])
    """
    return POOLINGS[pooling](vectors, mask)


def _pool_mean(vectors: Any, mask: Any) -> Any:
    return _divide(*_sum(vectors, mask), vectors)


def _pool_mean_sqrt_len(vectors: Any, mask: Any) -> Any:
    total, count = _sum(vectors, mask)
    return _divide(total, count.sqrt(), vectors)


def _pool_weighted_mean(vectors: Any, mask: Any) -> Any:
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return _divide(*_sum(vectors, mask * positions), vectors)


def _pool_max(vectors: Any, mask: Any) -> Any:
    return vectors.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(1)


def _pool_cls(vectors: Any, mask: Any) -> Any:
    return _take(vectors, mask.argmax(1))


def _pool_last_token(vectors: Any, mask: Any) -> Any:
    positions = torch.arange(mask.shape[1], device=mask.device)
    return _take(vectors, (positions * mask).argmax(1))


def _sum(vectors: Any, weights: Any) -> tuple[Any, Any]:
    """Return the weighted sums of vectors, and the sums of the weights, at least in single precision."""
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    weights = weights.unsqueeze(-1).to(dtype)
    return (vectors * weights).sum(1), weights.sum(1)


def _divide(total: Any, count: Any, vectors: Any) -> Any:
    return (total / count.clamp(min=1e-9)).to(vectors.dtype)


def _take(vectors: Any, positions: Any) -> Any:
    return vectors[torch.arange(len(vectors), device=vectors.device), positions]


POOLINGS: dict[str, Callable[[Any, Any], Any]] = {
    "mean": _pool_mean,
    "cls": _pool_cls,
    "max": _pool_max,
    "lasttoken": _pool_last_token,
    "weightedmean": _pool_weighted_mean,
    "mean_sqrt_len_tokens": _pool_mean_sqrt_len,
}
