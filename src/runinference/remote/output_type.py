"""The type of a model's answers: its JSON schema, and the values that texts with JSON stand for."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any

from runinference.errors import OptionError, UnusableAnswerError, describe, shorten_text
from runinference.extras import need
from runinference.handlers.stable_bytes import get_class_name, to_stable_bytes
from runinference.remote.endpoint import check_json_fields
from runinference.remote.json_text import check_depth, decode_json, find_non_finite

_VALUE = "value"  # the property that holds a value that isn't an object
_DEFINITIONS = ("$defs", "definitions")
_MAX_ERRORS = 5
_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_REASONING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


class AnswerError(Exception):
    """A text is not an answer of the type. The message gives the reason."""


class OutputType:
    """A type that answers are read as.

    Attributes:
        schema: The JSON schema of an answer. Its root is an object, as servers require: other values are its
            property ``value``.
        is_strict: Whether each object in the schema has exactly the listed properties, as OpenAI's strict mode
            requires.

    Args:
        output_type: A type that pydantic can validate, or a JSON schema.

    Raises:
        OptionError: The type has no JSON schema, or the schema is invalid.
        ImportError: pydantic or jsonschema isn't installed.
    """

    def __init__(self, output_type: Any) -> None:
        is_schema = isinstance(output_type, Mapping)
        self._validator: _SchemaValidator | _TypeValidator = (
            _SchemaValidator(dict(output_type)) if is_schema else _TypeValidator(output_type)
        )
        schema = self._validator.schema
        self._is_wrapped = schema.get("type") != "object"
        options = schema.get("enum", [schema["const"]] if "const" in schema else [])
        self._choices = options if all(isinstance(one, str) for one in options) else []
        self.schema = _wrap(schema) if self._is_wrapped else schema
        self.is_strict = all(map(_is_closed, _iter_nodes(self.schema)))

    @property
    def classes(self) -> Sequence[type]:
        """The classes in the type, whose instances are values."""
        return self._validator.classes

    @property
    def digest(self) -> bytes:
        """A hash of everything besides the schema that affects validation, such as the code of validators."""
        return self._validator.digest

    def parse(self, text: str) -> Any:
        """Return the value of an answer.

        The text is JSON, alone or in a code block. It can also be one of the choices.

        Raises:
            AnswerError: The text is empty, is not JSON, or has another type.
        """
        text = _REASONING.sub("", text).strip()
        if text in self._choices:
            return self._validator.validate(text, json.dumps(text))
        text, value = _read_json(text)
        if self._is_wrapped:
            if isinstance(value, dict) and [*value] == [_VALUE]:
                value = value[_VALUE]
            text = json.dumps(value)
        return self._validator.validate(value, text)


class _TypeValidator:
    """Validates answers with pydantic, which converts no value to another type."""

    def __init__(self, output_type: Any) -> None:
        pydantic = need("pydantic", extra="remote")
        if isinstance(output_type, str) or inspect.isroutine(output_type):
            raise _type_error(output_type, "it is not a type")
        try:
            self._adapter = pydantic.TypeAdapter(output_type)
            schema = self._adapter.json_schema()
        except Exception as error:  # pydantic raises its own errors, NameError, TypeError, ...
            reason = describe(error, 300).partition("\n")[0]
            raise _type_error(output_type, reason.rstrip(".")) from error
        if not schema:
            raise _type_error(output_type, "it allows every value")
        # The classes are pickled before the adapter. Otherwise their validators, which refer to parts of its
        # schema, can't be restored (pydantic 2.14).
        self.classes = [*_find_classes(self._adapter.core_schema)]
        self.schema: dict[str, Any] = _close(schema)

    def __getstate__(self) -> dict[str, Any]:
        return {"classes": self.classes, "_adapter": self._adapter, "schema": self.schema}

    @property
    def digest(self) -> bytes:
        described = _describe_core_schema(self._adapter.core_schema)
        try:
            content = to_stable_bytes(described, _get_name_of_class)
        except Exception:  # the code refers to something that can't be pickled
            content = b""
        return hashlib.sha256(content).digest()

    def validate(self, value: Any, text: str) -> Any:
        pydantic = need("pydantic", extra="remote")
        try:
            return self._adapter.validate_json(text, strict=True)
        except pydantic.ValidationError as error:
            found = error.errors(include_url=False, include_context=False)
            raise AnswerError(
                _join(f"{_join_path(each['loc'])}{each['msg']}" for each in found)
            ) from None


class _SchemaValidator:
    """Validates answers with jsonschema."""

    classes: Sequence[type] = ()
    digest = b""

    def __init__(self, schema: dict[str, Any]) -> None:
        jsonschema = need("jsonschema", extra="remote")
        check_json_fields("output_type", schema)
        try:
            jsonschema.validators.validator_for(schema).check_schema(schema)
        except jsonschema.SchemaError as error:
            raise OptionError(
                f"output_type is not a valid JSON schema: {shorten_text(error.message, 300)} (at "
                f"{error.json_path}). To fix this, correct it."
            ) from None
        if not schema:
            raise OptionError(
                "output_type is an empty JSON schema, which allows every value. To fix this, describe the answer."
            )
        for node in _iter_nodes(schema):
            if "$ref" in node:
                _check_reference(node["$ref"], schema)
        self.schema = schema

    def validate(self, value: Any, text: str) -> Any:
        jsonschema = need("jsonschema", extra="remote")
        nothing = need("referencing", extra="remote").Registry()  # downloads no other schema
        validator = jsonschema.validators.validator_for(self.schema)(self.schema, registry=nothing)
        if errors := [*validator.iter_errors(value)]:
            raise AnswerError(_join(f"{each.json_path}: {each.message}" for each in errors))
        return value


def _describe_core_schema(node: Any, key: str = "") -> Any:
    """Return a schema of pydantic in a form that is the same in other processes, with the code of functions."""
    if isinstance(node, Mapping):
        return {
            name: _describe_core_schema(part, name)
            for name, part in node.items()
            if name not in ("metadata", "serialization")
        }
    if isinstance(node, (list, tuple)):
        return [_describe_core_schema(part) for part in node]
    if key in ("ref", "schema_ref"):  # it contains addresses in memory
        return re.sub(r":\d+", "", node)
    if isinstance(node, type):
        methods = (getattr(node, name, None) for name in _AFTER_VALIDATION)
        return get_class_name(node), [_describe_core_schema(method) for method in methods]
    if isinstance(node, MethodType):
        return _describe_core_schema(node.__func__)
    if isinstance(node, FunctionType) and node.__module__.startswith("pydantic."):
        return node.__qualname__
    return node


#: Methods of classes that are called with the validated values.
_AFTER_VALIDATION = ("__init__", "__post_init__", "model_post_init")


def _get_name_of_class(value: Any) -> str | None:
    return get_class_name(value) if isinstance(value, type) else None


def _read_json(text: str) -> tuple[str, Any]:
    """Return the JSON text of an answer without the code block around it, and its value."""
    if not text:
        raise AnswerError("it is empty")
    try:
        value = decode_json(text.encode())
        check_depth(value)
    except UnusableAnswerError as error:
        raise AnswerError(str(error).replace("The response", "it", 1)) from None
    except ValueError as error:
        blocks = _FENCE.findall(text)
        if len(blocks) == 1 and blocks[0].strip() != text:
            return _read_json(blocks[0].strip())
        raise AnswerError(f"it is not JSON: {error}") from None
    if (found := find_non_finite(value)) is not None:
        raise AnswerError(f"it contains {found}, which is not valid JSON")
    return text, value


def _wrap(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with a value as its only property."""
    inner = {name: part for name, part in schema.items() if name not in (*_DEFINITIONS, "$schema")}
    outer = {name: schema[name] for name in _DEFINITIONS if name in schema}
    return {
        "type": "object",
        "properties": {_VALUE: inner},
        "required": [_VALUE],
        "additionalProperties": False,
        **outer,
    }


def _close(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose objects have all of their properties and no others, unless they are open mappings."""
    closed = copy.deepcopy(schema)
    for node in _iter_nodes(closed):
        node.pop("default", None)
        if "properties" in node and node.setdefault("additionalProperties", False) is False:
            node["required"] = [*node["properties"]]
    return closed


def _is_closed(node: Mapping[str, Any]) -> bool:
    if node.get("type") != "object" and "properties" not in node:
        return True
    has_all = set(node.get("required", ())) == set(node.get("properties", ()))
    return has_all and node.get("additionalProperties") is False


def _iter_nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield a JSON schema and the schemas in it."""
    if not isinstance(schema, dict):
        return
    yield schema
    for name in ("properties", "patternProperties", *_DEFINITIONS):
        for part in schema.get(name, {}).values():
            yield from _iter_nodes(part)
    for name in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for part in schema.get(name, ()):
            yield from _iter_nodes(part)
    for name in ("items", "additionalProperties", "not", "if", "then", "else", "contains"):
        yield from _iter_nodes(schema.get(name))


def _check_reference(reference: str, schema: Mapping[str, Any]) -> None:
    """Raise ``OptionError`` for a reference to another document, to nothing, or to what ``_wrap`` moves."""
    parts = reference.split("/")
    node: Any = schema
    for part in parts[1:]:
        node = node.get(part) if isinstance(node, Mapping) else None
    stays = schema.get("type") == "object" or (len(parts) > 1 and parts[1] in _DEFINITIONS)
    if parts[0] != "#" or node is None or not stays:
        raise OptionError(
            f"output_type has the reference {shorten_text(reference, 100)!r}, which is not in the schema or not "
            "in its $defs. To fix this, copy what it refers to into $defs of the schema."
        )


def _find_classes(schema: Any) -> Iterator[type]:
    """Yield the classes in a schema of pydantic, the inner ones first. Definitions are at the end of a schema."""
    parts = reversed(schema.values()) if isinstance(schema, dict) else schema
    for part in parts:
        if isinstance(part, (dict, list, tuple)):
            yield from _find_classes(part)
    if isinstance(schema, dict) and isinstance(schema.get("cls"), type):
        yield schema["cls"]


def _type_error(output_type: Any, reason: str) -> OptionError:
    return OptionError(
        f"output_type {shorten_text(repr(output_type), 100)} has no JSON schema: {reason}. To fix this, pass a "
        "pydantic model, a dataclass, Literal[...], another type that pydantic supports, or a JSON schema."
    )


def _join_path(path: tuple[Any, ...]) -> str:
    return f"{'.'.join(map(str, path))}: " if path else ""


def _join(errors: Any) -> str:
    found = [*errors]
    more = f"; and {len(found) - _MAX_ERRORS} more" if len(found) > _MAX_ERRORS else ""
    return shorten_text("; ".join(found[:_MAX_ERRORS]), 1_000) + more
