"""A stand-in for a language model whose output is constrained by a JSON schema."""

from __future__ import annotations

import re
from typing import Any


def answer_schema(text: str, schema: Any, root: Any) -> Any:
    """Return a JSON value that conforms to a schema, with the words and numbers of a text.

    Args:
        text: The text.
        schema: The schema of the value.
        root: The schema of the whole answer, which references refer to.

    >>> answer_schema("Is it good or bad? Bad!", {"enum": ["good", "bad"]}, {})
    'bad'
    """
    if "$ref" in schema:
        node = root
        for name in schema["$ref"].split("/")[1:]:
            node = node[name]
        return answer_schema(text, node, root)
    choices = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if choices:
        return max(choices, key=lambda choice: text.lower().rfind(str(choice).lower()))
    for name in ("anyOf", "oneOf", "allOf"):
        if name in schema:
            return answer_schema(text, schema[name][0], root)
    kind = schema.get("type", "object")
    if kind == "object":
        parts = schema.get("properties", {})
        return {name: answer_schema(text, part, root) for name, part in parts.items()}
    if kind == "array":
        return [answer_schema(text, schema["items"], root)]
    if kind in ("integer", "number"):
        return _find_number(text, schema, kind == "integer")
    return {"boolean": "yes" in text.lower(), "null": None}.get(kind, text.upper())


def _find_number(text: str, schema: Any, is_integer: bool) -> float:
    found = re.search(r"\d+" if is_integer else r"\d+(\.\d+)?", text)
    number: float = (int if is_integer else float)(found.group() if found else 0)
    if "minimum" in schema:
        number = max(number, schema["minimum"])
    return min(number, schema["maximum"]) if "maximum" in schema else number
