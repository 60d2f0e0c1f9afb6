"""Imports between packages point downwards, and no framework is imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import runinference

SOURCES = Path(runinference.__file__).parent
#: Packages from the top layer down. A module imports from its own package and from lower layers only.
LAYERS = [
    {"facade", "testing", "samples"},
    {"transforms"},
    {"public handlers"},
    {"frameworks", "remote", "serving"},
    {"handlers"},
    {"batching", "caching", "collate"},
    {"shared"},
]
FACADE = {"runinference", "runinference.base", "runinference.utils"}
SHARED = {f"runinference.{name}" for name in ("errors", "results", "extras", "model_file")}
PURE = {"batching", "caching", "collate", "shared"}
FRAMEWORKS = {
    "sklearn",
    "joblib",
    "skops",
    "pandas",
    "torch",
    "torchvision",
    "transformers",
    "tensorflow",
    "xgboost",
    "lightgbm",
    "onnxruntime",
    "httpx",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCES.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCES.rglob("*.py"))}


def imports(module: str) -> set[str]:
    """The modules that a module imports, wherever in its text; names of other packages in full."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (submodules & MODULES.keys()) or {node.module}
    return found


def own_imports(module: str) -> set[str]:
    return imports(module) & MODULES.keys()


def package(module: str) -> str:
    if module in FACADE:
        return "facade"
    if module in SHARED:
        return "shared"
    if module.count(".") == 1 and module.endswith("_inference"):
        return "public handlers"
    return module.split(".")[1]


def layer(module: str) -> int | None:
    """The number of the layer of a module, from the top; None for a module that has not moved yet."""
    return next((n for n, names in enumerate(LAYERS) if package(module) in names), None)


def test_imports_between_packages_point_downwards():
    offending = [
        f"{module} imports {other}"
        for module in MODULES
        for other in own_imports(module)
        if None not in (layer(module), layer(other))
        and package(module) != package(other)
        and layer(module) >= layer(other)
    ]
    assert not offending, "\n".join(offending)


def test_no_modules_import_each_other():
    graph = {module: own_imports(module) - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(error.args[1]))


def test_the_lower_packages_import_neither_beam_nor_a_framework():
    for module in MODULES:
        if package(module) in PURE and module != "runinference.model_file":
            roots = {name.partition(".")[0] for name in imports(module)}
            assert not roots & (FRAMEWORKS - {"pandas"} | {"apache_beam"}), module


def test_no_module_imports_beams_own_inference():
    for module in MODULES:
        assert not any(name.startswith("apache_beam.ml") for name in imports(module)), module


def test_importing_the_package_imports_no_framework():
    program = "import sys, runinference; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    before = subprocess.run(
        [sys.executable, "-c", program.replace("runinference", "apache_beam")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not (set(loaded.stdout.split()) - set(before.stdout.split())) & FRAMEWORKS
