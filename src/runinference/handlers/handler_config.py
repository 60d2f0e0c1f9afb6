"""Create handlers from plain values (text, numbers, dictionaries), as in YAML and from other languages."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache
from typing import Any

from apache_beam.io.filesystems import FileSystems
from apache_beam.utils.python_callable import PythonCallableWithSource

from runinference.errors import OptionError, describe, suggest
from runinference.handlers.options import reject_unknown

_ROOT = __name__.partition(".")[0]
#: The names of types that Beam YAML uses, from JSON Schema.
_TYPES = {"boolean": bool, "integer": int, "number": float, "string": str, "bytes": bytes}


@cache
def get_handler_types() -> Mapping[str, str]:
    """Return the name of the module of each public handler by the name of its class, without importing any."""
    types = {}
    for module in pkgutil.iter_modules(importlib.import_module(_ROOT).__path__):
        if module.name.endswith("_inference"):
            source = pkgutil.get_data(_ROOT, f"{module.name}.py") or b""
            names = [
                name
                for node in ast.parse(source).body
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
                for name in ast.literal_eval(node.value)
            ]
            types.update({n: f"{_ROOT}.{module.name}" for n in names if "ModelHandler" in n})
    return types


def create_handler(provider: str | Callable[..., Any], config: Mapping[str, Any]) -> Any:
    """Return a handler.

    Args:
        provider: The name of a public handler, such as ``"SklearnModelHandlerNumpy"``, the full name of another
            class or function that returns a handler, or such a class or function.
        config: The arguments of the provider as plain values. Functions and classes are
            ``{"callable": "module.name"}`` or ``{"path": "file.py", "name": "function"}``, as in Beam YAML. Other
            objects are ``{"type": "module.Class", "config": {…}}``. An enumeration's member is its name.

    Raises:
        OptionError: There is no such handler or function, or the provider rejects its arguments.
    """
    create: Any = find_provider(provider) if isinstance(provider, str) else provider
    parameters = _get_parameters(create)
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        reject_unknown(create, config, parameters)
    missing = [
        name
        for name, each in parameters.items()
        if each.default is each.empty
        and name not in config
        and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]
    if missing:
        raise OptionError(
            f"{_get_name(create)} lacks the option {missing[0]!r}. To fix this, add it to the config."
        )
    return create(
        **{
            name: _convert(name, value, parameters.get(name), create)
            for name, value in config.items()
        }
    )


def find_provider(name: str) -> Any:
    """Return the class of a public handler, or the object with a full name.

    Raises:
        OptionError: There is none.
        ImportError: The framework of the handler isn't installed. The message names the extra.
    """
    types = get_handler_types()
    if name in types:
        return getattr(importlib.import_module(types[name]), name)
    if "." not in name:
        raise OptionError(
            f"There is no handler type {name!r}.{suggest(name, types)} To fix this, use the full name of your own "
            f"class, such as my_module.MyHandler, or one of: {', '.join(sorted(types))}."
        )
    return _load("type", lambda: PythonCallableWithSource.load_from_source(name), name)


def to_plain(value: Any) -> Any:
    """Return rows of other languages as dictionaries, also in lists and dictionaries."""
    if isinstance(value, Mapping):
        return {name: to_plain(each) for name, each in value.items()}
    if hasattr(value, "_asdict"):
        return to_plain(value._asdict())
    return [*map(to_plain, value)] if isinstance(value, (list, tuple)) else value


def parse_output(output: Any) -> Any:
    """Return the option ``output`` with Python types instead of the names of types that Beam YAML uses."""
    if not isinstance(output, Mapping):
        return output
    return {name: _parse_type(name, declared) for name, declared in output.items()}


def _parse_type(name: str, declared: Any) -> Any:
    if not isinstance(declared, (str, Mapping)):
        return declared
    schema = {"type": declared} if isinstance(declared, str) else declared
    kind = schema.get("type")
    if kind == "array" and "items" in schema:
        return Sequence[_parse_type(name, schema["items"])]  # type: ignore[misc]
    if kind not in _TYPES:
        raise OptionError(
            f"The type of {name!r} in output is {declared!r}.{suggest(kind, _TYPES)} To fix this, use one of "
            f"{', '.join(_TYPES)}, or {{type: array, items: number}}."
        )
    return _TYPES[kind]


def _convert(name: str, value: Any, parameter: inspect.Parameter | None, owner: Any) -> Any:
    """Return the object that a plain value describes."""
    if parameter is not None and isinstance(parameter.default, Enum) and isinstance(value, str):
        members = type(parameter.default).__members__
        if value not in members:
            raise OptionError(
                f"{name} is {value!r}.{suggest(value, members)} Its values are {', '.join(members)}."
            )
        return members[value]
    if not isinstance(value, Mapping):
        return value
    keys = set(value)
    if keys == {"callable"}:
        source = value["callable"]
        return _load(name, lambda: PythonCallableWithSource.load_from_source(source), source)
    if keys == {"path", "name"}:
        return _load(name, lambda: _load_from_file(value["path"], value["name"]), value["path"])
    if keys == {"type", "config"}:
        modules = (inspect.getmodule(owner), importlib.import_module(_ROOT))
        found = [getattr(each, value["type"]) for each in modules if hasattr(each, value["type"])]
        return create_handler(found[0] if found else value["type"], value["config"] or {})
    return value


def _load(option: str, load: Callable[[], Any], source: str) -> Any:
    try:
        return load()
    except Exception as error:
        raise OptionError(
            f"{option} is {source!r}, which can't be loaded: {describe(error, 500)}. To fix this, use the full "
            "name of a class or function that can be imported, or the source code of one."
        ) from error


def _load_from_file(path: str, name: str) -> Any:
    with FileSystems.open(path) as file:
        return PythonCallableWithSource.load_from_script(file.read().decode(), name)


def _get_parameters(create: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(create).parameters
    except (TypeError, ValueError):  # a class in C without a signature
        keyword = inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)
        return {"options": keyword}


def _get_name(create: Any) -> str:
    return getattr(create, "__name__", type(create).__name__)
