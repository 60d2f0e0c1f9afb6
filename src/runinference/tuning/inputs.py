"""Load the handler and the elements that a command line names."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from runinference.errors import OptionError, describe, suggest
from runinference.handlers.key_mapping import has_handler_methods
from runinference.tuning.sample import MAX_ELEMENTS


def load_handler(name: str) -> Any:
    """Return the handler at ``module:attribute``. The attribute is a handler, or a function that returns one.

    Raises:
        OptionError: There is no such attribute, or it is not a handler.
    """
    found = _import(name)
    if isinstance(found, type) or (callable(found) and not has_handler_methods(found)):
        found = _call(found, name)
    if not has_handler_methods(found):
        raise OptionError(
            f"{name} must be a model handler, or a function that returns one, but is of type "
            f"{type(found).__name__}."
        )
    return found


def load_elements(name: str) -> list[Any]:
    """Return the first elements of a file, or those at ``module:attribute``.

    Args:
        name: The path of a file with an extension in ``READERS``, or ``module:attribute``. The attribute is a
            list, or a function that returns an iterable.

    Raises:
        OptionError: There is no such file or attribute, or its content can't be read.
    """
    read = READERS.get(Path(name).suffix.lower())
    if read is not None:
        try:
            return list(islice(read(Path(name)), MAX_ELEMENTS))
        except (OSError, ValueError, csv.Error) as error:
            raise OptionError(
                f"The file {name!r} cannot be read: {describe(error, 500)}"
            ) from error
    if ":" not in name:
        raise OptionError(
            f"The elements must be a file that ends in {', '.join(READERS)}, or module:attribute, but "
            f"are {name!r}."
        )
    found = _import(name)
    if callable(found):
        found = _call(found, name)
    if isinstance(found, (str, bytes, dict)) or not isinstance(found, Iterable):
        raise OptionError(
            f"{name} must be a list, or a function that returns an iterable, but is of type "
            f"{type(found).__name__}."
        )
    try:
        return list(islice(found, MAX_ELEMENTS))
    except Exception as error:
        raise OptionError(
            f"The elements of {name} can't be read: {describe(error, 500)}"
        ) from error


def _import(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise OptionError(
            f"{name!r} is not of the form module:attribute, such as my_pipeline:handler."
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise OptionError(f"The module {module_name!r} can't be imported: {error}.") from error
        raise OptionError(
            f"There is no module {module_name!r}. To fix this, run the command in the directory of the module, or "
            "add that directory to PYTHONPATH."
        ) from error
    except Exception as error:
        raise OptionError(
            f"The module {module_name!r} can't be imported: {describe(error, 500)}"
        ) from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise OptionError(
                f"The module {module_name!r} has no attribute {attribute!r}.{suggest(part, dir(found))}"
            )
        found = getattr(found, part)
    return found


def _call(function: Callable[[], Any], name: str) -> Any:
    try:
        return function()
    except Exception as error:
        raise OptionError(
            f"{name} can't be called without arguments: {describe(error, 500)}"
        ) from error


def _read_json_lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number} is not JSON: {error}") from error


def _read_csv(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def _read_array(path: Path) -> Iterator[Any]:
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(rows, np.ndarray) or rows.ndim == 0:
        raise ValueError("it contains no array with rows")
    yield from np.array(rows[:MAX_ELEMENTS])


def _read_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        yield from filter(None, (line.rstrip("\n") for line in file))


#: The functions that read elements, by file extension.
READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".jsonl": _read_json_lines,
    ".csv": _read_csv,
    ".npy": _read_array,
    ".txt": _read_lines,
}
