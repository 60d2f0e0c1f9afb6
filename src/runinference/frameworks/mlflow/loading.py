"""Load an MLflow model from a folder, a registry or a run, and check its digest before."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from typing import Any

from runinference.download import download_folder
from runinference.errors import ModelLoadError, ModelNotFoundError, describe
from runinference.extras import need
from runinference.model_file import read_model

#: How the URIs begin that only MLflow resolves.
_MLFLOW_URIS = ("models:/", "runs:/", "mlflow-artifacts:/")


def load_pyfunc(path: str, sha256: str | None, model_config: Mapping[str, Any] | None) -> Any:
    """Load a model as a Python function. A model with a digest is loaded from the private copy that was checked.

    Raises:
        ModelNotFoundError: There is no model at this path.
        ModelLoadError: It has another digest, or MLflow can't load it.
    """
    pyfunc = need("mlflow.pyfunc", extra="mlflow")
    if sha256 is None and os.path.isdir(path):
        _check_folder(path, path)
        return _load(pyfunc, path, path, model_config)
    folder = fetch_folder(path)
    try:
        if sha256 is not None:
            _check_digest(folder, path, sha256)
        model = _load(pyfunc, folder, path, model_config)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)  # it may read files later
    return model


def load_metadata(path: str) -> Any:
    """Return what the file MLmodel of a model contains. Only this file is read, and no code runs."""
    models = need("mlflow.models", extra="mlflow")
    if path.startswith(_MLFLOW_URIS):
        return models.Model.load(path)
    text = read_model(f"{path.rstrip('/')}/MLmodel", "model_uri")
    return models.Model.from_dict(need("yaml", extra="mlflow").safe_load(text))


def fetch_folder(path: str) -> str:
    """Copy the files of a model to a new temporary folder, and return its path."""
    if path.startswith(_MLFLOW_URIS):
        folder = _download(path)
    else:
        try:
            folder = download_folder(path)
        except Exception as error:
            raise ModelLoadError(
                f"The folder {path!r} (model_uri) cannot be read: {describe(error, 300)}."
            ) from error
    try:
        for parent, folders, _ in os.walk(folder):
            if "__pycache__" in folders:  # written by Python when it imports code of the model
                shutil.rmtree(os.path.join(parent, "__pycache__"))
        _check_folder(folder, path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def digest_folder(folder: str) -> str:
    """Return the SHA-256 digest of the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for name, file in sorted(_list_files(folder)):
        content = hashlib.sha256()
        with open(file, "rb") as opened:
            while block := opened.read(1 << 20):
                content.update(block)
        digest.update(f"{content.hexdigest()}  {json.dumps(name)}\n".encode())
    return digest.hexdigest()


def _list_files(folder: str) -> list[tuple[str, str]]:
    """Return the name of each file in a folder, with slashes, and its path."""
    paths = [os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names]
    return [(os.path.relpath(path, folder).replace(os.sep, "/"), path) for path in paths]


def _check_digest(folder: str, path: str, sha256: str) -> None:
    found = digest_folder(folder)
    if found != sha256.lower():
        raise ModelLoadError(
            f"The model {path!r} has the SHA-256 digest {found}, not {sha256}. It is not the model that was "
            "pinned, and was not loaded. If it was replaced on purpose, pin the new digest."
        )


def _check_folder(folder: str, path: str) -> None:
    if os.path.isfile(os.path.join(folder, "MLmodel")):
        return
    if not any(os.scandir(folder)):
        hint = (
            f"It is a file: pass its folder, {os.path.dirname(path)!r}."
            if os.path.basename(path) == "MLmodel"
            else "Workers read this path: on a distributed runner it must be on storage that they can all reach."
        )
        raise ModelNotFoundError(f"There is no folder {path!r} (model_uri) with files. {hint}")
    raise ModelLoadError(
        f"The folder {path!r} (model_uri) is not an MLflow model: it contains no file MLmodel. To fix this, pass "
        "the folder that save_model of MLflow wrote."
    )


def _download(uri: str) -> str:
    artifacts = need("mlflow.artifacts", extra="mlflow")
    with tempfile.TemporaryDirectory(prefix="model-") as scratch:
        try:
            found = artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch)
        except Exception as error:
            raise ModelNotFoundError(
                f"MLflow cannot download {uri!r} (model_uri): {describe(error, 300)}. To fix this, check the URI, "
                "and set MLFLOW_TRACKING_URI for the workers, for example with the option env_vars."
            ) from error
        folder = tempfile.mkdtemp(prefix="model-")
        shutil.copytree(found, folder, dirs_exist_ok=True)
    return folder


def _load(pyfunc: Any, folder: str, path: str, model_config: Mapping[str, Any] | None) -> Any:
    try:
        return pyfunc.load_model(folder, model_config=dict(model_config or {}) or None)
    except ImportError as error:
        raise ModelLoadError(
            f"The model {path!r} (model_uri) needs a package that cannot be imported ({error}). To fix this, "
            "install the packages of its file requirements.txt, also on the workers."
        ) from error
    except Exception as error:
        raise ModelLoadError(
            f"MLflow cannot load the model {path!r} (model_uri): {describe(error, 500)}. It may be damaged, or "
            "need other versions of packages: compare them with those in its file requirements.txt."
        ) from error
