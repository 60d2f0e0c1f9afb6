"""Load a scikit-learn estimator from a pickle, joblib or skops file."""

from __future__ import annotations

import enum
import pickle
from collections.abc import Sequence
from typing import Any, BinaryIO

from runinference.errors import ModelLoadError, ModelUnpicklingError
from runinference.extras import need


class ModelFileType(enum.Enum):
    """The format of an estimator's file.

    Loading a pickle or joblib file can run arbitrary code. Load only files that you trust, and pin them with
    ``model_sha256``. Loading a skops file runs no code, and creates only objects of types that you trust.

    Attributes:
        PICKLE: Written by ``pickle.dump``; the default.
        JOBLIB: Written by ``joblib.dump``.
        SKOPS: Written by ``skops.io.dump``.
    """

    PICKLE = 1
    JOBLIB = 2
    SKOPS = 3


def load_pickle(file: BinaryIO, path: str, file_type: ModelFileType) -> Any:
    """Load an estimator from a pickle or joblib file, or raise ``ModelUnpicklingError``."""
    library = pickle if file_type is ModelFileType.PICKLE else need("joblib", extra="sklearn")
    try:
        return library.load(file)
    except ImportError:
        raise
    except Exception as error:
        raise _wrong_file_type(file, path, file_type) from error


def load_skops(file: BinaryIO, path: str, trusted_types: Sequence[str] | None) -> Any:
    """Load an estimator from a skops file; raise ``ModelLoadError`` if it contains types that are not trusted."""
    skops_io = need("skops.io", extra="sklearn")
    data = file.read()
    try:
        unknown = skops_io.get_untrusted_types(data=data)
    except Exception as error:
        raise _wrong_file_type(file, path, ModelFileType.SKOPS) from error
    if missing := sorted(set(unknown) - set(trusted_types or ())):
        raise ModelLoadError(
            f"The skops file {path!r} contains types that are not trusted: {', '.join(missing)}. If you know "
            f"and trust them, pass trusted_types={missing!r}."
        )
    return skops_io.loads(data, trusted=unknown)


def _wrong_file_type(file: BinaryIO, path: str, file_type: ModelFileType) -> ModelUnpicklingError:
    file.seek(0)
    start = file.read(64)
    if not start:
        hint = "It is empty"
    elif start.startswith(b"PK"):
        hint = "It is a zip archive, like a skops file: for skops, pass model_file_type=ModelFileType.SKOPS"
    elif file_type is ModelFileType.PICKLE and start[:1] in b"\x80\x78\x1fB\xfd":
        hint = "If joblib wrote it, pass model_file_type=ModelFileType.JOBLIB; otherwise it may be truncated"
    elif file_type is not ModelFileType.PICKLE and start[:1] == b"\x80":
        hint = "It starts like a pickle: pass model_file_type=ModelFileType.PICKLE; otherwise it may be truncated"
    else:
        hint = f"It starts with {start[:12]!r}"
    return ModelUnpicklingError(f"The file {path!r} cannot be loaded as {file_type}. {hint}.")
