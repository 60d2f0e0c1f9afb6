"""Small servers on this machine, for pages, examples and first tries of remote handlers.

Each is real: it listens, speaks its protocol, refuses what it must refuse, and ends with its block. What answers
behind it is small: the digits classifier of ``samples``, or a stand-in for a language model that repeats what it
is told in capitals.
"""

from __future__ import annotations

import json
import pickle
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from runinference.extras import need
from runinference.samples import models
from runinference.samples.local_server import Refused, serving

__all__ = ["digits", "llm", "serving"]

#: So many words fit into a request to the stand-in for a language model.
CONTEXT_WORDS = 100
_EMBEDDING_SIZE = 64


@contextmanager
def digits() -> Iterator[str]:
    """Serves the digits classifier of ``samples``, under the name ``digits``; gives the server's address.

    It takes rows of 64 pixels, and answers by three protocols: KServe's version 2 (input ``pixels``, FP32; outputs
    ``label`` and ``probabilities``, or those of them that are asked for, by default ``label``), TensorFlow
    Serving's (by rows and by columns), and TorchServe's.

    >>> import httpx
    >>> with digits() as base_url:
    ...     print(httpx.get(f"{base_url}/v2/models/digits").json()["inputs"])
    [{'name': 'pixels', 'datatype': 'FP32', 'shape': [-1, 64]}]
    """
    need("sklearn", extra="sklearn")
    with open(models.digits_classifier(), "rb") as file:
        model = pickle.load(file)
    with serving(_Digits(model)) as address:
        yield address


@contextmanager
def llm(
    key: str | None = None, troubles: Sequence[int] = (), retry_after: float = 0, seconds: float = 0
) -> Iterator[str]:
    """Serves a stand-in for language models by OpenAI's protocol; gives the ``base_url``, which ends in ``/v1``.

    Its model ``shout`` answers chats and completions with what it was told last, in capitals. Its model ``words``
    embeds texts, of which those that share words are near. Words are its tokens; requests of more than 100 it
    refuses.

    Args:
        key: Requests must carry it.
        troubles: The statuses of its first answers, such as ``[429, 503]``; after them it does its work.
        retry_after: The seconds that it then asks to wait; 0 if it does not say.
        seconds: How long it takes for an answer.
    """
    with serving(_Llm(key, list(troubles), retry_after, seconds)) as address:
        yield f"{address}/v1"


class _Digits:
    """A classifier behind three protocols."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, path: str, headers: Any, body: Any) -> Any:
        base = "/v2/models/digits"
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
            column = "inputs" in body
            labels = self._labels(body["inputs"] if column else body["instances"])
            return {"outputs" if column else "predictions": labels}
        if path == "/predictions/digits":
            return self._labels([body])[0]
        raise Refused(404, {"error": f"there is nothing at {path}; the model is 'digits'"})

    def _infer(self, body: Any) -> Any:
        [pixels] = body["inputs"]
        if pixels["name"] != "pixels" or pixels["datatype"] != "FP32":
            raise Refused(400, {"error": "the model takes one input, 'pixels', of datatype FP32"})
        rows = np.reshape(np.asarray(pixels["data"], np.float32), pixels["shape"])
        made = {
            "label": ("INT64", self._model.predict),
            "probabilities": ("FP64", self._model.predict_proba),
        }
        outputs = []
        for name in (one["name"] for one in body.get("outputs", [{"name": "label"}])):
            datatype, function = made[name]
            array = function(rows)
            outputs.append(
                {
                    "name": name,
                    "datatype": datatype,
                    "shape": list(array.shape),
                    "data": array.ravel().tolist(),
                }
            )
        return {"model_name": "digits", "outputs": outputs}

    def _labels(self, rows: Any) -> list[int]:
        labels: list[int] = self._model.predict(np.asarray(rows, np.float64)).tolist()
        return labels


class _Llm:
    """A stand-in for language models."""

    def __init__(
        self, key: str | None, troubles: list[int], retry_after: float, seconds: float
    ) -> None:
        self._key = key
        self._troubles = troubles
        self._retry_after = retry_after
        self._seconds = seconds

    def __call__(self, path: str, headers: Any, body: Any) -> Any:
        if self._key is not None and headers.get("Authorization") != f"Bearer {self._key}":
            raise _refused(401, "Incorrect API key provided")
        if self._troubles:
            status = self._troubles.pop(0)
            wait = {"Retry_After": str(self._retry_after)} if self._retry_after else {}
            raise _refused(status, "Not now", **wait)
        time.sleep(self._seconds)
        does: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
            "/v1/chat/completions": ("shout", "messages", self._chat),
            "/v1/completions": ("shout", "prompt", self._complete),
            "/v1/embeddings": ("words", "input", self._embed),
        }
        if path not in does:
            raise _refused(404, f"There is nothing at {path}")
        model, asked, answer = does[path]
        if body.get("model") != model:
            raise _refused(
                404, f"The model {body.get('model')!r} does not exist, here it is {model!r}"
            )
        if (words := _words(json.dumps(body[asked]))) > CONTEXT_WORDS:
            raise _refused(
                400, f"The context holds {CONTEXT_WORDS} words, and the request has {words}"
            )
        return {"model": model, **answer(body[asked])}

    def _chat(self, messages: Any) -> Any:
        said = " ".join(str(message["content"]) for message in messages)
        text = str(messages[-1]["content"]).upper()
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": text},
        }
        return {"choices": [choice], "usage": _usage(_words(said), _words(text))}

    def _complete(self, prompt: Any) -> Any:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        choices = [
            {"index": index, "finish_reason": "stop", "text": text.upper()}
            for index, text in enumerate(prompts)
        ]
        n_words = sum(map(_words, prompts))
        return {"choices": choices, "usage": _usage(n_words, n_words)}

    def _embed(self, given: Any) -> Any:
        texts = [given] if isinstance(given, str) else given
        data = [{"index": index, "embedding": _embedded(text)} for index, text in enumerate(texts)]
        return {"data": data, "usage": _usage(sum(map(_words, texts)))}


def _refused(status: int, message: str, **headers: str) -> Refused:
    return Refused(status, {"error": {"message": message, "code": status}}, **headers)


def _words(text: str) -> int:
    return len(re.findall(r"\w+", text))


def _usage(prompt: int, completion: int = 0) -> dict[str, int]:
    tokens = {"prompt_tokens": prompt, "total_tokens": prompt + completion}
    return {**tokens, "completion_tokens": completion} if completion else tokens


def _embedded(text: str) -> list[float]:
    """The words of a text, counted at places that their checksums choose; of length 1."""
    vector = np.zeros(_EMBEDDING_SIZE)
    for word in re.findall(r"\w+", text.lower()):
        vector[zlib.crc32(word.encode()) % _EMBEDDING_SIZE] += 1
    length = float(np.linalg.norm(vector)) or 1.0
    return [round(float(x) / length, 6) for x in vector]
