"""Images and audio as parts of the content of chat messages."""

from __future__ import annotations

import base64
import io
import os
import struct
import sys
import wave
import zlib
from numbers import Integral
from typing import Any, Literal

import numpy as np
from apache_beam.io.filesystems import FileSystems

from runinference.errors import ElementError, describe

_PNG_COLORS = {1: 0, 3: 2, 4: 6}  # color types by the number of channels
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # of PIL images that are saved without loss
_MAX_SAMPLING_RATE = 1_000_000
_MP3_STARTS = (b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xfa")


def image_part(image: Any, detail: str | None = None) -> dict[str, Any]:
    """Return a part of a chat message with an image.

    >>> import numpy as np
    >>> from runinference.openai_inference import image_part
    >>> photo = np.zeros((2, 3, 3), np.uint8)
    >>> message = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, image_part(photo)]}
    >>> message["content"][1]["image_url"]["url"][:30]
    'data:image/png;base64,iVBORw0K'

    Args:
        image: The content of a PNG, JPEG, GIF or WebP file as bytes; the path of such a file, local or on remote
            storage that Beam can read; a URL that starts with ``https://``, ``http://`` or ``data:``, which is
            sent unchanged; a PIL image; or a uint8 NumPy array of shape ``(height, width)``,
            ``(height, width, 1)``, ``(height, width, 3)`` or ``(height, width, 4)``: gray, RGB or RGBA. Arrays and
            PIL images are sent as PNG, without loss.
        detail: How closely the model looks at the image, such as ``"low"`` or ``"high"``. None for the server's
            default.

    Raises:
        ElementError: The image has another type, dtype, shape or format, or the file can't be read.
    """
    if isinstance(image, str) and image.startswith(("https://", "http://", "data:")):
        url = image
    else:
        content = _encode_image(image)
        url = f"data:{_find_media_type(content)};base64,{_to_base64(content)}"
    if detail is not None and not isinstance(detail, str):
        raise ElementError(f"detail must be a string such as 'low', but is {detail!r}.")
    details = {} if detail is None else {"detail": detail}
    return {"type": "image_url", "image_url": {"url": url, **details}}


def audio_part(
    audio: Any, sampling_rate: int | None = None, *, format: Literal["wav", "mp3"] | None = None
) -> dict[str, Any]:
    """Return a part of a chat message with audio.

    >>> import numpy as np
    >>> from runinference.openai_inference import audio_part
    >>> part = audio_part(np.zeros(16_000, np.int16), sampling_rate=16_000)
    >>> part["type"], part["input_audio"]["format"]
    ('input_audio', 'wav')

    Args:
        audio: The content of a WAV or MP3 file as bytes; the path of such a file, local or on remote storage that
            Beam can read; or a NumPy array of shape ``(samples,)`` or ``(samples, channels)``, with int16 values
            or with floats from -1 to 1, which are rounded to 16 bits.
        sampling_rate: Samples per second. Required for arrays.
        format: Format of bytes or a file. By default, it is detected from the first bytes.

    Raises:
        ElementError: The audio has another type, dtype, shape or format, or the file can't be read.
    """
    if isinstance(audio, np.ndarray):
        content, found = _encode_wav(audio, sampling_rate), "wav"
    else:
        if sampling_rate is not None:
            raise ElementError(
                "sampling_rate is only for arrays. Files contain it. To fix this, leave it out."
            )
        if format not in (None, "wav", "mp3"):
            raise ElementError(f"format must be 'wav' or 'mp3', but is {format!r}.")
        content = _read(audio, "audio")
        found = format or _find_audio_format(content)
    return {"type": "input_audio", "input_audio": {"data": _to_base64(content), "format": found}}


def _encode_image(image: Any) -> bytes:
    if isinstance(image, np.ndarray):
        return _encode_png(image)
    pil = sys.modules.get("PIL.Image")
    if pil is not None and isinstance(image, pil.Image):
        if image.mode not in _PNG_MODES:
            raise ElementError(
                f"The PIL image has the mode {image.mode!r}, which can't be sent without loss. To fix this, use "
                "image.convert('RGB')."
            )
        buffer = io.BytesIO()
        try:
            image.save(buffer, "PNG")
        except (
            Exception
        ) as error:  # the file it is read from is cut off, the image has no pixels, ...
            raise ElementError(
                f"The PIL image with the size {image.size} can't be saved as PNG: {describe(error, 300)}."
            ) from error
        return buffer.getvalue()
    return _read(image, "image")


def _read(value: Any, what: str) -> bytes:
    """Return bytes, or the content of the file at a path."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        content = bytes(value)
    elif isinstance(value, (str, os.PathLike)) and os.fspath(value):
        path = os.fspath(value)
        try:
            with FileSystems.open(path) as file:
                content = file.read()
        except Exception as error:  # what a client raises depends on the file system
            raise ElementError(
                f"The {what} {path!r} can't be read: {describe(error, 300)}."
            ) from error
    else:
        others = "a NumPy array or a PIL image" if what == "image" else "a NumPy array"
        shown = "an empty string" if value == "" else f"a {type(value).__name__}"
        raise ElementError(f"The {what} must be bytes, a path, {others}, but is {shown}.")
    if not content:
        raise ElementError(f"The {what} is empty: it has 0 bytes.")
    return content


def _find_media_type(content: bytes) -> str:
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    raise ElementError(
        f"The image has an unknown format: it starts with {content[:8]!r}. To fix this, convert it to PNG, JPEG, "
        "GIF or WebP, or pass an array or a PIL image."
    )


def _find_audio_format(content: bytes) -> str:
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE":
        return "wav"
    if content.startswith(_MP3_STARTS):
        return "mp3"
    raise ElementError(
        f"The audio has an unknown format: it starts with {content[:8]!r}. To fix this, convert it to WAV or MP3. "
        "If it is one of them, set format."
    )


def _encode_png(array: Any) -> bytes:
    """Return an array of pixels as PNG."""
    if array.dtype != np.uint8:
        hint = " If its values are from 0 to 1, use (255 * array).round().astype('uint8')."
        raise ElementError(
            f"The image array must have the dtype uint8, with values from 0 to 255, but has {array.dtype}."
            + hint * (array.dtype.kind == "f")
        )
    pixels = array[..., np.newaxis] if array.ndim == 2 else array
    color = _PNG_COLORS.get(pixels.shape[-1]) if pixels.ndim == 3 else None
    if color is None or not pixels.size:
        hint = ""
        if array.ndim == 3 and array.shape[0] in _PNG_COLORS:
            hint = " If the channels come first, use array.transpose(1, 2, 0)."
        raise ElementError(
            "The image array must have the shape (height, width) or (height, width, channels), with 1, 3 or "
            f"4 channels, but has the shape {array.shape}.{hint}"
        )
    height, width, _ = pixels.shape
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    filtered = np.pad(rows, ((0, 0), (1, 0)))  # each row starts with its filter: 0 is none
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)),
            _png_chunk(b"IDAT", zlib.compress(filtered.tobytes())),
            _png_chunk(b"IEND", b""),
        ]
    )


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _encode_wav(array: Any, sampling_rate: Any) -> bytes:
    """Return an array of samples as WAV with 16 bits."""
    is_number = isinstance(sampling_rate, Integral) and not isinstance(sampling_rate, bool)
    if not is_number or not 1 <= sampling_rate <= _MAX_SAMPLING_RATE:
        raise ElementError(
            f"sampling_rate must be the number of samples per second of the array, but is {sampling_rate!r}."
        )
    if array.ndim not in (1, 2) or not array.size:
        raise ElementError(
            "The audio array must have the shape (samples,) or (samples, channels), but has the shape "
            f"{array.shape}."
        )
    channels = 1 if array.ndim == 1 else array.shape[1]
    if channels > min(16, array.shape[0]):
        raise ElementError(
            f"The audio array has the shape {array.shape}, which is {channels} channels. If the channels come "
            "first, transpose it."
        )
    if array.dtype.kind == "f":
        if not (np.abs(array) <= 1).all():
            raise ElementError(
                "The audio array has values outside the range -1 to 1. To fix this, scale them, or pass int16."
            )
        array = (array.astype(np.float64) * 32_767).round().astype(np.int16)
    if array.dtype.newbyteorder("=") != np.int16:
        raise ElementError(
            f"The audio array must have the dtype int16 or a float dtype, but has {array.dtype}."
        )
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(int(sampling_rate))
        file.writeframes(array.astype("<i2").tobytes())
    return buffer.getvalue()


def _to_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
