"""Load TensorFlow and Keras models and weights, without running code from their files by default."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any

from apache_beam.io.filesystems import FileSystems

from runinference.download import download_folder
from runinference.errors import ModelLoadError, OptionError
from runinference.extras import need
from runinference.frameworks.tensorflow.errors import cannot_load, summarize
from runinference.frameworks.tensorflow.keras_file import (
    detect_suffix,
    read_metadata,
    reject_bytecode,
)
from runinference.model_file import exists, local_file

tf = need("tensorflow", extra="tensorflow")


def load_keras_or_saved_model(path: str, load_model_args: Mapping[str, Any]) -> Any:
    """Load a Keras model from a ``.keras`` or HDF5 file, or a SavedModel with ``tf.saved_model.load``."""
    if path.startswith(("http://", "https://")):
        raise ModelLoadError(
            f"{path!r} (model_uri) is a URL. Download the model before the pipeline runs, for example "
            "with tensorflow_hub.resolve or kagglehub.model_download, and pass its folder."
        )
    files = ("saved_model.pb", "saved_model.pbtxt")
    if any(exists(FileSystems.join(path, name)) for name in files):
        return _load_saved_model(path, load_model_args)
    if os.path.basename(path) in files:
        raise ModelLoadError(
            f"{path!r} (model_uri) is a file inside a SavedModel: pass its folder, {os.path.dirname(path)!r}."
        )
    if os.path.isdir(path):
        raise _not_a_saved_model(path)
    detect = partial(detect_suffix, path=path, option="model_uri")
    with local_file(path, "model_uri", detect) as local:
        metadata = read_metadata(local, path)
        if load_model_args.get("safe_mode", True):
            reject_bytecode(path, metadata["config"])
        try:
            return tf.keras.models.load_model(local, **{"compile": False, **load_model_args})
        except Exception as error:
            raise cannot_load(path, error, metadata.get("keras_version", "")) from error


def load_weights(model: Any, path: str, option: str) -> Any:
    """Load weights from an HDF5 or ``.keras`` file into a Keras model, and return the model."""
    if not hasattr(model, "load_weights"):
        raise ModelLoadError(
            f"A {type(model).__name__} can't load weights ({option}). Only Keras models have load_weights. A "
            "SavedModel contains its weights."
        )
    if exists(f"{path}.index"):
        raise ModelLoadError(
            f"{path!r} ({option}) is a TensorFlow checkpoint, which Keras 3 does not read. Load it with the "
            "version that wrote it, and save it with model.save_weights('model.weights.h5')."
        )
    detect = partial(detect_suffix, path=path, option=option, weights=True)
    with local_file(path, option, detect) as local:
        try:
            model.load_weights(local)
        except Exception as error:
            raise ModelLoadError(
                f"The file {path!r} ({option}) contains no weights for this model ({summarize(error)}). Before it "
                "gets its weights, the model must be built with the architecture of the model that was saved."
            ) from error
    return model


def _load_saved_model(path: str, load_model_args: Mapping[str, Any]) -> Any:
    if unknown := sorted({*load_model_args} - {"tags", "options"}):
        raise OptionError(
            f"{path!r} (model_uri) is a SavedModel, which tf.saved_model.load loads: it takes tags and options, "
            f"but not {', '.join(unknown)} (load_model_args), which is for .keras files. Leave it out."
        )
    local = path if os.path.isdir(path) else download_folder(path)
    try:
        model = tf.saved_model.load(local, **load_model_args)
    except Exception as error:
        if local != path:
            shutil.rmtree(local, ignore_errors=True)
        raise cannot_load(path, error) from error
    if local != path:  # a model may read its assets at any time
        weakref.finalize(model, shutil.rmtree, local, ignore_errors=True)
    return model


def _not_a_saved_model(folder: str) -> ModelLoadError:
    versions = sorted(
        name for name in os.listdir(folder) if exists(os.path.join(folder, name, "saved_model.pb"))
    )
    hint = "Write a SavedModel with model.export(folder) or tf.saved_model.save."
    if versions:
        hint = f"Pass the one inside: {os.path.join(folder, versions[-1])!r}."
    return ModelLoadError(
        f"The folder {folder!r} (model_uri) is not a SavedModel: it contains no saved_model.pb. {hint}"
    )
