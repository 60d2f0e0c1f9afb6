"""Images and audio in chat messages: exact content, the right media type, and clear errors."""

from __future__ import annotations

import base64
import io
import wave

import numpy as np
import pytest
from PIL import Image

from common import run
from runinference import KeyedModelHandler, RunInference
from runinference.errors import ElementError
from runinference.openai_inference import OpenAIChatModelHandler, audio_part, image_part
from runinference.samples import servers


def content(part):
    """Return the media type and the content of a part with an image."""
    assert part["type"] == "image_url"
    header, _, data = part["image_url"]["url"].partition(";base64,")
    return header.removeprefix("data:"), base64.b64decode(data, validate=True)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4), (1, 1, 3)])
def test_an_array_is_sent_as_png_without_loss(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for pixels in (array, np.asfortranarray(array), np.repeat(array, 2, 0)[::2]):
        media_type, png = content(image_part(pixels))
        assert media_type == "image/png"
        found = np.asarray(Image.open(io.BytesIO(png)))
        np.testing.assert_array_equal(found, array.reshape(found.shape))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_a_pil_image_is_sent_as_png_without_loss(mode):
    image = Image.fromarray(np.arange(75, dtype=np.uint8).reshape(5, 5, 3)).convert(mode)
    media_type, png = content(image_part(image))
    found = Image.open(io.BytesIO(png))
    assert media_type == "image/png"
    assert found.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_bytes_and_files_are_sent_as_they_are_with_their_media_type(kind, tmp_path):
    path = tmp_path / "an image"
    Image.new("RGB", (4, 4), "red").save(path, kind)
    data = path.read_bytes()
    for value in (data, bytearray(data), memoryview(data), path, str(path)):
        assert content(image_part(value)) == (f"image/{kind.lower()}", data)


@pytest.mark.parametrize("url", ["https://a.example.com/cat.png", "data:image/png;base64,aa"])
def test_a_url_is_sent_as_it_is(url):
    assert image_part(url, "low")["image_url"] == {"url": url, "detail": "low"}


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (
            np.zeros((4, 4, 3), np.float32),
            r"uint8.*but has float32. If its values are from 0 to 1",
        ),
        (np.zeros((4, 4, 3), np.int64), r"must have the dtype uint8.*but has int64\.$"),
        (np.zeros((3, 4, 4), np.uint8)[:, :, :2], r"shape \(3, 4, 2\). If the channels come first"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"shape \(2, 4, 4, 3\)"),
        (np.zeros((4, 4, 5), np.uint8), r"shape \(4, 4, 5\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (Image.new("CMYK", (2, 2)), r"mode 'CMYK'.*convert\('RGB'\)"),
        (Image.new("I", (1, 1), 70_000), "mode 'I', which can't be sent without loss"),
        (Image.new("RGB", (0, 3)), r"size \(0, 3\) can't be saved as PNG"),
        (b"", "is empty: it has 0 bytes"),
        (b"BM1234567890", "unknown format: it starts with b'BM123456'"),
        (b"RIFF1234WAVE", "unknown format"),
        ("", "but is an empty string"),
        ("/no/such/file.png", "The image '/no/such/file.png' can't be read: .*"),
        (None, "must be bytes, a path, .* but is a NoneType"),
        ([1, 2], "but is a list"),
    ],
)
def test_an_invalid_image_raises_an_error(image, text):
    with pytest.raises(ElementError, match=text):
        image_part(image)
    with pytest.raises(ElementError, match="detail must be a string"):
        image_part(b"GIF89a", detail=3)


def wav(**parameters):
    return wave.open(io.BytesIO(base64.b64decode(parameters["data"])))


@pytest.mark.parametrize("dtype", ["<i2", ">i2"])
@pytest.mark.parametrize("shape", [(6,), (6, 1), (3, 2)])
def test_an_array_of_int16_is_sent_as_wav_without_loss(shape, dtype):
    array = np.array([0, 1, -1, 300, 32_767, -32_768], dtype).reshape(shape)
    part = audio_part(array, 8_000)
    with wav(**part["input_audio"]) as file:
        assert (file.getframerate(), file.getnchannels()) == (8_000, array.size // len(array))
        found = np.frombuffer(file.readframes(100), "<i2")
    np.testing.assert_array_equal(found, array.ravel())


def test_the_sampling_rate_can_be_a_numpy_integer():
    part = audio_part(np.zeros(6, np.int16), np.int64(16_000))
    assert wav(**part["input_audio"]).getframerate() == 16_000


def test_floats_are_rounded_to_16_bits():
    part = audio_part(np.array([0, 1, -1, 0.5], np.float32), 16_000)
    with wav(**part["input_audio"]) as file:
        assert np.frombuffer(file.readframes(9), "<i2").tolist() == [0, 32_767, -32_767, 16_384]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"RIFF1234WAVEfmt ", "wav"),
        (b"ID3abc", "mp3"),
        (b"\xff\xfb\x90", "mp3"),
    ],
)
def test_audio_files_are_sent_as_they_are_with_their_format(data, expected, tmp_path):
    path = tmp_path / "audio"
    path.write_bytes(data)
    for value in (data, path):
        part = audio_part(value)
        assert base64.b64decode(part["input_audio"]["data"]) == data
        assert part["input_audio"]["format"] == expected
    assert audio_part(b"other", format="mp3")["input_audio"]["format"] == "mp3"


@pytest.mark.parametrize(
    ("audio", "rate", "text"),
    [
        (np.zeros(9, np.int16), None, "sampling_rate must be .* but is None"),
        (np.zeros(9, np.int16), 0, "sampling_rate must be .* but is 0"),
        (np.zeros(9, np.int16), 2**31, "sampling_rate must be .* but is 2147483648"),
        (np.zeros(9, np.int32), 8_000, "must have the dtype int16 or a float dtype, but has int32"),
        (np.array([0, 2.0]), 8_000, "outside the range -1 to 1"),
        (np.array([0, np.nan]), 8_000, "outside the range -1 to 1"),
        (np.zeros((1, 2, 3), np.int16), 8_000, r"has the shape \(1, 2, 3\)"),
        (np.zeros(0, np.int16), 8_000, r"has the shape \(0,\)"),
        (np.zeros((2, 9), np.int16), 8_000, "which is 9 channels. If the channels come first"),
        (b"ID3", 8_000, "sampling_rate is only for arrays"),
        (b"fLaC0000", None, "unknown format: it starts with b'fLaC0000'"),
        (b"", None, "The audio is empty"),
        (3, None, "must be bytes, a path, a NumPy array, but is a int"),
    ],
)
def test_invalid_audio_raises_an_error(audio, rate, text):
    with pytest.raises(ElementError, match=text):
        audio_part(audio, rate)
    with pytest.raises(ElementError, match="format must be 'wav' or 'mp3', but is 'flac'"):
        audio_part(b"fLaC", format="flac")


def to_messages(keyed):
    key, photo = keyed
    parts = [{"type": "text", "text": "this is"}, image_part(photo), audio_part(b"ID3")]
    return key, [{"role": "user", "content": parts}]


def test_parts_are_sent_in_a_pipeline_with_keys():
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with servers.llm() as url:
        handler = KeyedModelHandler(OpenAIChatModelHandler(url, "shout", None))
        [(key, result)] = run([("k", photo)], RunInference(handler.with_preprocess_fn(to_messages)))
    assert key == "k"
    assert result.inference.text == "THIS IS[IMAGE/PNG][AUDIO/MP3]"
