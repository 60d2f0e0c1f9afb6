"""Checks of option values. Each raises an `OptionError` that names the option, its value and the valid values."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from runinference.errors import OptionError


def check_int(name: str, value: Any, minimum: int = 1) -> None:
    """Check a whole number, such as a number of elements. A ``bool`` is not one.

    >>> check_int("model_copies", -1)
    Traceback (most recent call last):
    runinference.errors.OptionError: model_copies must be at least 1, but is -1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise OptionError(f"{name} must be an integer, but is {_describe(value)}.")
    if value < minimum:
        raise OptionError(f"{name} must be at least {minimum}, but is {value!r}.")


def check_number(name: str, value: Any, minimum: float = 0, unit: str = "") -> None:
    """Check a finite number of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise OptionError(f"{name} must be a number, but is {_describe(value)}.")
    if not _is_finite(value):
        raise OptionError(f"{name} must be a finite number, but is {_describe(value)}.")
    if value < minimum:
        raise OptionError(f"{name} must be at least {minimum}{unit}, but is {value!r}.")


def check_positive(name: str, value: Any, unit: str = "") -> None:
    """Check a finite number greater than 0."""
    check_number(name, value, -math.inf)
    if value <= 0:
        raise OptionError(f"{name} must be greater than 0{unit}, but is {value!r}.")


#: A century. Python and Beam cannot wait much longer.
_MAX_SECS = 100 * 365 * 86_400


def check_seconds(name: str, value: Any, *, may_be_0: bool = False) -> None:
    """Check a time in seconds: a finite number that Python and Beam can wait for."""
    (check_number if may_be_0 else check_positive)(name, value, unit=" seconds")
    if value > _MAX_SECS:
        raise OptionError(
            f"{name} must be at most {_MAX_SECS:,} seconds (a century), but is {_describe(value)}."
        )


def check_bool(name: str, value: Any) -> None:
    """Check a ``bool``. The text ``"False"`` would count as true."""
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False, but is {_describe(value)}.")


def check_text(name: str, value: Any) -> None:
    """Check a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise OptionError(f"{name} must be a non-empty string, but is {_describe(value)}.")


def check_path(name: str, value: Any) -> str:
    """Check the path of a file or folder, and return it as text."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path:
        raise OptionError(f"{name} must be a path, but is {_describe(value)}.")
    return path


def check_callable(name: str, value: Any) -> None:
    """Check a function."""
    if not callable(value):
        raise OptionError(f"{name} must be a function, but is {_describe(value)}.")


def check_mapping(name: str, value: Any) -> None:
    """Check a dictionary whose keys are names."""
    # The values aren't shown, because they can be secrets.
    if not isinstance(value, Mapping):
        raise OptionError(f"{name} must be a dictionary, but is of type {type(value).__name__}.")
    for key in value:
        if not isinstance(key, str):
            raise OptionError(f"The keys of {name} must be names, but one is {_describe(key)}.")


def has_elements(value: Any) -> bool:
    """Return whether a value is an iterable of elements. Text, mappings, and tables are single elements.

    >>> has_elements([1, 2]), has_elements("text"), has_elements({"a": 1})
    (True, False, False)
    """
    is_element = isinstance(value, (str, bytes, Mapping))
    is_element = is_element or hasattr(value, "iloc") or hasattr(value, "num_rows")
    return not is_element and (isinstance(value, Iterable) or hasattr(value, "__getitem__"))


def check_elements(name: str, value: Any) -> None:
    """Raise `OptionError` unless a value is an iterable of elements."""
    if not has_elements(value):
        raise OptionError(
            f"{name} must be a list of elements, but is of type {type(value).__name__}. To fix this, pass a "
            "list: [element]."
        )


def check_names(name: str, value: Any) -> None:
    """Check a list of names. A single text is not a list."""
    is_list = isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))
    if not is_list or not all(isinstance(item, str) and item for item in value):
        raise OptionError(f"{name} must be a list of names, but is {_describe(value)}.")


def check_sha256(name: str, value: Any) -> None:
    """Check a SHA-256 digest in hexadecimal digits."""
    if not isinstance(value, str) or not re.fullmatch("[0-9a-fA-F]{64}", value):
        raise OptionError(
            f"{name} must be a SHA-256 digest of 64 hexadecimal digits, but is {_describe(value)}."
        )


#: How values begin that are keys, in any setting.
SECRET_VALUE = re.compile(
    r"\s*(bearer|basic|digest|token|apikey)\s|\s*-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\s*(sk-|hf_|gh[opsu]_|github_pat_|glpat-|gsk_|xai-|xox[abp]-|nvapi-|r8_|AIza|AKIA|eyJ)[\w-]{12}",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(
    "(^|_)(key|token|secrets?|auth|authorization|cookie|pat|pass|pwd)$"
    "|(apikey|password|passwd|passphrase)$",
    re.IGNORECASE,
)
_URL_WITH_PASSWORD = re.compile(r"[a-z]://[^/\s:@]*:[^/\s@]+@", re.IGNORECASE)


def check_env_vars(value: Any, secret: str | None = None) -> None:
    """Check environment variables: names and values as text, without secrets, which would be pickled.

    Args:
        value: The variables.
        secret: A variable that contains a secret, with any name.
    """
    check_mapping("env_vars", value)
    for variable, text in value.items():
        if not variable or "=" in variable or "\0" in variable:
            raise OptionError(f"env_vars has {variable!r}, which is not the name of a variable.")
        if not isinstance(text, str) or "\0" in text:
            raise OptionError(
                f"The value of {variable} in env_vars must be a string, but is of type {type(text).__name__}. To "
                "fix this, convert it with str()."
            )
        is_secret = variable == secret or _SECRET_VARIABLE.search(variable)
        if is_secret or is_secret_value(text):
            raise OptionError(
                f"env_vars has {variable!r}, which looks like a secret. It would be stored in the pipeline. To "
                "fix this, set the variable in the environment of the workers."
            )


def is_secret_value(value: Any) -> bool:
    """Return whether a value is text that looks like a key, or a URL with a password.

    >>> is_secret_value("sk-0123456789abcdef"), is_secret_value("postgres://me:pw@host"), is_secret_value("http://a")
    (True, True, False)
    """
    if not isinstance(value, str):
        return False
    return bool(SECRET_VALUE.match(value) or _URL_WITH_PASSWORD.search(value))


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that is too large for a float
        return False


def _describe(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value)
    short = text if len(text) <= 60 else f"{text[:57]}…"
    return (
        short
        if isinstance(value, (str, int, float)) or value is None
        else f"{short} ({type(value).__name__})"
    )
