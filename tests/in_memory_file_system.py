"""A Beam file system for tests of models on remote storage."""

from __future__ import annotations

import hashlib
import io

from apache_beam.io.filesystem import BeamIOError, FileMetadata, FileSystem


class InMemory(FileSystem):
    """A Beam file system that keeps files in memory.

    Attributes:
        files: The content of each file, by path.
        faults: Functions that are called with a path and its content. Each runs once, in order: it returns what is
            read of the file that is opened next, or raises an error.
        options: The pipeline options that Beam created this file system with.
    """

    files: dict[str, bytes] = {}
    faults: list = []

    def __init__(self, pipeline_options):
        super().__init__(pipeline_options)
        self.options = pipeline_options

    @classmethod
    def scheme(cls):
        return "inmemory"

    def join(self, base, *paths):
        return "/".join([base.rstrip("/"), *paths])

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def open(self, path, mime_type="application/octet-stream", compression_type="auto"):
        content = self.files[path]
        return io.BytesIO(self.faults.pop(0)(path, content) if self.faults else content)

    def exists(self, path):
        return path in self.files

    def has_dirs(self):
        return False

    def _list(self, prefix):
        return [self.metadata(path) for path in sorted(self.files) if path.startswith(prefix)]

    def metadata(self, path):
        if path not in self.files:
            raise BeamIOError(f"There is no {path}")
        return FileMetadata(path, len(self.files[path]), 0.0)

    def checksum(self, path):
        return hashlib.md5(self.files[path]).hexdigest()

    def _unused(self, *args, **kwargs):
        raise NotImplementedError

    mkdirs = create = copy = rename = size = last_updated = delete = _unused
