"""Load ONNX files as onnxruntime sessions, on the first execution provider that works."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
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
    """Load a file as an ``onnxruntime.InferenceSession``. Fall back to the CPU if no provider works."""
    start = functools.partial(
        ort.InferenceSession,
        _read_model(path),
        sess_options=session_options() if callable(session_options) else session_options,
        enable_fallback=0,  # the fallback of onnxruntime prints to stdout while it runs a batch
    )
    available = _select_providers(providers, provider_options)
    try:
        return start(providers=available)
    except Exception as error:
        if (session := _fall_back_to_cpu(start, available, error)) is None:
            raise _cannot_load(path, error) from error
        return session


def check_session_options(session_options: Any) -> None:
    """Raise `OptionError` unless the session options are None or a function."""
    if session_options is not None and not callable(session_options):
        raise OptionError(
            "session_options must be a function that returns the options, but is a "
            f"{type(session_options).__name__}, which cannot be sent to workers. To fix this, write a function: "
            "session_options=make_options."
        )


def check_providers(providers: Sequence[Any], provider_options: Sequence[Any] | None) -> None:
    """Raise `OptionError` if a provider is unknown, or ``provider_options`` don't match ``providers``."""
    known = ort.get_all_providers()
    if isinstance(providers, str) or not isinstance(providers, Sequence) or not providers:
        raise OptionError(
            f"providers must be a list of one or more execution providers, but is {providers!r}."
        )
    for name in map(_get_provider_name, providers):
        if name not in known:
            raise OptionError(
                f"onnxruntime has no provider {name!r}.{suggest(name, known)} Some of its providers: "
                "CPUExecutionProvider, CUDAExecutionProvider, TensorrtExecutionProvider."
            )
    if provider_options is None:
        return
    is_list = isinstance(provider_options, Sequence) and not isinstance(provider_options, str)
    if not is_list or not all(isinstance(options, Mapping) for options in provider_options):
        raise OptionError(
            f"provider_options must be a list of one dictionary per provider, but is {provider_options!r}."
        )
    if len(provider_options) != len(providers):
        raise OptionError(
            f"provider_options has {len(provider_options)} entries, and providers has {len(providers)}. Pass one "
            "dictionary per provider. It may be empty."
        )
    if not all(isinstance(provider, str) for provider in providers):
        raise OptionError(
            "Both providers and provider_options hold options. Pass them in one place: providers=["
            '("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"].'
        )


def _get_provider_name(provider: Any) -> str:
    if isinstance(provider, (tuple, list)) and provider:
        provider = provider[0]
    return str(provider)


def _select_providers(providers: Sequence[Any], options: Sequence[Any] | None) -> list[Any]:
    """Return the providers that this machine's onnxruntime has, each with its options."""
    if options is not None:
        providers = list(zip(providers, options, strict=True))
    available = ort.get_available_providers()
    selected = [provider for provider in providers if _get_provider_name(provider) in available]
    if not selected:
        message = "The model runs on the CPU: none of %s is available here, only %s."
        _LOGGER.warning(message, [*map(_get_provider_name, providers)], available)
    return selected or ["CPUExecutionProvider"]


def _fall_back_to_cpu(start: Callable[..., Any], providers: Sequence[Any], error: Exception) -> Any:
    """Return a session on the CPU, or None if the model cannot be loaded there either."""
    names = [*map(_get_provider_name, providers)]
    if names == ["CPUExecutionProvider"]:
        return None
    try:
        session = start(providers=["CPUExecutionProvider"])
    except Exception:
        return None
    _LOGGER.warning("The model runs on the CPU: %s cannot be used (%s).", names, error)
    return session


def _read_model(path: str) -> Any:
    """Return a local path as is, so that onnxruntime finds external weights, and the content of other files."""
    with open_model(path, "model_uri") as file:
        compression = CompressionTypes.detect_compression_type(path)
        is_plain = compression == CompressionTypes.UNCOMPRESSED
        return path if is_plain and os.path.isfile(path) else file.read()


def _cannot_load(path: str, error: Exception) -> ModelLoadError:
    message = str(error).partition("\n")[0].rpartition(" : ")[2]
    message = re.sub(r"^Load model from .* failed:|\S+\.(cc|h):\d+ .*?\) (?=[A-Z])", "", message)
    if "opset" in str(error) or "IR version" in str(error):
        hint = f"Export it for an earlier opset, or install a later onnxruntime than {ort.__version__}."
    elif "external" in str(error).lower():
        hint = "Its weights are in separate files: put them next to the model, on a local disk."
    else:
        hint = "It may be truncated, or may not be an ONNX model."
    return ModelLoadError(
        f"The file {path!r} (model_uri) cannot be loaded ({message[:200].strip(' .')}). {hint}"
    )
