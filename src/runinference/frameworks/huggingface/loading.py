"""Loads models of Hugging Face; says what is wrong where they cannot be loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from runinference.errors import ModelLoadError, ModelNotFoundError, suggest
from runinference.extras import need

transformers = need("transformers", extra="transformers")

#: The version of Transformers, such as (4, 57).
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
if VERSION < (4, 40):
    raise ImportError(
        f"Transformers {transformers.__version__} is too old: 4.40 or later is needed. Install it with: "
        'pip install -U "runinference[transformers]".'
    )

#: Keywords of ``from_pretrained`` that say where a repository is: they hold for all its files.
_WHERE = ("cache_dir", "force_download", "local_files_only", "revision", "token")


def load_model(uri: str, model_class: Any, load_model_args: Mapping[str, Any], device: Any) -> Any:
    """A model on its device, in evaluation mode and frozen.

    Raises:
        ModelNotFoundError: There is no such directory, and no such model in the cache or on the hub.
        ModelLoadError: The model is of another kind than its class, or lacks weights that the class needs.
    """
    args = {**_careful(model_class), **load_model_args}
    with explained(uri, "model_uri", _name_of(model_class)):
        loaded = model_class.from_pretrained(uri, **args)
    model, info = loaded if isinstance(loaded, tuple) else (loaded, {})
    cure = (
        "Take the model_class it was saved from, or a model trained for this task. If these weights do not "
        "matter: load_model_args={'output_loading_info': False}."
    )
    refuse_random(uri, "model_uri", _name_of(model_class), info, cure)
    if hasattr(model, "eval"):
        model = model.eval().requires_grad_(False)
        if "device_map" not in args and not getattr(model, "is_quantized", False):
            model = model.to(device)
    return model


def read_json(uri: str, name: str, args: Mapping[str, Any]) -> Any:
    """What a JSON file of a model's repository holds, or None where there is no such file."""
    where = {key: args[key] for key in _WHERE if key in args}
    try:
        path = transformers.utils.cached_file(
            uri,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **where,
        )
    except OSError:
        return None
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def where_of(args: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a model's arguments that its tokenizer and configuration share."""
    return {k: args[k] for k in (*_WHERE, "trust_remote_code") if k in args}


def _careful(model_class: Any) -> dict[str, Any]:
    """No code of a repository, and a report of what was not loaded; for classes of Transformers alone."""
    if hasattr(model_class, "_model_mapping"):  # an AutoModel…
        return {"trust_remote_code": False, "output_loading_info": True}
    known = transformers.PreTrainedModel
    if isinstance(model_class, type) and issubclass(model_class, known):
        return {"output_loading_info": True}
    return {}


def refuse_random(uri: str, option: str, name: str, info: Any, cure: str) -> None:
    """Does nothing where all weights were loaded, but for those of poolers: many models are published without.

    Raises:
        ModelLoadError: A head has weights that were drawn at random, so that its answers would be too.
    """
    if not isinstance(info, Mapping):
        info = vars(info)
    missing = sorted(key for key in info.get("missing_keys", ()) if "pooler" not in key)
    mismatched = sorted(str(key) for key in info.get("mismatched_keys", ()))
    if not missing and not mismatched:
        return
    what = "has no weights for" if missing else "has weights of another shape for"
    keys = missing or mismatched
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    raise ModelLoadError(
        f"{uri!r} ({option}) {what} {', '.join(keys[:3])}{more} of {name}: they would be random, and so would "
        f"the predictions. {_saved_from(uri)}{cure}"
    )


def _saved_from(uri: str) -> str:
    names = (read_json(uri, "config.json", {}) or {}).get("architectures")
    return f"It was saved from {', '.join(names)}. " if names else ""


@contextmanager
def explained(uri: str, option: str, what: str) -> Iterator[None]:
    """Says of what fails inside it which model could not be loaded, why, and what helps.

    Raises:
        ModelNotFoundError: There is no such directory, and no such model in the cache or on the hub.
        ModelLoadError: It is there, and cannot be loaded by ``what``.
    """
    _refuse_missing_directory(uri, option)
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except OSError as error:
        if os.path.isdir(uri):
            raise ModelLoadError(
                f"The directory {uri!r} ({option}) cannot be loaded by {what} ({_first_line(error)}). It must "
                "hold what save_pretrained wrote: the configuration, the weights and, for texts, the tokenizer."
            ) from error
        raise ModelNotFoundError(
            f"{uri!r} ({option}) is neither a directory nor in the cache, and the hub did not give it "
            f"({_first_line(error)}). Check the name; where workers have no network, save it to a directory with "
            "save_pretrained and give that path, or fill the cache of each worker and set HF_HUB_OFFLINE=1. A "
            "private model needs HF_TOKEN."
        ) from error
    except Exception as error:
        raise ModelLoadError(f"{uri!r} ({option}) {_cure(error, what)}") from error


def _cure(error: Exception, what: str) -> str:
    """What is wrong with a model that is there, and what helps."""
    said = str(error)
    option = "load_pipeline_args" if what.startswith("pipeline") else "load_model_args"
    if "trust_remote_code" in said or "custom code" in said:
        return (
            "brings Python code of its own, which is not run unless you say so: read it, pin its revision, and "
            f"give {option}={{'trust_remote_code': True, 'revision': …}}."
        )
    if what == "AutoTokenizer":
        cure = "Save the tokenizer to the directory of the model: tokenizer.save_pretrained(path)."
    elif "Unrecognized configuration class" in said:
        cure = "The model is of another kind: take the class for what it was trained for, or AutoModel."
    elif "unexpected keyword" in said:
        cure = f"Check the keywords in {option}."
    else:
        also = ", also those of its tokenizer" if what.startswith("pipeline") else ""
        cure = f"Check that {what} fits the model, and that its files are complete{also}."
    return f"cannot be loaded by {what} ({_first_line(error)}). {cure}"


def _refuse_missing_directory(uri: str, option: str) -> None:
    if os.path.isfile(uri):
        raise ModelLoadError(
            f"{uri!r} ({option}) is a file: give the directory that save_pretrained wrote."
        )
    if "://" in uri:
        raise ModelLoadError(
            f"{uri!r} ({option}) is an address: Hugging Face loads directories and models of the hub. Copy it to "
            "a directory of each worker, and give that path."
        )
    if os.path.isdir(uri) or not (uri.startswith((".", "~")) or os.path.isabs(uri)):
        return
    folder, name = os.path.split(os.path.normpath(uri))
    near = suggest(name, os.listdir(folder)) if os.path.isdir(folder) else ""
    raise ModelNotFoundError(
        f"There is no directory {uri!r} ({option}).{near} Workers read this path: on a distributed runner it must "
        "be on storage that they all reach."
    )


def _name_of(model_class: Any) -> str:
    return str(getattr(model_class, "__name__", repr(model_class)))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:300]
