"""A model's file on any file system that Beam reads: opened with errors that help, checked before it is used."""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from runinference.errors import ModelLoadError, ModelNotFoundError


def open_model(path: str, option: str, sha256: str | None = None) -> BinaryIO:
    """Opens a model's file for reading.

    Args:
        path: A path on any file system that Beam reads.
        option: The option that gave the path, for the message.
        sha256: The digest that the file must have, in hexadecimal digits; if given, it is checked first.

    Raises:
        ModelNotFoundError: There is no such file; the message names the path and what is near it.
        ModelLoadError: The file cannot be read or has another digest, or no file system is known for its path.
    """
    if not isinstance(path, str) or not path:
        raise ModelLoadError(f"{option} must be the path of a file, and is {path!r}.")
    try:
        FileSystems.get_filesystem(path)
    except (ValueError, BeamIOError) as error:
        raise ModelLoadError(
            f"No file system is known for {path!r} ({option}): {error}. Install Beam's extra for it, for "
            'example pip install "apache-beam[gcp]" for gs://.'
        ) from error
    try:
        file: BinaryIO = FileSystems.open(path)
    except (OSError, BeamIOError) as error:
        if isinstance(error, FileNotFoundError) or not exists(path):
            raise _not_found(path, option) from error
        raise ModelLoadError(f"The file {path!r} ({option}) cannot be read: {error}.") from error
    if sha256 is not None:
        _check_digest(file, path, sha256)
    return file


def _check_digest(file: BinaryIO, path: str, sha256: str) -> None:
    """Compares a file with the digest it must have, and goes back to its beginning."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    if digest.hexdigest() != sha256.lower():
        raise ModelLoadError(
            f"The file {path!r} has the SHA-256 digest {digest.hexdigest()}, not {sha256}. It is not the model "
            "that was pinned, and was not loaded. If it was replaced on purpose, pin the new digest."
        )
    file.seek(0)


@contextmanager
def local_file(path: str, option: str, suffix: str) -> Iterator[str]:
    """A path on the local disk for libraries that read nothing else: the file's own, or that of a passing copy.

    Args:
        path: A path on any file system that Beam reads; files that are compressed are decompressed.
        option: The option that gave the path, for messages.
        suffix: How the local path must end.

    Raises:
        ModelNotFoundError: There is no such file.
        ModelLoadError: The file cannot be read.
    """
    if path.endswith(suffix) and os.path.isfile(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        local = os.path.join(folder, f"model{suffix}")
        with open_model(path, option) as source, open(local, "wb") as copy:
            shutil.copyfileobj(source, copy)
        yield local


def fetched_folder(path: str) -> str:
    """The path of a new temporary folder, with a copy of all that is in a folder of any file system of Beam's."""
    into = tempfile.mkdtemp(prefix="model-")
    root = path.rstrip("/")
    [match] = FileSystems.match([FileSystems.join(root, "**")])
    for metadata in match.metadata_list:
        inside = metadata.path[len(root) :].lstrip("/")
        if inside.endswith("/"):  # stands for an empty folder
            continue
        local = os.path.join(into, *(part for part in inside.split("/") if part != ".."))
        os.makedirs(os.path.dirname(local), exist_ok=True)
        plain = CompressionTypes.UNCOMPRESSED
        with (
            FileSystems.open(metadata.path, compression_type=plain) as source,
            open(local, "wb") as copy,
        ):
            shutil.copyfileobj(source, copy)
    return into


def exists(path: str) -> bool:
    """Whether there is a file, as far as can be told."""
    try:
        return bool(FileSystems.exists(path))
    except (OSError, ValueError, BeamIOError):
        return False


def _not_found(path: str, option: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"There is no file {path!r} ({option}).{_neighbour(path)} Workers read this path: on a distributed "
        "runner it must be on storage that they all reach."
    )


def _neighbour(path: str) -> str:
    """The nearest name in the same folder, if the folder can be listed."""
    try:
        folder, name = FileSystems.split(path)
        [match] = FileSystems.match([FileSystems.join(folder, "*")], limits=[200])
        names = {FileSystems.split(metadata.path)[1] for metadata in match.metadata_list}
    except (OSError, ValueError, BeamIOError):
        return ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f" Did you mean {path.removesuffix(name) + near[0]!r}?" if near else ""
