"""Records of submitted batches in a folder, so that no request is submitted twice."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from apache_beam.io.filesystems import FileSystems

from runinference.errors import OptionError, describe

_SUFFIX = ".batch.json"


@dataclass(frozen=True)
class BatchRecord:
    """A batch that is being submitted or was submitted.

    Attributes:
        name: A unique name of the record, which is also in the metadata of the batch.
        request_ids: The IDs of its requests.
        file_id: The server's ID of the file with its requests; empty until it is uploaded.
        batch_id: The server's ID of the batch; None until it is known.
        host: Host name of the machine that submits it.
        process: ID of the process that submits it.
    """

    name: str
    request_ids: list[str]
    file_id: str = ""
    batch_id: str | None = None
    host: str = ""
    process: int = 0

    @classmethod
    def create(cls, request_ids: Collection[str]) -> BatchRecord:
        host, process = socket.gethostname(), os.getpid()
        return cls(uuid.uuid4().hex, [*request_ids], host=host, process=process)

    def with_file_id(self, file_id: str) -> BatchRecord:
        return replace(self, file_id=file_id)

    def with_batch_id(self, batch_id: str) -> BatchRecord:
        return replace(self, batch_id=batch_id)

    def may_be_in_progress(self) -> bool:
        """Return whether another process may be about to submit the batch.

        The threads of a process take turns.
        """
        if self.batch_id is not None:
            return False
        if self.host != socket.gethostname():
            return True
        return self.process != os.getpid() and _is_alive(self.process)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class BatchRecords:
    """The records in a folder, which can be on any of Beam's file systems."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def find(self, request_ids: Collection[str]) -> list[BatchRecord]:
        """Return the records of batches that contain some of the requests.

        Raises:
            OptionError: The folder or a record can't be read.
        """
        wanted = set(request_ids)
        try:
            with suppress(OSError):  # it exists, or the file system has no folders
                FileSystems.mkdirs(self._folder)
            [match] = FileSystems.match([FileSystems.join(self._folder, f"*{_SUFFIX}")])
            paths = [metadata.path for metadata in match.metadata_list]
        except Exception as error:
            raise self._folder_error("read", error) from error
        records = [record for path in paths if (record := self._read(path)) is not None]
        return [record for record in records if not wanted.isdisjoint(record.request_ids)]

    def _folder_error(self, verb: str, error: Exception) -> OptionError:
        return OptionError(
            f"The folder of the batch API, {self._folder}, can't be {verb}: {describe(error, 500)}. To fix this, "
            "pass a folder that all workers can read and write."
        )

    def _read(self, path: str) -> BatchRecord | None:
        try:
            with FileSystems.open(path) as file:
                record = BatchRecord(**json.loads(file.read()))
            if not isinstance(record.request_ids, list):
                raise TypeError("request_ids is not a list")
            return record
        except FileNotFoundError:  # another worker removed it
            return None
        except Exception as error:
            # Without it, requests could be submitted, and paid for, twice.
            raise OptionError(
                f"The record of a batch, {path}, can't be read: {describe(error, 500)}. To fix this, check the "
                "batches at the provider, and delete the file if its batch isn't needed."
            ) from error

    def write(self, record: BatchRecord) -> None:
        """Write or replace a record. Other processes see it as a whole or not at all.

        Raises:
            OptionError: It can't be written.
        """
        temporary = FileSystems.join(self._folder, f"{record.name}.tmp")
        try:
            with FileSystems.create(temporary, "application/json") as file:
                file.write(json.dumps(asdict(record)).encode())
            FileSystems.rename([temporary], [self._get_path(record)])
        except Exception as error:
            raise self._folder_error("written", error) from error

    def remove(self, record: BatchRecord) -> None:
        """Remove a record, after which its requests can be submitted again."""
        path = self._get_path(record)
        if FileSystems.exists(path):
            FileSystems.delete([path])

    def _get_path(self, record: BatchRecord) -> str:
        return str(FileSystems.join(self._folder, f"{record.name}{_SUFFIX}"))
