"""Messages of the Open Inference Protocol with its extension for binary tensors, which follow the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runinference.errors import UnusableAnswerError
from runinference.remote.json_tensors import describe_json
from runinference.remote.json_text import decode_json, encode_json

#: The header with the size of the JSON at the start of a message. Without it, the whole message is JSON.
JSON_SIZE = "Inference-Header-Content-Length"


class BinaryCodec:
    """The format of messages with binary tensors."""

    @staticmethod
    def encode(body: Any) -> tuple[bytes, dict[str, str]]:
        return encode_message(body)

    @staticmethod
    def decode(content: bytes, headers: Mapping[str, str]) -> Any:
        return decode_message(content, headers)


def encode_message(message: Any) -> tuple[bytes, dict[str, str]]:
    """Return the content and the headers of a message whose inputs or outputs may have ``bytes`` as data.

    Raises:
        ElementError: The message can't be written as JSON.
    """
    field = "inputs" if "inputs" in message else "outputs"
    buffers = []
    tensors = []
    for tensor in message[field]:
        if isinstance(tensor.get("data"), bytes):
            data = tensor["data"]
            buffers.append(data)
            tensor = {name: value for name, value in tensor.items() if name != "data"}
            tensor["parameters"] = {"binary_data_size": len(data)}
        tensors.append(tensor)
    text = encode_json({**message, field: tensors})
    headers = {"Content-Type": "application/octet-stream", JSON_SIZE: str(len(text))}
    return b"".join([text, *buffers]), headers


def decode_message(content: bytes, headers: Mapping[str, str]) -> Any:
    """Return a message, in which tensors have ``bytes`` as data if they are binary.

    Args:
        content: The content of the message.
        headers: Its headers by their names in lower case.

    Raises:
        UnusableAnswerError: The sizes of the binary data contradict the size of the message.
        ValueError: The JSON is invalid.
    """
    size = headers.get(JSON_SIZE.lower())
    if size is None:
        return decode_json(content)
    if not (size.isdecimal() and size.isascii()) or int(size) > len(content):
        raise UnusableAnswerError(
            f"The header {JSON_SIZE} is {size[:40]!r}, which is not a size in a message of {len(content)} bytes."
        )
    start = int(size)
    message = decode_json(content[:start])
    field = "inputs" if isinstance(message, dict) and "inputs" in message else "outputs"
    tensors = message.get(field) if isinstance(message, dict) else None
    for tensor in tensors if isinstance(tensors, list) else []:
        n_bytes = _get_size(tensor)
        if n_bytes is None:
            continue
        if n_bytes > len(content) - start:
            raise UnusableAnswerError(
                f"The tensor {_name(tensor)} has a binary_data_size of {n_bytes}, but only "
                f"{len(content) - start} bytes are left in the message."
            )
        tensor["data"] = content[start : start + n_bytes]
        start += n_bytes
    if start < len(content):
        raise UnusableAnswerError(
            f"The message has {len(content) - start} bytes more than its tensors: they are "
            f"{describe_json(message)}."
        )
    return message


def _get_size(tensor: Any) -> int | None:
    """Return the size of a tensor's binary data, or None if its data are JSON."""
    parameters = tensor.get("parameters") if isinstance(tensor, Mapping) else None
    size = parameters.get("binary_data_size") if isinstance(parameters, Mapping) else None
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise UnusableAnswerError(
            f"The tensor {_name(tensor)} has the binary_data_size {str(size)[:40]!r}, which is not a size."
        )
    return size


def _name(tensor: Any) -> str:
    return repr(tensor.get("name"))[:80]
