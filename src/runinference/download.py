"""Copy files from any file system that Beam reads, each of them completely, and all of one version."""

from __future__ import annotations

import logging
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from runinference.errors import ModelLoadError, describe

_LOGGER = logging.getLogger(__name__)

#: The longest times to wait before the second and the third attempt. Clients of object stores also retry requests.
_MAX_DELAYS_SECS = (1.0, 4.0)


class FileVersion(NamedTuple):
    """What differs between two versions of a file, as far as its file system knows."""

    size: int
    last_updated: float
    checksum: str | None


def get_file_system_options() -> PipelineOptions:
    """Return the pipeline options that Beam's file systems use in this process, such as ``--s3_endpoint_url``.

    Set them to the defaults if there are none, as Beam does when a pipeline is created: the file system of S3
    can't be used without options.
    """
    # Beam 2.77 has no public way to read them.
    if FileSystems._pipeline_options is None:
        FileSystems.set_options(PipelineOptions([]))
    return FileSystems._pipeline_options


def download_file(path: str, folder: str) -> str:
    """Copy a file to a local folder, under the same name, and return the path of the copy.

    Raises:
        ModelLoadError: Each attempt failed, or the file was replaced during each of them.
    """
    parent, _, name = path.rpartition("/")
    _download(path, lambda: [FileSystems.get_filesystem(path).metadata(path)], parent, folder)
    return os.path.join(folder, name)


def download_folder(path: str, excluded: tuple[str, ...] = ()) -> str:
    """Copy a folder to a new temporary folder, and return its path.

    Args:
        path: The path of the folder.
        excluded: Patterns for the paths of files that are not copied, such as ``*.onnx``.

    Raises:
        ModelLoadError: Each attempt failed, or files were replaced, added, or removed during each of them.
    """
    root = path.rstrip("/")
    pattern = FileSystems.join(root, "**")

    def find() -> list[Any]:
        files = FileSystems.match([pattern])[0].metadata_list
        return [
            each for each in files if not any(fnmatchcase(each.path, name) for name in excluded)
        ]

    get_file_system_options()
    target = tempfile.mkdtemp(prefix="model-")
    try:
        _download(root, find, root, target)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return target


def cannot_read(what: str, error: Exception) -> ModelLoadError:
    """Return the error for a file or directory on storage whose client raised an error."""
    return ModelLoadError(
        f"The {what} cannot be read: {describe(error, 300)}. To fix this, check that it exists, that the workers "
        "have credentials that may read it, and that the Beam extra for it is installed, for example "
        '"apache-beam[aws]" for s3://.'
    )


def _download(path: str, find: Callable[[], list[Any]], root: str, target: str) -> None:
    """Copy the files that ``find`` returns from ``root`` to ``target``. Begin again if they change meanwhile."""
    for delay in (*_MAX_DELAYS_SECS, None):
        versions = _get_versions(find())
        try:
            for each, version in versions.items():
                _copy(each, _get_local_path(each, root, target), version.size)
            if _get_versions(find()) == versions:
                return
            failure = "it was replaced during the download"
        except Exception as error:  # what a client raises depends on the file system
            failure = describe(error, 300)
        if delay is None:
            raise ModelLoadError(
                f"{path!r} cannot be downloaded ({failure}, in the last of {len(_MAX_DELAYS_SECS) + 1} attempts). "
                "To fix this, check the file system, write each version of a model to a new path, and set "
                "TMPDIR to a disk with room for the model."
            )
        _LOGGER.warning("The download of %r begins again, because of: %s", path, failure)
        shutil.rmtree(target)
        os.mkdir(target, 0o700)
        time.sleep(random.uniform(delay / 2, delay))  # so that workers don't retry at the same time


def _get_versions(files: list[Any]) -> dict[str, FileVersion]:
    return {
        each.path: FileVersion(
            each.size_in_bytes, each.last_updated_in_seconds, _get_checksum(each.path)
        )
        for each in files
        if not each.path.endswith("/")  # a placeholder for an empty folder
    }


def _get_checksum(path: str) -> str | None:
    try:
        return str(FileSystems.checksum(path))
    except NotImplementedError:  # of a file system that has none
        return None


def _get_local_path(path: str, root: str, target: str) -> str:
    parts = path[len(root) :].split("/")
    return os.path.join(target, *(part for part in parts if part not in ("", "..")))


def _copy(path: str, local: str, size: int) -> None:
    os.makedirs(os.path.dirname(local), exist_ok=True)
    source = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    with source, open(local, "wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
        if copy.tell() != size:
            raise EOFError(f"{path!r} has {size} bytes, and {copy.tell()} bytes were received")
