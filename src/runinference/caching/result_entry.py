"""The format of cached results: a header with a version, the time and checksums, and a restricted pickle."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import sys
from collections.abc import Iterable
from typing import Any

from runinference.errors import RunInferenceError, describe
from runinference.extras import need

#: The version of the format. Entries of other versions are ignored. Increase it with each change of the format.
FORMAT_VERSION = 1

_MAGIC = b"RIRC"
#: Magic bytes, version, time in seconds since the epoch, key, and SHA-256 digest of all other bytes.
_HEADER = struct.Struct(">4sHd32s32s")

#: Classes and functions that entries may contain besides plain values. They run no third-party code.
_TRUSTED = frozenset(
    {
        *(f"builtins.{name}" for name in ("bytearray", "complex", "frozenset", "range", "set")),
        *(f"datetime.{n}" for n in ("date", "datetime", "time", "timedelta", "timezone")),
        "collections.OrderedDict",
        "collections.deque",
        "decimal.Decimal",
        "fractions.Fraction",
        "types.SimpleNamespace",
        "uuid.UUID",
        "numpy.dtype",
        "numpy.ndarray",
        *(
            f"numpy.{core}.multiarray.{n}"
            for core in ("core", "_core")
            for n in ("_reconstruct", "scalar")
        ),
        *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
        "runinference.results.PredictionResult",
        f"{__name__}.restore_tensor",
    }
)


class TrustedTypes:
    """The classes that entries may contain besides plain values.

    Args:
        types: Classes, and names of packages with a dot at the end, whose classes are trusted.
    """

    def __init__(self, types: Iterable[type | str]) -> None:
        kinds = [each for each in types if isinstance(each, type)]
        self.packages = tuple(each for each in types if isinstance(each, str))
        # Workers can't import a class from ``__main__``.
        self.by_name = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in kinds}


class EntryError(RunInferenceError):
    """A cache entry is damaged, has another format version, or belongs to another element."""


class UncacheableResultError(RunInferenceError):
    """A result can't be stored in a cache."""


def encode_entry(key: bytes, value: Any, time: float, trusted: TrustedTypes) -> bytes:
    """Return an entry with a value.

    Args:
        key: The key: 32 bytes.
        value: The value.
        time: The current time in seconds since the epoch.
        trusted: The classes that the value may contain.

    Raises:
        UncacheableResultError: The value can't be pickled, or contains an object of another class.
    """
    try:
        with io.BytesIO() as file:
            _Pickler(file, trusted).dump(value)
            content = file.getvalue()
        _load(content, trusted)
    except Exception as error:
        reason = str(error) if isinstance(error, EntryError) else describe(error, 300)
        raise UncacheableResultError(f"Results can't be stored: {reason}") from error
    header = _HEADER.pack(_MAGIC, FORMAT_VERSION, time, key, bytes(32))
    return _HEADER.pack(_MAGIC, FORMAT_VERSION, time, key, _digest(header, content)) + content


def decode_entry(entry: Any, key: bytes, trusted: TrustedTypes) -> tuple[float, Any]:
    """Return the time and a new copy of the value of an entry.

    Raises:
        EntryError: The entry is damaged, has another format version or key, or contains an object of a class that
            isn't trusted.
    """
    if not isinstance(entry, bytes) or len(entry) < _HEADER.size:
        raise EntryError("It is truncated, or not an entry.")
    magic, version, time, found, digest = _HEADER.unpack_from(entry)
    if magic != _MAGIC:
        raise EntryError("It is not an entry.")
    if version != FORMAT_VERSION:
        raise EntryError(f"Its format version is {version}, not {FORMAT_VERSION}.")
    content = entry[_HEADER.size :]
    if digest != _digest(_HEADER.pack(magic, version, time, found, bytes(32)), content):
        raise EntryError("Its checksum is wrong.")
    if found != key:
        raise EntryError("It belongs to another element.")
    try:
        return time, _load(content, trusted)
    except EntryError:
        raise
    except Exception as error:  # written by another version of a package
        raise EntryError(f"It can't be read ({type(error).__name__}).") from error


def _digest(header: bytes, content: bytes) -> bytes:
    digest = hashlib.sha256(header)
    digest.update(content)
    return digest.digest()


class _Pickler(pickle.Pickler):
    """Writes trusted classes as names, and tensors without the memory that they are views of."""

    def __init__(self, file: io.BytesIO, trusted: TrustedTypes) -> None:
        super().__init__(file, protocol=5)
        self._by_name = trusted.by_name

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, type):
            return None
        name = f"{value.__module__}.{value.__qualname__}"
        return name if self._by_name.get(name) is value else None

    def reducer_override(self, value: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is None or type(value) is not torch.Tensor:
            return NotImplemented
        if value.device.type != "cpu" or value.requires_grad or value.layout is not torch.strided:
            raise EntryError("only dense tensors without gradient on the CPU can be stored")
        flat = value.resolve_conj().resolve_neg().contiguous().reshape(-1)
        data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        name = str(value.dtype).removeprefix("torch.")
        return restore_tensor, (name, tuple(value.shape), bytearray(data))


def restore_tensor(dtype: str, shape: tuple[int, ...], data: bytearray) -> Any:
    """Return the PyTorch tensor with a dtype, a shape, and bytes."""
    torch = need("torch", extra="torch")
    kind = getattr(torch, dtype)
    if not isinstance(kind, torch.dtype):
        raise EntryError(f"{dtype} is not a dtype.")
    return (torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)).reshape(
        shape
    )


def _load(content: bytes, trusted: TrustedTypes) -> Any:
    with io.BytesIO(content) as file:
        return _Unpickler(file, trusted).load()


class _Unpickler(pickle.Unpickler):
    """Unpickles objects of trusted classes only, so that no entry can run other code."""

    def __init__(self, file: io.BytesIO, trusted: TrustedTypes) -> None:
        super().__init__(file)
        self._by_name, self._packages = trusted.by_name, trusted.packages

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name in _TRUSTED:
            return super().find_class(module, name)
        if full_name.startswith(self._packages) and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__.startswith(self._packages):
                return found
        raise EntryError(f"{full_name} is not a trusted type")

    def persistent_load(self, name: Any) -> Any:
        if name not in self._by_name:
            raise EntryError(f"{name} is not a trusted type")
        return self._by_name[name]
