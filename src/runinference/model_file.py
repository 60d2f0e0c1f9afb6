"""Read model files from any file system that Beam supports."""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, cast

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from runinference.download import cannot_read, download_file, get_file_system_options
from runinference.errors import ModelLoadError, ModelNotFoundError


def open_model(path: str, option: str, sha256: str | None = None) -> BinaryIO:
    """Open a model file for reading.

    Args:
        path: A path on any file system that Beam reads.
        option: The name of the parameter that holds the path, for error messages.
        sha256: The expected SHA-256 digest in hexadecimal. If given, the file is copied to a private, temporary
            file, and the bytes that were checked are returned.

    Raises:
        ModelNotFoundError: The file does not exist.
        ModelLoadError: The file cannot be read, has another digest, or no file system supports its path.
    """
    if not isinstance(path, str) or not path:
        raise ModelLoadError(f"{option} must be the path of a file, but is {path!r}.")
    try:
        FileSystems.get_filesystem(path)
    except (ValueError, BeamIOError) as error:
        raise ModelLoadError(
            f"No file system is known for {path!r} ({option}): {error}. To fix this, install the Beam extra for "
            'it, for example pip install "apache-beam[gcp]" for gs://.'
        ) from error
    file = _open_local(path, option) if is_local(path) else _open_remote(path, option)
    return file if sha256 is None else _verified_copy(file, path, sha256)


def is_local(path: str) -> bool:
    """Return whether a path has no scheme, so that it is on a disk of this machine."""
    return FileSystems.get_scheme(path) is None


def _open_local(path: str, option: str) -> BinaryIO:
    try:
        return cast(BinaryIO, FileSystems.open(path))
    except (OSError, BeamIOError) as error:
        if isinstance(error, FileNotFoundError) or not exists(path):
            raise _not_found_error(path, option) from error
        raise ModelLoadError(f"The file {path!r} ({option}) cannot be read: {error}.") from error


def _open_remote(path: str, option: str) -> BinaryIO:
    """Open a private, complete copy of a file, because a file that is read in parts may be replaced meanwhile."""
    get_file_system_options()
    try:
        found = FileSystems.exists(path)
    except Exception as error:  # what a client raises depends on the file system
        raise cannot_read(f"file {path!r} ({option})", error) from error
    if not found:
        raise _not_found_error(path, option)
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        local = download_file(path, folder)
        return cast(BinaryIO, FileSystems.open(local))  # decompressed, according to its suffix


def _not_found_error(path: str, option: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"There is no file {path!r} ({option}).{_suggest_neighbor(path)} Workers read this path: on a "
        "distributed runner it must be on storage that they can all reach."
    )


def read_model(path: str, option: str) -> bytes:
    """Return the content of a model file. Raise the errors of ``open_model``."""
    with open_model(path, option) as file:
        return file.read()


def _verified_copy(file: BinaryIO, path: str, sha256: str) -> BinaryIO:
    """Return a private copy of a file, whose digest is checked: the file itself may change after it was read."""
    digest = hashlib.sha256()
    copied = cast(BinaryIO, tempfile.TemporaryFile(prefix="model-"))  # noqa: SIM115 - the caller closes it
    try:
        with file:
            while block := file.read(1 << 20):
                digest.update(block)
                copied.write(block)
        if digest.hexdigest() != sha256.lower():
            raise ModelLoadError(
                f"The file {path!r} has the SHA-256 digest {digest.hexdigest()}, not {sha256}. It is not the "
                "model that was pinned, and was not loaded. If it was replaced on purpose, pin the new digest."
            )
        copied.seek(0)
    except BaseException:
        copied.close()
        raise
    return copied


@contextmanager
def local_file(path: str, option: str, detect_suffix: Callable[[BinaryIO], str]) -> Iterator[str]:
    """Yield ``path`` if it is local and has the suffix, or else the path of a temporary, decompressed copy.

    Args:
        path: A path on any file system that Beam reads.
        option: The name of the parameter that holds the path, for error messages.
        detect_suffix: A function that returns the suffix that the file must have, from its content.
    """
    with open_model(path, option) as source:
        suffix = detect_suffix(source)
        if path.endswith(suffix) and os.path.isfile(path):
            yield path
            return
        source.seek(0)
        with tempfile.TemporaryDirectory(prefix="model-") as folder:
            local = os.path.join(folder, f"model{suffix}")
            with open(local, "wb") as copy:
                shutil.copyfileobj(source, copy)
            yield local


def file_bytes(path: str) -> int:
    """Return the bytes of a file, or of the files in a folder; 0 if it can't be found."""
    try:
        if os.path.isfile(path):
            return os.path.getsize(path)
        matches = FileSystems.match([path, FileSystems.join(path, "**")])
        return sum(each.size_in_bytes for match in matches for each in match.metadata_list)
    except Exception:  # a file system may raise anything for what is not its path
        return 0


class ModelFiles:
    """The files of a model, which may be replaced at any time.

    Args:
        paths: The paths of files and folders.

    Raises:
        ModelLoadError: A path is neither a file nor a folder with files.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._found = self._list()

    def digest(self) -> bytes:
        """Return the SHA-256 digest of the names and contents of all files."""
        digest = hashlib.sha256()
        for path, relative, *_ in self._found:
            digest.update(f"{len(relative)} {relative}".encode())
            with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
                content = hashlib.sha256()
                while block := file.read(1 << 20):
                    content.update(block)
            digest.update(content.digest())
        return digest.digest()

    def have_changed(self) -> bool:
        """Return whether files were replaced, added or removed, according to their sizes and times."""
        return self._list() != self._found

    def _list(self) -> list[tuple[str, str, int, float]]:
        """Return the path, the relative path, the size and the time of each file."""
        files: list[tuple[str, str, int, float]] = []
        for number, path in enumerate(self._paths):
            get_file_system_options()
            try:
                matches = FileSystems.match([path, FileSystems.join(path, "**")])
            except Exception as error:  # what a client raises depends on the file system
                raise cannot_read(f"file {path!r}", error) from error
            found = {each.path: each for match in matches for each in match.metadata_list}
            if not found:
                raise ModelLoadError(
                    f"The model {path!r} is neither a file nor a folder with files, so its digest is unknown, and "
                    "its results can't be cached. To fix this, pass version to with_cache, for example the name "
                    "and the revision of the model, or correct the path."
                )
            files += [
                (
                    name,
                    f"{number}{name.removeprefix(path)}",
                    each.size_in_bytes,
                    each.last_updated_in_seconds,
                )
                for name, each in sorted(found.items())
            ]
        return files


def exists(path: str) -> bool:
    """Return whether a file exists. Return False if its file system cannot be reached."""
    try:
        return bool(FileSystems.exists(path))
    except (OSError, ValueError, BeamIOError):
        return False


def _suggest_neighbor(path: str) -> str:
    """Suggest the most similar name in the same folder, if the folder can be listed."""
    try:
        folder, name = FileSystems.split(path)
        [match] = FileSystems.match([FileSystems.join(folder, "*")], limits=[200])
        names = {FileSystems.split(metadata.path)[1] for metadata in match.metadata_list}
    except (OSError, ValueError, BeamIOError):
        return ""
    similar = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f" Did you mean {path.removesuffix(name) + similar[0]!r}?" if similar else ""
