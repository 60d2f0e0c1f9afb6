"""How an ONNX file becomes a session of onnxruntime, and on which of its providers it runs."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from apache_beam.io.filesystem import CompressionTypes

from runinference.errors import ModelLoadError, OptionError, suggest
from runinference.extras import need
from runinference.model_file import open_model

ort = need("onnxruntime", extra="onnx")

_LOGGER = logging.getLogger(__name__)


def load_session(
    path: str,
    session_options: Any,
    providers: Sequence[Any],
    provider_options: Sequence[Any] | None,
) -> Any:
    """An ``onnxruntime.InferenceSession`` of a file, on the first of the providers that works here.

    Raises:
        ModelNotFoundError: There is no such file.
        ModelLoadError: The file is no ONNX model, is truncated, or needs a later onnxruntime.
    """
    start = functools.partial(
        ort.InferenceSession,
        _source(path),
        sess_options=session_options() if callable(session_options) else session_options,
        enable_fallback=0,  # it would tell of it on stdout, in the middle of a batch
    )
    chosen = _usable(providers, provider_options)
    try:
        return start(providers=chosen)
    except Exception as error:
        if (session := _on_the_cpu(start, chosen, error)) is None:
            raise _cannot_load(path, error) from error
        return session


def check_session_options(session_options: Any) -> None:
    """Raises unless a function makes the options.

    Raises:
        OptionError: They are there already, and cannot be sent to workers.
    """
    if session_options is not None and not callable(session_options):
        raise OptionError(
            f"session_options must be a function that makes them, and is a {type(session_options).__name__}, "
            "which cannot be sent to workers. Make it in a function: session_options=make_options."
        )


def check_providers(providers: Sequence[Any], provider_options: Sequence[Any] | None) -> None:
    """Raises unless onnxruntime knows the providers, and each has its options in one place.

    Raises:
        OptionError: It does not, or they have not.
    """
    known = ort.get_all_providers()
    for name in map(_name, providers):
        if name not in known:
            raise OptionError(
                f"onnxruntime knows no provider {name!r}.{suggest(name, known)} Some that it knows: "
                "CPUExecutionProvider, CUDAExecutionProvider, TensorrtExecutionProvider."
            )
    if provider_options is None:
        return
    if len(provider_options) != len(providers):
        raise OptionError(
            f"provider_options has {len(provider_options)} entries, and providers has {len(providers)}. Give one "
            "dictionary for each provider; an empty one where there is nothing to say."
        )
    if not all(isinstance(provider, str) for provider in providers):
        raise OptionError(
            "Options stand in providers and in provider_options. Give them in one place: providers=["
            '("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"].'
        )


def _name(provider: Any) -> str:
    return provider if isinstance(provider, str) else str(provider[0])


def _usable(providers: Sequence[Any], provider_options: Sequence[Any] | None) -> list[Any]:
    """Those providers that this machine's onnxruntime has, each with its options."""
    if provider_options is not None:
        providers = list(zip(providers, provider_options, strict=True))
    there = ort.get_available_providers()
    usable = [provider for provider in providers if _name(provider) in there]
    if not usable:
        _LOGGER.warning(
            "The model runs on the CPU: of %s there is none here, only %s.",
            [_name(provider) for provider in providers],
            there,
        )
    return usable or ["CPUExecutionProvider"]


def _on_the_cpu(start: Callable[..., Any], chosen: Sequence[Any], error: Exception) -> Any:
    """A session on the CPU, where the chosen providers are at fault; None where the model is."""
    if [*map(_name, chosen)] == ["CPUExecutionProvider"]:
        return None
    try:
        session = start(providers=["CPUExecutionProvider"])
    except Exception:
        return None
    names = [_name(provider) for provider in chosen]
    _LOGGER.warning("The model runs on the CPU: %s cannot be used (%s).", names, error)
    return session


def _source(path: str) -> Any:
    """The path, where onnxruntime can read it itself, with the files of weights beside it; else the bytes."""
    with open_model(path, "model_uri") as file:
        plain = CompressionTypes.detect_compression_type(path) == CompressionTypes.UNCOMPRESSED
        return path if plain and os.path.isfile(path) else file.read()


def _cannot_load(path: str, error: Exception) -> ModelLoadError:
    said = str(error).partition("\n")[0].rpartition(" : ")[2]
    said = re.sub(r"^Load model from .* failed:|\S+\.(cc|h):\d+ .*?\) (?=[A-Z])", "", said)[:200]
    if "opset" in str(error) or "IR version" in str(error):
        cure = f"Export it for an earlier opset, or install a later onnxruntime than {ort.__version__}."
    elif "external" in str(error).lower():
        cure = "Its weights are in files of their own: put them beside it, on a local disk."
    else:
        cure = "It may be truncated, or of another kind than an ONNX model."
    return ModelLoadError(
        f"The file {path!r} (model_uri) cannot be loaded ({said.strip(' .')}). {cure}"
    )
