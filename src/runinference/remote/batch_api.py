"""Requests in the batch API of a server: uploaded as files, submitted once, and polled until they end."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from runinference.checks import check_int, check_path, check_seconds, check_text
from runinference.errors import (
    ElementError,
    EndpointError,
    OptionError,
    UnusableAnswerError,
    describe,
    suggest,
)
from runinference.remote.batch_lines import (
    Outcome,
    get_request_id,
    has_results,
    read_outcomes,
    split_lines,
    write_line,
)
from runinference.remote.batch_records import BatchRecord, BatchRecords
from runinference.remote.error_response import shorten
from runinference.remote.http_client import HttpClient
from runinference.remote.json_tensors import describe_json
from runinference.remote.retry import worth_retrying

AFTER_DEADLINE = ("dead letter", "live")

_ENDED = ("completed", "failed", "expired", "cancelled")
_MAX_DOWNLOAD_BYTES = 4 << 30
_PAGE_SIZE = 100
_MAX_PAGES = 100
#: How long to wait for another process that is submitting a batch, and for a batch that was canceled.
_MAX_SUBMIT_SECS = 600
_MAX_CANCEL_SECS = 900
#: Failed polls in a row, each with its retries, before the wait for a batch ends with an error.
_MAX_FAILED_POLLS = 10
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchApi:
    """Options for the batch API of a provider, which is cheaper than single requests and takes up to 24 hours.

    Attributes:
        folder: Folder for records of the submitted batches, on any of Beam's file systems. All workers must be
            able to read and write it. A restarted job with the same folder gets the results of batches that were
            already submitted.
        poll_secs: Time in seconds between two requests for the status of a batch.
        deadline_secs: Maximum time in seconds to wait for a batch, which is then canceled. None to wait until the
            provider ends the batch.
        after_deadline: What happens to requests that a batch didn't process in time: ``"dead letter"`` to fail
            them, ``"live"`` to send them as single requests, at the full price.
        job: Name of the job. Requests of jobs with different names don't share results.
        completion_window: Time limit of the provider.
        max_requests: Maximum number of requests in a file.
        max_file_bytes: Maximum size of a file in bytes.

    Raises:
        OptionError: A value is invalid.
    """

    folder: str | os.PathLike[str]
    poll_secs: float = 60
    deadline_secs: float | None = None
    after_deadline: Literal["dead letter", "live"] = "dead letter"
    job: str = ""
    completion_window: str = "24h"
    max_requests: int = 50_000
    max_file_bytes: int = 200_000_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", check_path("BatchApi: folder", self.folder))
        check_seconds("BatchApi: poll_secs", self.poll_secs)
        if self.deadline_secs is not None:
            check_seconds("BatchApi: deadline_secs", self.deadline_secs)
        if self.after_deadline not in AFTER_DEADLINE:
            raise OptionError(
                f"BatchApi: after_deadline must be 'dead letter' or 'live', but is {self.after_deadline!r}."
                f"{suggest(self.after_deadline, AFTER_DEADLINE)}"
            )
        if not isinstance(self.job, str):
            raise OptionError(f"BatchApi: job must be a string, but is {self.job!r}.")
        check_text("BatchApi: completion_window", self.completion_window)
        check_int("BatchApi: max_requests", self.max_requests)
        check_int("BatchApi: max_file_bytes", self.max_file_bytes)


@dataclass
class _Batch:
    """A batch that was submitted, and its requests whose results are pending."""

    record: BatchRecord
    request_ids: list[str]
    cancelled: bool = False
    failed_polls: int = 0


class BatchRunner:
    """Processes requests with the batch API.

    Args:
        options: The options.
        client: The client of the server.
        path: The path of the endpoint below ``base_url``.
        address: Values that all requests share, such as ``base_url``.
        retry: Calls a function, with retries.
        sleep: Waits for a number of seconds.
    """

    def __init__(
        self,
        options: BatchApi,
        client: HttpClient,
        path: str,
        address: str,
        retry: Callable[[Callable[[], Any]], Any],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._options = options
        self._client = client
        self._url = f"/v1{path}"
        self._address = address
        self._retry = retry
        self._sleep = sleep
        self._records = BatchRecords(str(options.folder))

    def plan(self, body: Any) -> tuple[str, bytes]:
        """Return the ID and the line of a request.

        Raises:
            ElementError: The body can't be written as JSON, or is too large.
        """
        request_id = get_request_id(self._options.job, self._address, self._url, body)
        line = write_line(request_id, self._url, body)
        if len(line) > self._options.max_file_bytes:
            raise ElementError(
                f"The request has {len(line):,} bytes, but a file of the batch API may have only "
                f"{self._options.max_file_bytes:,} (max_file_bytes). To fix this, shorten the element."
            )
        return request_id, line

    def run(self, lines: Mapping[str, bytes]) -> dict[str, Outcome]:
        """Return the outcome of each request by its ID.

        Requests of earlier batches whose records are in the folder aren't submitted again, unless they failed.

        Args:
            lines: The lines by ID, from ``plan``.

        Raises:
            EndpointError: The batches of the server can't be listed.
            OptionError: The folder can't be read.
        """
        outcomes: dict[str, Outcome] = {}
        with _get_lock(str(self._options.folder)):
            pending = [*self._find_batches(lines, outcomes)]
            known = {*outcomes, *(each for batch in pending for each in batch.request_ids)}
            new = {each: line for each, line in lines.items() if each not in known}
            for part in split_lines(new, self._options.max_requests, self._options.max_file_bytes):
                try:
                    pending.append(self._submit(part))
                except EndpointError as error:
                    outcomes |= {each: Outcome(error=error) for each in part}
        self._wait(pending, outcomes)
        return outcomes

    def _find_batches(
        self, request_ids: Mapping[str, bytes], outcomes: dict[str, Outcome]
    ) -> Iterator[_Batch]:
        """Add the outcomes of earlier batches that ended, and return those that are in progress."""
        for record in self._find_records(request_ids):
            wanted = [
                each for each in record.request_ids if each in request_ids and each not in outcomes
            ]
            status = self._look_up(record)
            if status is None:  # it was never submitted, or the server lost it
                self._records.remove(record)
            elif status.get("status") not in _ENDED:
                yield _Batch(record.with_batch_id(str(status["id"])), wanted)
            else:
                results = self._download_kept(status, wanted)
                outcomes |= {each: one for each, one in results.items() if one.response is not None}

    def _download_kept(
        self, status: Mapping[str, Any], request_ids: Sequence[str]
    ) -> dict[str, Outcome]:
        """Return the outcomes of an earlier batch; none if the provider has deleted its results."""
        try:
            return self._download(status, request_ids)
        except EndpointError as error:
            if error.status_code == 404:
                return {}
            raise

    def _find_records(self, request_ids: Mapping[str, bytes]) -> Sequence[BatchRecord]:
        """Return the records of requests, after other processes have submitted theirs."""
        end = time.monotonic() + _MAX_SUBMIT_SECS
        while True:
            records = self._records.find(request_ids.keys())
            if not any(record.may_be_in_progress() for record in records):
                return records
            if time.monotonic() > end:
                return records
            self._sleep(self._options.poll_secs)

    def _look_up(self, record: BatchRecord) -> Mapping[str, Any] | None:
        """Return the status of the batch of a record; None if the server doesn't know it."""
        if record.batch_id is None:
            return self._search(record)
        try:
            return self._get(f"/batches/{record.batch_id}", _check_id)
        except EndpointError as error:
            if error.status_code == 404:
                return None
            raise

    def _search(self, record: BatchRecord, *, retries: bool = True) -> Mapping[str, Any] | None:
        """Search the batches of the server for one that was submitted, although its ID is unknown."""
        if not record.file_id:
            return None
        after = ""
        for _ in range(_MAX_PAGES):
            page = self._get(f"/batches?limit={_PAGE_SIZE}{after}", _check_page, retries=retries)
            batches = page["data"]
            for batch in batches:
                if batch.get("input_file_id") == record.file_id:
                    found: Mapping[str, Any] = batch
                    self._records.write(record.with_batch_id(str(found["id"])))
                    return found
            if not batches or not page.get("has_more"):
                return None
            after = f"&after={batches[-1].get('id')}"
        return None

    def _submit(self, lines: Mapping[str, bytes]) -> _Batch:
        """Submit a batch, once, even if the response is lost."""
        record = BatchRecord.create(lines.keys())
        self._records.write(record)  # before the upload, which may take minutes
        try:
            file_id = self._upload(b"".join(lines.values()))
        except EndpointError:
            self._records.remove(record)
            raise
        record = record.with_file_id(file_id)
        self._records.write(record)
        is_retry = False

        def submit() -> Any:
            nonlocal is_retry
            if is_retry and (found := self._search(record, retries=False)) is not None:
                return found
            is_retry = True
            body = {
                "input_file_id": file_id,
                "endpoint": self._url,
                "completion_window": self._options.completion_window,
                "metadata": {"runinference": record.name},
            }
            return self._client.post("/batches", body, _check_id)

        try:
            batch = self._retry(submit)
        except EndpointError as error:
            batch = self._settle_failed_submission(record, error)
        record = record.with_batch_id(str(batch["id"]))
        self._records.write(record)
        _logger.info("Submitted batch %s of %d requests.", record.batch_id, len(lines))
        return _Batch(record, [*lines])

    def _upload(self, content: bytes) -> str:
        def upload() -> Any:
            answer = self._client.upload("/files", {"purpose": "batch"}, "batch.jsonl", content)
            return self._client.parse_response("/files", answer, _check_id)

        return str(self._retry(upload)["id"])

    def _settle_failed_submission(
        self, record: BatchRecord, error: EndpointError
    ) -> Mapping[str, Any]:
        """Return a batch that exists although its submission failed, or raise the error."""
        if error.status_code is not None and not worth_retrying(error):
            self._records.remove(record)
            raise error
        # If the search fails, too, the record stays, and the next call searches for the batch.
        found = self._search(record)
        if found is None:
            self._records.remove(record)
            raise error
        return found

    def _wait(self, pending: Sequence[_Batch], outcomes: dict[str, Outcome]) -> None:
        """Add the outcomes of batches when they end."""
        options = self._options
        start = time.monotonic()
        deadline = None if options.deadline_secs is None else start + options.deadline_secs
        waiting = [*pending]
        while True:
            now = time.monotonic()
            for batch in [*waiting]:
                found = self._poll(batch)
                if found is None and deadline is not None and now > deadline + _MAX_CANCEL_SECS:
                    found = _fail(
                        batch.request_ids,
                        f"Batch {batch.record.batch_id} didn't end after it was canceled at the deadline "
                        f"(deadline_secs={options.deadline_secs}).",
                    )
                if found is not None:
                    # If another batch also has a response to a request, that one is kept.
                    outcomes |= {
                        each: outcome
                        for each, outcome in found.items()
                        if each not in outcomes or outcomes[each].response is None
                    }
                    waiting.remove(batch)
                elif deadline is not None and now >= deadline and not batch.cancelled:
                    batch.cancelled = True
                    self._cancel(batch)
            if not waiting:
                return
            left = options.poll_secs if deadline is None else max(deadline - now, 0)
            self._sleep(min(options.poll_secs, left) or options.poll_secs)

    def _poll(self, batch: _Batch) -> dict[str, Outcome] | None:
        """Return the outcomes of a batch that ended, or None."""
        try:
            status = self._get(f"/batches/{batch.record.batch_id}", _check_id)
            if status.get("status") not in _ENDED:
                batch.failed_polls = 0
                return None
            found = self._download(status, batch.request_ids)
        except EndpointError as error:
            batch.failed_polls += 1
            may_pass = worth_retrying(error) or isinstance(error, UnusableAnswerError)
            if may_pass and batch.failed_polls < _MAX_FAILED_POLLS:
                _logger.warning(
                    "Batch %s can't be polled: %s", batch.record.batch_id, describe(error)
                )
                return None
            return {each: Outcome(error=error) for each in batch.request_ids}
        missing = [each for each in batch.request_ids if each not in found]
        found |= _explain_missing(status, missing)
        is_late = batch.cancelled or status.get("status") == "expired"
        if is_late and self._options.after_deadline == "live":
            found = {
                each: replace(outcome, may_run_live=outcome.is_unfinished)
                for each, outcome in found.items()
            }
        return found

    def _cancel(self, batch: _Batch) -> None:
        _logger.warning("Batch %s is canceled at the deadline.", batch.record.batch_id)
        try:
            self._retry(
                lambda: self._client.post(
                    f"/batches/{batch.record.batch_id}/cancel", {}, lambda answer: answer
                )
            )
        except EndpointError as error:  # it may have ended
            _logger.warning(
                "Batch %s can't be canceled: %s", batch.record.batch_id, describe(error)
            )

    def _download(
        self, status: Mapping[str, Any], request_ids: Sequence[str]
    ) -> dict[str, Outcome]:
        """Return the outcomes of requests from the files of a batch that ended.

        One of two files may be empty or deleted, if the other one contains the required outcomes.

        Raises:
            EndpointError: A file that is needed can't be read.
        """
        files = [status.get("output_file_id"), status.get("error_file_id")]
        contents: list[bytes] = []
        problems: dict[int, EndpointError] = {}
        for number, file in enumerate(files):
            if not file:
                continue
            try:
                content = self._retry(partial(self._download_file, file, may_be_empty=all(files)))
            except EndpointError as error:
                if error.status_code != 404:
                    raise
                problems[number] = error
                continue
            contents.append(content)
            if not content.strip():
                problems[number] = EndpointError(f"The file {file} of a batch has no content.")
        found = read_outcomes(contents, request_ids)
        is_complete = all(each in found for each in request_ids)
        has_answers = 0 not in problems and any(one.response is not None for one in found.values())
        if problems and not is_complete and not has_answers:
            raise next(iter(problems.values()))
        return found

    def _download_file(self, file: str, may_be_empty: bool) -> bytes:
        path = f"/files/{file}/content"
        content = self._client.download(path, _MAX_DOWNLOAD_BYTES)
        is_empty = may_be_empty and not content.strip()
        if not is_empty and not has_results(content):
            start = self._client.redact_key(shorten(content[:1_000].decode(errors="replace")))
            raise EndpointError(f"{path} has no results of a batch, but {start or 'no content'}.")
        return content

    def _get(
        self, path: str, check: Callable[[Any], Any], *, retries: bool = True
    ) -> Mapping[str, Any]:
        """Return a response that a function has checked."""

        def get() -> Any:
            return self._client.parse_response(path, self._client.get(path), check)

        answer: Mapping[str, Any] = self._retry(get) if retries else get()
        return answer


def _check_id(answer: Any) -> Any:
    if not isinstance(answer, Mapping) or not answer.get("id"):
        raise UnusableAnswerError(f"The response has no id: it is {describe_json(answer)}.")
    return answer


def _check_page(answer: Any) -> Any:
    data = answer.get("data") if isinstance(answer, Mapping) else None
    if not isinstance(data, list) or not all(
        isinstance(each, Mapping) and each.get("id") for each in data
    ):
        raise UnusableAnswerError(
            f"The response has no list 'data' of batches with an id: it is {describe_json(answer)}."
        )
    return answer


def _fail(request_ids: Sequence[str], message: str) -> dict[str, Outcome]:
    return {each: Outcome(error=EndpointError(message)) for each in request_ids}


def _explain_missing(status: Mapping[str, Any], request_ids: Sequence[str]) -> dict[str, Outcome]:
    """Return the outcomes of requests without a line in the results of a batch that ended."""
    state, name = status.get("status"), f"Batch {status.get('id')}"
    if state == "completed":
        return _fail(request_ids, f"{name} is completed, but has no valid result for this request.")
    errors = status.get("errors")
    found = errors.get("data") if isinstance(errors, Mapping) else None
    details = "; ".join(str((each or {}).get("message")) for each in (found or [])[:5])
    details = f": {shorten(details)}" if details else ""
    message = f"{name} has the status {state}, and didn't process this request{details}"
    return {each: Outcome(error=message, is_unfinished=state != "failed") for each in request_ids}


_locks: dict[tuple[int, str], threading.Lock] = {}


def _get_lock(folder: str) -> threading.Lock:
    """Return this process's lock for submissions. A forked process doesn't inherit a held lock."""
    return _locks.setdefault((os.getpid(), folder), threading.Lock())
