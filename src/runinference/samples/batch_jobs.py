"""The files and batches of a server with the OpenAI API, including the faults of real providers."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

from runinference.samples.local_server import ErrorResponse

#: The faults that a batch can have. See ``servers.llm``.
FAULTS = (
    "busy",
    "cancelled",
    "completed without submit response",
    "expired",
    "failed",
    "failed line",
    "invalid line",
    "lost batch",
    "lost line",
    "other order",
    "repeated line",
    "stuck",
)


class BatchJobs:
    """Answers the requests of the files and batches API.

    Args:
        respond: Returns the response to a request of a batch, from its path and body.
        faults: Some of ``FAULTS``.
        n_polls: Number of requests for the status of a batch until it ends.
    """

    def __init__(
        self, respond: Callable[[str, Any], Any], faults: Sequence[str] = (), n_polls: int = 1
    ) -> None:
        unknown = set(faults) - set(FAULTS)
        if unknown:
            raise ValueError(
                f"There is no fault {sorted(unknown)[0]!r}. Faults are: {', '.join(FAULTS)}."
            )
        self._respond = respond
        self._faults = set(faults)
        self._n_polls = n_polls
        self._files: dict[str, dict[str, Any]] = {}
        self._contents: dict[str, bytes] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._polls: dict[str, int] = {}
        self._lock = threading.RLock()

    def __call__(self, path: str, body: Any) -> Any:
        """Return the response to a request; None if it is not about files and batches."""
        parts = urlsplit(path)
        found = re.fullmatch(r"/v1/(files|batches)(?:/([\w-]+))?(?:/(content|cancel))?", parts.path)
        if found is None:
            return None
        kind, name, action = found.groups()
        with self._lock:
            if kind == "files":
                return self._create_file(body) if name is None else self._get_file(name, action)
            if name is not None:
                return self._get_batch(name, action)
            if body is not None:
                return self._create_batch(body)
            return self._list(parse_qs(parts.query))

    def _create_file(self, form: Any) -> Any:
        content = form["file"].strip() + b"\n"
        return self._add_file(content, form["purpose"].decode())

    def _add_file(self, content: bytes, purpose: str) -> dict[str, Any]:
        name = f"file-{uuid.uuid4().hex[:12]}"
        file = {
            "id": name,
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": f"{name}.jsonl",
            "purpose": purpose,
            "status": "processed",
        }
        self._files[name], self._contents[name] = file, content
        return file

    def _get_file(self, name: str, action: str | None) -> Any:
        if name not in self._files:
            raise _error(404, f"There is no file {name}")
        return self._contents[name] if action == "content" else self._files[name]

    def _create_batch(self, body: Any) -> Any:
        if "busy" in self._faults:
            self._faults.remove("busy")
            raise _error(429, "Too many batches")
        lines = self._read_lines(body)
        batch = {
            "id": f"batch-{uuid.uuid4().hex[:12]}",
            "object": "batch",
            "endpoint": body["endpoint"],
            "completion_window": body["completion_window"],
            "input_file_id": body["input_file_id"],
            "status": "validating",
            "created_at": int(time.time()),
            "metadata": body.get("metadata"),
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
        }
        self._batches[batch["id"]] = batch
        if "completed without submit response" in self._faults:
            self._faults.remove("completed without submit response")
            raise _error(500, "The server failed after it accepted the batch")
        return dict(batch)

    def _read_lines(self, batch: Any) -> list[Any]:
        return [json.loads(line) for line in self._contents[batch["input_file_id"]].splitlines()]

    def _get_batch(self, name: str, action: str | None) -> Any:
        if name not in self._batches:
            raise _error(404, f"There is no batch {name}")
        batch = self._batches[name]
        if action == "cancel":
            if batch["status"] in ("validating", "in_progress"):
                self._end(batch, "cancelled")
            return dict(batch)
        self._polls[name] = self._polls.get(name, 0) + 1
        if batch["status"] == "validating":
            batch["status"] = "in_progress"
        if "lost batch" in self._faults:
            self._faults.remove("lost batch")
            del self._batches[name]
            raise _error(404, f"There is no batch {name}")
        is_due = self._polls[name] >= self._n_polls and "stuck" not in self._faults
        if batch["status"] == "in_progress" and is_due:
            states = [
                state for state in ("cancelled", "expired", "failed") if state in self._faults
            ]
            self._end(batch, states[0] if states else "completed")
        return dict(batch)

    def _list(self, query: dict[str, list[str]]) -> Any:
        """Return a page of the batches, the newest first."""
        names = [*reversed(self._batches)]
        start = names.index(query["after"][0]) + 1 if "after" in query else 0
        end = start + int(query.get("limit", ["20"])[0])
        data = [dict(self._batches[name]) for name in names[start:end]]
        return {"object": "list", "data": data, "has_more": end < len(names)}

    def _end(self, batch: dict[str, Any], status: str) -> None:
        """Process the requests of a batch: all, half of them, or none."""
        batch["status"] = status
        if status == "failed":
            error = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}
            batch["errors"] = {"object": "list", "data": [error]}
            return
        lines = self._read_lines(batch)
        n_processed = len(lines) if status == "completed" else len(lines) // 2
        results: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        for index, line in enumerate(lines):
            result: dict[str, Any] = {"id": f"batch_req_{index}", "custom_id": line["custom_id"]}
            if index >= n_processed:
                error = {"code": f"batch_{status}", "message": f"The batch was {status}"}
                errors.append({**result, "response": None, "error": error})
                continue
            response = self._process(line, index)
            result |= {"response": response, "error": None}
            (results if response["status_code"] == 200 else errors).append(result)
        batch["request_counts"] |= {"completed": len(results), "failed": len(errors)}
        if results:
            batch["output_file_id"] = self._write(self._add_faults(results))["id"]
        if errors:
            batch["error_file_id"] = self._write([json.dumps(each) for each in errors])["id"]

    def _process(self, line: Any, index: int) -> dict[str, Any]:
        try:
            if index == 0 and "failed line" in self._faults:
                raise _error(400, "The request is not valid")
            return {"status_code": 200, "body": self._respond(line["url"], line["body"])}
        except ErrorResponse as error:
            return {"status_code": error.status, "body": error.body}

    def _add_faults(self, results: list[dict[str, Any]]) -> list[str]:
        """Return the lines of the results, with the faults."""
        lines = [json.dumps(each) for each in results]
        if "other order" in self._faults:
            lines.reverse()
        if "repeated line" in self._faults:
            lines.append(lines[0])
        if "lost line" in self._faults:
            del lines[len(lines) // 2]
        if "invalid line" in self._faults:
            lines.append('{"custom_id": ')
        return lines

    def _write(self, lines: Sequence[str]) -> dict[str, Any]:
        return self._add_file("".join(f"{line}\n" for line in lines).encode(), "batch_output")


def _error(status: int, message: str) -> ErrorResponse:
    return ErrorResponse(status, {"error": {"message": message, "code": status}})
