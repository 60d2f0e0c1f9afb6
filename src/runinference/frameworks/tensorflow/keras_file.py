"""Inspect Keras files before Keras loads them: their format, their metadata, and Python bytecode in them."""

from __future__ import annotations

import base64
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from runinference.errors import ModelLoadError
from runinference.extras import need
from runinference.frameworks.tensorflow.errors import cannot_load

_ZIP, _HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"


def detect_suffix(file: BinaryIO, path: str, option: str, weights: bool = False) -> str:
    """Return the suffix that Keras expects for the format of a file: .keras, .h5 or .weights.h5."""
    start = file.read(8)
    if start.startswith(_ZIP):
        return ".keras"
    if start != _HDF5:
        found = f"starts with {start!r}" if start else "is empty"
        raise ModelLoadError(
            f"The file {path!r} ({option}) is neither a .keras nor an HDF5 file: it {found}. It may be truncated "
            "or have another format."
        )
    if not weights:
        return ".h5"
    names = _read_hdf5(file, path, option, lambda file: {*file.attrs, *file})
    return ".h5" if names & {"layer_names", "model_weights"} else ".weights.h5"  # .h5 for Keras 2


def read_metadata(local: str, path: str) -> dict[str, Any]:
    """Return the ``config`` of the model in a file, and the ``keras_version`` that wrote it."""
    if local.endswith(".h5"):
        attributes = _read_hdf5(local, path, "model_uri", lambda file: dict(file.attrs))
        if "model_config" not in attributes:
            raise ModelLoadError(
                f"The file {path!r} (model_uri) contains only weights. To fix this, pass a function that builds "
                "the model: model_type=ModelType.SAVED_WEIGHTS, create_model_fn=…"
            )
        return {**attributes, "config": json.loads(attributes["model_config"])}
    try:
        with zipfile.ZipFile(local) as archive:
            config, metadata = map(json.loads, map(archive.read, ("config.json", "metadata.json")))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise cannot_load(path, error) from error
    return {**metadata, "config": config}


def reject_bytecode(path: str, config: Mapping[str, Any]) -> None:
    """Raise `ModelLoadError` if a model's configuration contains Python bytecode."""
    for layer, code in find_bytecode(config):
        raise ModelLoadError(
            f"The file {path!r} (model_uri) contains Python bytecode, which would run with your permissions: a "
            f"function of {layer}, which mentions {_list_names(code)}. It was not run. If you trust its author, "
            "set load_model_args={'safe_mode': False}. It is better to save the model with your own layer class "
            "instead of Lambda, and to pass the class in custom_objects."
        )


def find_bytecode(config: Any, layer: str = "the model") -> Iterator[tuple[str, str]]:
    """Find the bytecode in a configuration. Yield the layer that it belongs to, and the Base64 text."""
    if isinstance(config, list):
        for part in config:
            yield from find_bytecode(part, layer)
    if not isinstance(config, dict):
        return
    name, inner = config.get("name"), config.get("config")
    layer = f"the layer {name!r}" if isinstance(name, str) else layer
    if config.get("class_name") == "__lambda__" and isinstance(inner, dict):
        yield layer, str(inner.get("code", ""))
    for role in ("function", "output_shape"):
        if config.get(f"{role}_type") == "lambda":  # the format of Keras 2
            yield layer, str(config[role][0])
    for part in config.values():
        yield from find_bytecode(part, layer)


def _list_names(code: str) -> str:
    """List the words in bytecode. Unmarshalling untrusted bytecode would be unsafe."""
    try:
        words = re.findall(rb"[\w./<>-]{3,}", base64.b64decode(code))
    except ValueError:
        words = []
    return ", ".join(repr(word.decode()) for word in words[:12]) or "nothing by name"


def _read_hdf5(source: str | BinaryIO, path: str, option: str, read: Callable[[Any], Any]) -> Any:
    try:
        with need("h5py", extra="tensorflow").File(source, "r") as file:
            return read(file)
    except OSError as error:
        raise cannot_load(path, error, option=option) from error
