"""Loads models of TensorFlow and Keras; runs no code that their files bring, and says what is wrong with them."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from apache_beam.io.filesystems import FileSystems

from runinference.errors import ModelLoadError, OptionError
from runinference.extras import need
from runinference.model_file import exists, fetched_folder, local_file, open_model

tf = need("tensorflow", extra="tensorflow")

_ZIP, _HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"


def load_model(path: str, load_model_args: Mapping[str, Any]) -> Any:
    """A Keras model of a ``.keras`` or HDF5 file; or what ``tf.saved_model.load`` makes of a SavedModel.

    Raises:
        ModelNotFoundError: There is no such file.
        ModelLoadError: It is no model, is truncated, needs a later version, or would run code of its own.
    """
    _refuse_address(path)
    if any(
        exists(FileSystems.join(path, name)) for name in ("saved_model.pb", "saved_model.pbtxt")
    ):
        return _load_saved_model(path, load_model_args)
    _refuse_folder(path)
    with local_file(path, "model_uri", _suffix(path, "model_uri")) as local:
        about = _about(local, path)
        if load_model_args.get("safe_mode", True):
            _refuse_code(path, about)
        try:
            return tf.keras.models.load_model(local, **{"compile": False, **load_model_args})
        except Exception as error:
            raise _cannot_load(path, error, about.get("keras_version", "")) from error


def load_weights(model: Any, path: str, option: str) -> Any:
    """The model, with the weights in a file.

    Args:
        model: A Keras model.
        path: The file: HDF5, as ``save_weights`` writes it, or a whole model in a ``.keras`` file.
        option: The option that gave the path, for messages.

    Raises:
        ModelNotFoundError: There is no such file.
        ModelLoadError: It holds no weights, or those of another architecture.
    """
    if not hasattr(model, "load_weights"):
        raise ModelLoadError(
            f"A {type(model).__name__} takes no weights ({option}): only Keras models have load_weights. A "
            "SavedModel has its weights inside."
        )
    if exists(f"{path}.index"):
        raise ModelLoadError(
            f"{path!r} ({option}) is a checkpoint of TensorFlow's, which Keras 3 does not read. Load it where it "
            "was made, and save it with model.save_weights('model.weights.h5')."
        )
    with local_file(path, option, _suffix(path, option, weights=True)) as local:
        try:
            model.load_weights(local)
        except Exception as error:
            raise ModelLoadError(
                f"The file {path!r} ({option}) holds no weights for this model ({reason(error)}). The model must "
                "be built, with the architecture of the one that was saved, before it gets its weights."
            ) from error
    return model


def _load_saved_model(path: str, load_model_args: Mapping[str, Any]) -> Any:
    if unknown := sorted({*load_model_args} - {"tags", "options"}):
        raise OptionError(
            f"{path!r} (model_uri) is a SavedModel, which tf.saved_model.load loads: it takes tags and options, "
            f"and not {', '.join(unknown)} (load_model_args), which is for .keras files. Leave it out."
        )
    local = path if os.path.isdir(path) else fetched_folder(path)
    try:
        model = tf.saved_model.load(local, **load_model_args)
    except Exception as error:
        if local != path:
            shutil.rmtree(local, ignore_errors=True)
        raise _cannot_load(path, error) from error
    if local != path:  # a model may read its assets at any time
        weakref.finalize(model, shutil.rmtree, local, ignore_errors=True)
    return model


def _refuse_address(path: str) -> None:
    if path.startswith(("http://", "https://")):
        raise ModelLoadError(
            f"{path!r} (model_uri) is a web address. Download the model before the pipeline runs, for example "
            "with tensorflow_hub.resolve or kagglehub.model_download, and give its folder."
        )


def _refuse_folder(path: str) -> None:
    """Raises for what can be no file, with what it may be instead."""
    if os.path.basename(path) in ("saved_model.pb", "saved_model.pbtxt"):
        raise ModelLoadError(
            f"{path!r} (model_uri) is a part of a SavedModel: give its folder, {os.path.dirname(path)!r}."
        )
    if os.path.isdir(path):
        versions = sorted(
            name for name in os.listdir(path) if exists(os.path.join(path, name, "saved_model.pb"))
        )
        cure = "A SavedModel is what model.export(folder) or tf.saved_model.save writes."
        if versions:
            cure = f"Give the one inside: {os.path.join(path, versions[-1])!r}."
        raise ModelLoadError(
            f"The folder {path!r} (model_uri) is no SavedModel: it holds no saved_model.pb. {cure}"
        )


def _suffix(path: str, option: str, weights: bool = False) -> str:
    """The suffix by which Keras knows the format of a file, which its first bytes tell."""
    with open_model(path, option) as file:
        head = file.read(8)
    if head.startswith(_ZIP):
        return ".keras"
    if head != _HDF5:
        found = f"begins with {head!r}" if head else "is empty"
        raise ModelLoadError(
            f"The file {path!r} ({option}) is neither a .keras nor an HDF5 file: it {found}. It may be truncated, "
            "or of another kind."
        )
    if not weights:
        return ".h5"
    with local_file(path, option, ".h5") as local:  # Keras 2 wrote weights by the names of layers
        by_layer = _in_hdf5(local, path, option, lambda file: {*file.attrs, *file})
    return ".h5" if by_layer & {"layer_names", "model_weights"} else ".weights.h5"


def _in_hdf5(local: str, path: str, option: str, look: Callable[[Any], Any]) -> Any:
    try:
        with need("h5py", extra="tensorflow").File(local, "r") as file:
            return look(file)
    except OSError as error:
        raise _cannot_load(path, error, option=option) from error


def _about(local: str, path: str) -> dict[str, Any]:
    """What a file says of its model: its ``config``, and the ``keras_version`` that wrote it."""
    if local.endswith(".h5"):
        said = _in_hdf5(local, path, "model_uri", lambda file: dict(file.attrs))
        if "model_config" not in said:
            raise ModelLoadError(
                f"The file {path!r} (model_uri) holds weights alone. Say how to build the model: "
                "model_type=ModelType.SAVED_WEIGHTS, create_model_fn=…"
            )
        return {**said, "config": json.loads(said["model_config"])}
    try:
        with zipfile.ZipFile(local) as archive:
            config, metadata = (
                json.loads(archive.read(f"{name}.json")) for name in ("config", "metadata")
            )
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise _cannot_load(path, error) from error
    return {**metadata, "config": config}


def _refuse_code(path: str, about: Mapping[str, Any]) -> None:
    """Raises for Python bytecode in a file, and says where it is and what it mentions."""
    for layer, code in _lambdas(about["config"], "the model"):
        raise ModelLoadError(
            f"The file {path!r} (model_uri) brings Python bytecode, which would run with your rights: a function "
            f"of {layer}, which mentions {_mentioned(code)}. It was not run. If you trust who wrote the file: "
            "load_model_args={'safe_mode': False}. Better, save the model with a layer class of your own in place "
            "of Lambda, and give that in custom_objects."
        )


def _mentioned(code: str) -> str:
    """The words in bytecode, which is not read otherwise: reading it can harm, too."""
    try:
        words = re.findall(rb"[\w./<>-]{3,}", base64.b64decode(code))
    except ValueError:
        words = []
    return ", ".join(repr(word.decode()) for word in words[:12]) or "nothing by name"


def _lambdas(config: Any, layer: str) -> Iterator[tuple[str, str]]:
    """The bytecode in a configuration, with the layer it belongs to."""
    if isinstance(config, list):
        for part in config:
            yield from _lambdas(part, layer)
    if not isinstance(config, dict):
        return
    name, inside = config.get("name"), config.get("config")
    layer = f"the layer {name!r}" if isinstance(name, str) else layer
    if config.get("class_name") == "__lambda__" and isinstance(inside, dict):
        yield layer, str(inside.get("code", ""))
    for role in ("function", "output_shape"):
        if config.get(f"{role}_type") == "lambda":  # as Keras 2 wrote it
            yield layer, str(config[role][0])
    for part in config.values():
        yield from _lambdas(part, layer)


def _cannot_load(
    path: str, error: Exception, keras_version: str = "", option: str = "model_uri"
) -> ModelLoadError:
    said = reason(error)
    if isinstance(error, TypeError) and "unexpected keyword" in said:
        cure = "Check the keywords in load_model_args."
    elif _later(keras_version):
        cure = f"Keras {keras_version} wrote it, and here is {tf.keras.__version__}: install a later TensorFlow."
    elif unknown := re.search(r"Could not locate [^.]*|Unknown layer[^.]*", str(error)):
        said = unknown[0]
        cure = "Give what it does not know: load_model_args={'custom_objects': {'Name': Name}}."
    elif "Op type not registered" in said:
        cure = f"Import the package that registers it, or install a later TensorFlow than {tf.__version__}."
    else:
        cure = "It may be truncated or damaged: copy it again."
    return ModelLoadError(f"{path!r} ({option}) cannot be loaded ({said}). {cure}")


def _later(keras_version: str) -> bool:
    """Whether a version of Keras is later than the one here."""
    numbers = [re.findall(r"\d+", version)[:2] for version in (keras_version, tf.keras.__version__)]
    there, here = ([int(number) for number in version] for version in numbers)
    return there > here


def reason(error: Exception) -> str:
    """The line of a message that says why; Keras prints it in bold, and TensorFlow after where it was."""
    bold = re.search(r"\x1b\[1m(.+?)\x1b\[0m", str(error), re.DOTALL)
    lines = [
        line for line in (bold[1] if bold else str(error)).strip().splitlines() if line.strip()
    ]
    told = [line for line in lines if not re.match(_WHERE, line)] or [type(error).__name__]
    said = " ".join(told[:2]) if told[0].endswith(":") else told[0]
    return re.sub(r"\{\{.*?\}\}\s*", "", said).strip(" .")[:300]


_WHERE = r"Graph execution error|Detected at node|<stack traces|in user code|\s+File "
