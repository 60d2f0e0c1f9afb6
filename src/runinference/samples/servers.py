"""Small local servers, for documentation, examples and experiments with remote handlers.

Each server is a context manager and stops at the end of its ``with`` block. As a command, ``python -m
runinference.samples.servers llm --port 8000`` runs a server until it is stopped. The servers implement real
protocols, including error responses. The models are small: the digits classifier of ``samples``, and a stand-in
for a language model that repeats its input in capital letters.
"""

from __future__ import annotations

import argparse
import base64
import json
import pickle
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from runinference.extras import need
from runinference.remote.json_tensors import decode_tensor, encode_tensor
from runinference.samples import models
from runinference.samples.batch_jobs import BatchJobs
from runinference.samples.json_answers import answer_schema
from runinference.samples.local_server import BinaryResponse, ErrorResponse, serving

__all__ = ["digits", "llm", "serving"]

#: Maximum number of words in a request to ``llm``.
CONTEXT_WORDS = 100
_EMBEDDING_SIZE = 64


@contextmanager
def digits(port: int = 0) -> Iterator[str]:
    """Serve the digits classifier of ``samples`` under the name ``digits``.

    The model takes rows of 64 pixels, from 0 to 16. The server supports KServe V2 (input ``pixels``, FP32; outputs
    ``label``, which is the default, and ``probabilities``; also with binary data), TensorFlow Serving (row and
    columnar format), and TorchServe.

    Args:
        port: The port, by default a free one.

    Yields:
        The URL of the server.

    >>> import httpx
    >>> with digits() as base_url:
    ...     print(httpx.get(f"{base_url}/v2/models/digits").json()["inputs"])
    [{'name': 'pixels', 'datatype': 'FP32', 'shape': [-1, 64]}]
    """
    need("sklearn", extra="sklearn")
    with open(models.digits_classifier(), "rb") as file:
        model = pickle.load(file)
    with serving(_Digits(model), port) as url:
        yield url


@contextmanager
def llm(
    key: str | None = None,
    troubles: Sequence[int] = (),
    retry_after: float = 0,
    seconds: float = 0,
    batch_faults: Sequence[str] = (),
    batch_polls: int = 1,
    port: int = 0,
) -> Iterator[str]:
    """Serve stand-ins for language models with the OpenAI API.

    The model ``shout`` answers chats and completions with the last message in capital letters. The model ``words``
    embeds texts: those that share words have similar embeddings. Tokens are words. A request of more than 100
    words is an error. With ``response_format`` of the type ``json_schema``, the answer to a chat is JSON that
    conforms to the schema: the choice that the last message mentions last, its first number, or the message in
    capitals. Images and audio count as the name of their type.

    The server also has the files and batches of the batch API. ``GET /v1/usage`` returns the billable usage:
    the number of requests, including those of batches, and their tokens.

    Args:
        key: The API key that requests must contain. None to accept all requests.
        troubles: HTTP statuses of the first responses, such as ``[429, 503]``. Later requests succeed.
        retry_after: Value in seconds of the header ``Retry-After`` in these first responses. 0 for no header.
        seconds: Time in seconds that each response takes.
        batch_faults: What goes wrong in batches: ``"busy"`` and ``"completed without submit response"`` when the
            first one is submitted; ``"cancelled"``, ``"expired"``, ``"failed"``, ``"lost batch"`` and ``"stuck"``,
            so that not all requests are processed; ``"failed line"``, ``"invalid line"``, ``"lost line"``,
            ``"other order"`` and ``"repeated line"`` in the results.
        batch_polls: Number of requests for the status of a batch until it ends.
        port: The port, by default a free one.

    Yields:
        The ``base_url``, which ends in ``/v1``.
    """
    server = _Llm(key, list(troubles), retry_after, seconds, batch_faults, batch_polls)
    with serving(server, port) as url:
        yield f"{url}/v1"


@dataclass
class _Digits:
    model: Any

    def __call__(self, path: str, headers: Any, body: Any) -> Any:
        base = "/v2/models/digits"
        if path == "/health":
            return {"status": "ok"}
        if path == base:
            return {
                "name": "digits",
                "platform": "sklearn",
                "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, 64]}],
                "outputs": [
                    {"name": "label", "datatype": "INT64", "shape": [-1]},
                    {"name": "probabilities", "datatype": "FP64", "shape": [-1, 10]},
                ],
            }
        if path == f"{base}/infer":
            return self._infer(body)
        if path == "/v1/models/digits:predict":
            columnar = "inputs" in body
            labels = self._labels(body["inputs"] if columnar else body["instances"])
            return {"outputs" if columnar else "predictions": labels}
        if path == "/predictions/digits":
            return self._labels([body])[0]
        raise ErrorResponse(404, {"error": f"nothing found at {path}; the model is 'digits'"})

    def _infer(self, body: Any) -> Any:
        [pixels] = body["inputs"]
        if pixels["name"] != "pixels" or pixels["datatype"] != "FP32":
            raise ErrorResponse(400, {"error": "the only input is 'pixels', of datatype FP32"})
        rows = decode_tensor(pixels)
        functions = {"label": self.model.predict, "probabilities": self.model.predict_proba}
        names = [output["name"] for output in body.get("outputs", [{"name": "label"}])]
        binary = body.get("parameters", {}).get("binary_data_output") is True
        outputs = [encode_tensor(name, functions[name](rows), binary) for name in names]
        response = {"model_name": "digits", "outputs": outputs}
        return BinaryResponse(response) if binary else response

    def _labels(self, rows: Any) -> Any:
        return self.model.predict(np.asarray(rows, np.float64)).tolist()


class _Llm:
    def __init__(
        self,
        key: str | None,
        troubles: list[int],
        retry_after: float,
        seconds: float,
        batch_faults: Sequence[str],
        batch_polls: int,
    ) -> None:
        self.key = key
        self.troubles = troubles
        self.retry_after = retry_after
        self.seconds = seconds
        self._jobs = BatchJobs(self._respond, batch_faults, batch_polls)
        self._paid = {"requests": 0, "tokens": 0}
        self._lock = threading.Lock()

    def __call__(self, path: str, headers: Any, body: Any) -> Any:
        if path == "/health":
            return {"status": "ok"}
        if self.key is not None and headers.get("Authorization") != f"Bearer {self.key}":
            raise _error_response(401, "Incorrect API key provided")
        if self.troubles:
            status = self.troubles.pop(0)
            wait = {"Retry_After": str(self.retry_after)} if self.retry_after else {}
            raise _error_response(status, "Try again later", **wait)
        time.sleep(self.seconds)
        if path == "/v1/usage":
            return dict(self._paid)
        found = self._jobs(path, body)
        return self._respond(path, body) if found is None else found

    def _respond(self, path: str, body: Any) -> Any:
        """Return the response to a request, and count it."""
        response = self._call_model(path, body)
        with self._lock:
            self._paid["requests"] += 1
            self._paid["tokens"] += response["usage"]["total_tokens"]
        return response

    def _call_model(self, path: str, body: Any) -> Any:
        routes: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
            "/v1/chat/completions": ("shout", "messages", self._chat),
            "/v1/completions": ("shout", "prompt", self._complete),
            "/v1/embeddings": ("words", "input", self._embed),
        }
        if path not in routes:
            raise _error_response(404, f"Nothing found at {path}")
        model, field, respond = routes[path]
        if body.get("model") != model:
            message = f"The model {body.get('model')!r} does not exist. The model here is {model!r}"
            raise _error_response(404, message)
        for name, supported in (("n", 1), ("stream", False)):
            if body.get(name, supported) != supported:
                raise _error_response(
                    400, f"The field {name!r} must be {supported!r}, or be left out"
                )
        if (words := _count_words(_read_input(body[field]))) > CONTEXT_WORDS:
            message = f"The context size is {CONTEXT_WORDS} words, and the request has {words}"
            raise _error_response(400, message)
        if path == "/v1/chat/completions" and "response_format" in body:
            response = self._chat(body[field], _read_schema(body["response_format"]))
        else:
            response = respond(body[field])
        if body.get("encoding_format") == "base64":
            for item in response["data"]:
                item["embedding"] = _to_base64(item["embedding"])
        return {"model": model, **response}

    def _chat(self, messages: Any, schema: Any = None) -> Any:
        texts = [_read_text(message["content"]) for message in messages]
        prompt, text = " ".join(texts), texts[-1].upper()
        if schema is not None:
            text = json.dumps(answer_schema(texts[-1], schema, schema))
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return {"choices": [choice], "usage": _usage(_count_words(prompt), _count_words(text))}

    def _complete(self, prompt: Any) -> Any:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        choices = [
            {"index": index, "finish_reason": "stop", "text": text.upper()}
            for index, text in enumerate(prompts)
        ]
        n_words = sum(map(_count_words, prompts))
        return {"choices": choices, "usage": _usage(n_words, n_words)}

    def _embed(self, value: Any) -> Any:
        texts = [value] if isinstance(value, str) else value
        data = [{"index": index, "embedding": _embedding(text)} for index, text in enumerate(texts)]
        return {"data": data, "usage": _usage(sum(map(_count_words, texts)))}


def _error_response(status: int, message: str, **headers: str) -> ErrorResponse:
    return ErrorResponse(status, {"error": {"message": message, "code": status}}, **headers)


def _read_schema(response_format: Any) -> Any:
    """Return the JSON schema of answers, None for text."""
    if response_format.get("type") == "text":
        return None
    if response_format.get("type") != "json_schema":
        raise _error_response(400, "response_format must have the type 'text' or 'json_schema'")
    return response_format["json_schema"]["schema"]


def _read_text(content: Any) -> str:
    """Return the text of a message, whose content may be a list of parts. Images and audio become their type."""
    return content if isinstance(content, str) else "".join(map(_read_part, content))


def _read_part(part: Any) -> str:
    kind = part.get("type")
    if kind == "text":
        return str(part["text"])
    if kind == "image_url":
        url = part["image_url"]["url"]
        return f"[{url[5:].partition(';')[0] if url.startswith('data:') else 'image'}]"
    if kind == "input_audio":
        return f"[audio/{part['input_audio']['format']}]"
    raise _error_response(400, f"The model can't read parts of type {kind!r}")


def _read_input(value: Any) -> str:
    """Return the text of a request, without the data of images and audio."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return " ".join(f"{message['role']} {_read_text(message['content'])}" for message in value)
    return json.dumps(value)


def _count_words(text: str) -> int:
    return len(re.findall(r"\w+", text))


def _usage(prompt: int, completion: int = 0) -> dict[str, int]:
    tokens = {"prompt_tokens": prompt, "total_tokens": prompt + completion}
    return {**tokens, "completion_tokens": completion} if completion else tokens


def _to_base64(vector: list[float]) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def _embedding(text: str) -> list[float]:
    """Count the words of a text in hash buckets, and normalize to length 1."""
    vector = np.zeros(_EMBEDDING_SIZE)
    for word in re.findall(r"\w+", text.lower()):
        vector[zlib.crc32(word.encode()) % _EMBEDDING_SIZE] += 1
    length = float(np.linalg.norm(vector)) or 1.0
    return [round(float(x) / length, 6) for x in vector]


def main() -> None:
    """Run a server until the process is stopped."""
    parser = argparse.ArgumentParser(prog="python -m runinference.samples.servers")
    parser.add_argument("server", choices=["digits", "llm"])
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    server = digits(options.port) if options.server == "digits" else llm(port=options.port)
    with server as url:
        print(f"Serving {options.server} at {url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
