"""Load Transformers models, with errors that explain why a model can't be loaded."""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from runinference.download import cannot_read, download_folder
from runinference.errors import (
    ModelLoadError,
    ModelNotFoundError,
    PretrainedModelError,
    RunInferenceError,
    suggest,
)
from runinference.extras import need
from runinference.frameworks.torch.loading import first_sentence, get_name, shorten
from runinference.frameworks.torch.training_mode import check_evaluation_mode
from runinference.model_file import is_local

transformers = need("transformers", extra="transformers")

#: The version of Transformers, such as (4, 57).
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
if VERSION < (4, 40):
    raise ImportError(
        f"Transformers {transformers.__version__} is too old: 4.40 or later is needed. Install it with: "
        'pip install -U "runinference[transformers]".'
    )

#: Keywords of ``from_pretrained`` that apply to every file of a repository.
_HUB_ARGS = ("cache_dir", "force_download", "local_files_only", "revision", "token")

#: The names of files with weights, which tokenizers and configurations don't need.
_WEIGHTS = (
    "*.safetensors",
    "*/pytorch_model*.bin",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.onnx_data",
    "*.gguf",
)

_T = TypeVar("_T")


def load_from_folder(
    uri: str, option: str, load: Callable[[str], _T], *, weights: bool = True, keep: bool = False
) -> _T:
    """Load something from a model's directory, which is on any file system that Beam reads, or from the Hub.

    Args:
        uri: The directory, or the name of a model on the Hub.
        option: The name of the parameter that holds the directory, for error messages.
        load: A function that takes a local directory or a name. A temporary copy is deleted when it returns.
        weights: Whether the function reads files with weights.
        keep: Whether to delete a temporary copy with the loaded object instead.

    Raises:
        ModelNotFoundError: There is no file in the directory.
        ModelLoadError: The directory can't be read.
    """
    if is_local(uri):
        return load(uri)
    folder = _download(uri, option, () if weights else _WEIGHTS)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            loaded = load(folder)
        except RunInferenceError as error:
            raise type(error)(str(error).replace(folder, uri)) from error
        if keep:
            weakref.finalize(loaded, stack.pop_all().close)
    return loaded


def _download(uri: str, option: str, excluded: tuple[str, ...]) -> str:
    try:
        folder = download_folder(uri, excluded)
    except Exception as error:  # what a client raises depends on the file system
        raise cannot_read(f"directory {uri!r} ({option})", error) from error
    if not os.listdir(folder):
        os.rmdir(folder)
        raise ModelNotFoundError(
            f"There are no files in the directory {uri!r} ({option}). To fix this, check the path."
        )
    return folder


def load_pretrained(
    uri: str, model_class: Any, load_model_args: Mapping[str, Any], device: Any
) -> Any:
    """Load a model on its device, in evaluation mode and without gradients."""
    args = {**_get_default_args(model_class), **load_model_args}
    name = get_name(model_class)
    with explain_load_errors(uri, "model_uri", name):
        loaded = model_class.from_pretrained(uri, **args)
    model, info = loaded if isinstance(loaded, tuple) else (loaded, {})
    hint = (
        "To fix this, use the model_class that the model was saved from, or a model trained for this task. If "
        "these weights don't matter, set load_model_args={'output_loading_info': False}."
    )
    check_no_random_weights(uri, "model_uri", name, info, hint)
    if hasattr(model, "eval"):
        model = model.eval().requires_grad_(False)
        if "device_map" not in args and not getattr(model, "is_quantized", False):
            model = model.to(device)
    check_evaluation_mode(model, name)
    return model


def read_json(uri: str, name: str, args: Mapping[str, Any]) -> Any:
    """Read a JSON file of a model's repository; return an empty dictionary if there is no such file."""
    try:
        path = transformers.utils.cached_file(
            uri,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **{key: args[key] for key in _HUB_ARGS if key in args},
        )
    except OSError:
        return {}
    return {} if path is None else json.loads(Path(path).read_bytes())


def load_config(uri: str, args: Mapping[str, Any]) -> Any:
    """Load the configuration of a model's text part; return None if there is none."""
    try:
        shared = {"trust_remote_code": False, **select_shared_args(args)}
        config = transformers.AutoConfig.from_pretrained(uri, **shared)
    except (OSError, ValueError):
        return None
    return config.get_text_config()


def select_shared_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of ``from_pretrained`` that also apply to the model's tokenizer and configuration."""
    return {k: args[k] for k in (*_HUB_ARGS, "trust_remote_code") if k in args}


def _get_default_args(model_class: Any) -> dict[str, Any]:
    """Forbid code from the repository and request a report of missing weights, if the class supports that."""
    if hasattr(model_class, "_model_mapping"):  # An AutoModel class.
        return {"trust_remote_code": False, "output_loading_info": True}
    if isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel):
        return {"output_loading_info": True}
    return {}


def check_no_random_weights(uri: str, option: str, name: str, info: Any, hint: str) -> None:
    """Raise `ModelLoadError` if weights are missing or have another shape, according to the loading info."""
    if not isinstance(info, Mapping):
        info = vars(info)
    # Many models are published without the weights of the pooler.
    missing = sorted(key for key in info.get("missing_keys", ()) if "pooler" not in key)
    mismatched = sorted(str(key) for key in info.get("mismatched_keys", ()))
    if not missing and not mismatched:
        return
    problem = "has no weights for" if missing else "has weights with a different shape for"
    saved_from = read_json(uri, "config.json", {}).get("architectures")
    origin = f"It was saved from {', '.join(saved_from)}. " if saved_from else ""
    raise ModelLoadError(
        f"{uri!r} ({option}) {problem} {shorten(missing or mismatched)} of {name}, so they would be random, and "
        f"so would the predictions. {origin}{hint}"
    )


@contextmanager
def explain_load_errors(uri: str, option: str, loader: str) -> Iterator[None]:
    """Convert errors of the enclosed loading code to errors that name the model, the reason and a fix."""
    _check_uri(uri, option)
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except OSError as error:
        if os.path.isdir(uri):
            raise PretrainedModelError(
                f"The directory {uri!r} ({option}) cannot be loaded by {loader} ({first_sentence(error)}). It "
                "must hold what save_pretrained wrote: the configuration, the weights and, for texts, the "
                "tokenizer."
            ) from error
        raise ModelNotFoundError(
            f"{uri!r} ({option}) is not a directory, is not in the cache, and cannot be downloaded from the Hub "
            f"({first_sentence(error)}). To fix this, check the name. If workers have no network, pass a "
            "directory that save_pretrained wrote, or fill the cache of each worker and set HF_HUB_OFFLINE=1. A "
            "private model needs HF_TOKEN."
        ) from error
    except Exception as error:
        raise ModelLoadError(f"{uri!r} ({option}) {_describe(error, loader)}") from error


def _describe(error: Exception, loader: str) -> str:
    message = str(error)
    is_pipeline = loader.startswith("pipeline")
    option = "load_pipeline_args" if is_pipeline else "load_model_args"
    if "trust_remote_code" in message or "custom code" in message:
        return (
            "contains Python code, which does not run by default. If you trust it, read it, pin its revision, and "
            f"set {option}={{'trust_remote_code': True, 'revision': …}}."
        )
    if loader == "AutoTokenizer":
        hint = "To fix this, save the tokenizer to the model's directory: tokenizer.save_pretrained(path)."
    elif "Unrecognized configuration class" in message:
        hint = "The model has another type. To fix this, use the class it was trained for, or AutoModel."
    elif "unexpected keyword" in message:
        hint = f"Check the keywords in {option}."
    else:
        also = ", including those of its tokenizer" if is_pipeline else ""
        hint = f"Check that {loader} fits the model, and that its files are complete{also}."
    return f"cannot be loaded by {loader} ({first_sentence(error)}). {hint}"


def _check_uri(uri: str, option: str) -> None:
    if os.path.isfile(uri):
        raise ModelLoadError(
            f"{uri!r} ({option}) is a file. To fix this, pass the directory that save_pretrained wrote."
        )
    if os.path.isdir(uri) or not (uri.startswith((".", "~")) or os.path.isabs(uri)):
        return
    folder, name = os.path.split(os.path.normpath(uri))
    near = suggest(name, os.listdir(folder)) if os.path.isdir(folder) else ""
    raise ModelNotFoundError(
        f"There is no directory {uri!r} ({option}).{near} Workers read this path: on a distributed runner, it "
        "must be on storage that all of them can reach."
    )
