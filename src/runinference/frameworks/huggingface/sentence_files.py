"""Read the settings that the sentence-transformers library saves with a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runinference.errors import ModelLoadError
from runinference.frameworks.huggingface.loading import read_json
from runinference.frameworks.huggingface.pooling import POOLINGS


@dataclass(frozen=True)
class SentenceSettings:
    """The settings of a sentence-transformers model.

    Attributes:
        poolings: The poolings, whose vectors are concatenated.
        normalize: Whether embeddings have length 1.
        include_prompt: Whether the tokens of the prompt are pooled, too.
        prompt: Text to prepend to each text.
        max_length: The number of tokens to truncate texts to. None for the limit of the tokenizer.
        lowercase: Whether texts are converted to lowercase.
        dimensions: The number of dimensions of an embedding to keep. None for all.
    """

    poolings: Sequence[str]
    normalize: bool
    include_prompt: bool
    prompt: str
    max_length: int | None
    lowercase: bool
    dimensions: int | None


def read_settings(
    uri: str, load_model_args: Mapping[str, Any], given: Mapping[str, Any]
) -> SentenceSettings:
    """Read the settings of a model. Models without such files have mean pooling.

    Args:
        uri: The directory of the model, or its name on the Hub.
        load_model_args: Keywords for ``from_pretrained``.
        given: The handler's options by name. They take precedence over the files.

    Raises:
        ModelLoadError: A file has a setting that the handler does not support.
    """

    def read(name: str) -> Any:
        return read_json(uri, name, load_model_args)

    poolings, normalize, include_prompt = _read_modules(uri, read, given)
    transformer: Mapping[str, Any] = next(filter(None, map(read, _TRANSFORMER_FILES)), {})
    _check_transformer(uri, transformer, given)
    model = read("config_sentence_transformers.json")
    if (kind := model.get("model_type") or "SentenceTransformer") != "SentenceTransformer":
        raise _unsupported(uri, f"is a {kind}", "use a model that gives one vector for each text")
    return SentenceSettings(
        poolings=poolings,
        normalize=normalize,
        include_prompt=include_prompt,
        prompt=_read_prompt(uri, model) if given["prompt"] is None else given["prompt"],
        max_length=transformer.get("max_seq_length"),
        lowercase=bool(transformer.get("do_lower_case")),
        dimensions=model.get("truncate_dim"),
    )


#: The names of the file that old versions of the library used for different models.
_TRANSFORMER_FILES = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
#: Settings of the first layer that are keywords of an option of the handler.
_KEYWORDS = {
    "model_args": "load_model_args",
    "model_kwargs": "load_model_args",
    "config_args": "load_model_args",
    "config_kwargs": "load_model_args",
    "tokenizer_args": "load_tokenizer_args",
    "processor_kwargs": "load_tokenizer_args",
}
_HUB_KEYWORDS = (
    "trust_remote_code",
    "token",
    "cache_dir",
    "local_files_only",
    "revision",
    "subfolder",
)
#: Settings of the first layer that this handler follows or checks, or that don't change embeddings.
_KNOWN_SETTINGS = frozenset(
    [
        *_KEYWORDS,
        "do_lower_case",
        "max_seq_length",
        "modality_config",
        "module_output_name",
        "processing_kwargs",
        "transformer_task",
        "unpad_inputs",
    ]
)
_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}
_LEGACY_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def _read_modules(
    uri: str, read: Callable[[str], Any], given: Mapping[str, Any]
) -> tuple[Sequence[str], bool, bool]:
    """Read the poolings, whether to normalize, and whether to pool the tokens of the prompt."""
    modules = read("modules.json") or []
    if given["pooling"] is None or given["normalize"] is None:
        _check_layers(uri, read, modules)
    paths = [module["path"] for module in modules if _get_kind(module) == "Pooling"]
    config = read(f"{paths[0]}/config.json") if paths else {}
    pooling = given["pooling"]
    return (
        _parse_poolings(uri, config) if pooling is None else (pooling,),
        any(_get_kind(module) == "Normalize" for module in modules),
        bool(config.get("include_prompt", True)),
    )


def _check_layers(uri: str, read: Callable[[str], Any], modules: Sequence[Any]) -> None:
    """Raise `ModelLoadError` unless the layers are a Transformer, a Pooling and optionally a Normalize."""
    fix = "set pooling and normalize to ignore it, or wrap sentence-transformers in your own ModelHandler"
    for position, module in enumerate(modules):
        kind = _get_kind(module)
        expected = ("Transformer", "Pooling", "Normalize")[min(position, 2)]
        if kind != expected:
            raise _unsupported(uri, f"has a layer {kind!r}", fix)
        if kind == "Transformer" and module["path"]:
            saved = "load it with sentence-transformers and save it again"
            raise _unsupported(uri, f"has its Transformer in the folder {module['path']!r}", saved)
        if kind == "Normalize" and module["path"]:
            names = {*read(f"{module['path']}/config.json").values()} - {None, "sentence_embedding"}
            if names:
                raise _unsupported(uri, f"has a layer 'Normalize' for {', '.join(names)}", fix)
    if len(modules) == 1:
        raise _unsupported(uri, "has no layer 'Pooling'", "set pooling and normalize")


def _get_kind(module: Mapping[str, Any]) -> str:
    """Return the name of a layer of sentence-transformers, or the full name of another class."""
    name = str(module["type"])
    return name.rpartition(".")[2] if name.startswith("sentence_transformers.") else name


def _parse_poolings(uri: str, config: Mapping[str, Any]) -> Sequence[str]:
    """Return the poolings of a configuration, in its old or new format."""
    modes = config.get("pooling_mode")
    if modes is None:
        enabled = [
            name for name, value in config.items() if name.startswith("pooling_mode_") and value
        ]
        known = [mode for name, mode in _LEGACY_POOLINGS.items() if name in enabled]
        modes = [*known, *(name for name in enabled if name not in _LEGACY_POOLINGS)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    for mode in modes:
        if mode not in POOLINGS:
            fix = f"set pooling to one of {', '.join(POOLINGS)}"
            raise _unsupported(uri, f"uses the pooling {mode}", fix)
    return tuple(modes)


def _check_transformer(uri: str, config: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise `ModelLoadError` for a setting of the first layer that would change the embeddings."""
    modalities = config.get("modality_config") or {}
    is_supported = {
        "transformer_task": config.get("transformer_task") in (None, "feature-extraction"),
        "module_output_name": config.get("module_output_name") in (None, "token_embeddings"),
        "modality_config": "message" not in modalities and modalities.get("text", _TEXT) == _TEXT,
    }
    is_supported |= {
        name: not value for name, value in config.items() if name not in _KNOWN_SETTINGS
    }
    for name, value in is_supported.items():
        if not value:
            fix = "wrap sentence-transformers in your own ModelHandler"
            raise _unsupported(uri, f"has the setting {name!r}: {config[name]!r}", fix)
    processing = config.get("processing_kwargs") or {}
    keywords = [(name, option, config.get(name)) for name, option in _KEYWORDS.items()]
    keywords += [(name, "tokenizer_args", processing.get(name)) for name in ("common", "text")]
    for name, option, values in keywords:
        for key, value in (values or {}).items():
            if key not in _HUB_KEYWORDS and key not in given[option]:
                problem = f"has the setting {name!r}: {{{key!r}: {value!r}}}"
                raise _unsupported(uri, problem, f"set {key!r} in {option}")


def _read_prompt(uri: str, config: Mapping[str, Any]) -> str:
    prompts = config.get("prompts") or {}
    name = config.get("default_prompt_name")
    if name is not None and name not in prompts:
        raise _unsupported(
            uri,
            f"has the default prompt {name!r}, but its prompts are {sorted(prompts)}",
            "set prompt",
        )
    return prompts.get(name) or ""


def _unsupported(uri: str, problem: str, fix: str) -> ModelLoadError:
    return ModelLoadError(
        f"{uri!r} (model_uri) {problem}, which this handler does not support. To fix this, {fix}."
    )
