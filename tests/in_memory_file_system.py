"""A Beam file system for tests of models on remote storage."""

from __future__ import annotations

import io

from apache_beam.io.filesystem import FileSystem


class InMemory(FileSystem):
    """A Beam file system that keeps files in memory."""

    files: dict[str, bytes] = {}

    @classmethod
    def scheme(cls):
        return "inmemory"

    def join(self, base, *paths):
        return "/".join([base.rstrip("/"), *paths])

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def open(self, path, mime_type="application/octet-stream", compression_type="auto"):
        return io.BytesIO(self.files[path])

    def exists(self, path):
        return path in self.files

    def _unused(self, *args, **kwargs):
        raise NotImplementedError

    mkdirs = has_dirs = _list = create = copy = rename = _unused
    size = last_updated = checksum = metadata = delete = _unused
