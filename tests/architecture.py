"""Read the structure of the library from its source: modules, packages, layers and imports.

``python -m architecture`` (with ``tests`` on the path) updates the diagram on the architecture page.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import runinference

SOURCES = Path(runinference.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"

#: Packages from the top layer down. A module imports from its own package and from lower layers only.
LAYERS = [
    ["facade", "cascade", "monitoring", "testing", "samples", "tuning"],
    ["transforms"],
    ["public handlers"],
    ["frameworks", "remote", "serving"],
    ["handlers"],
    ["batching", "caching", "collate"],
    ["shared modules"],
]
FACADE = {f"runinference{name}" for name in ("", ".base", ".utils", ".ml_transform", ".yaml")}
SHARED = {
    f"runinference.{name}"
    for name in ("errors", "checks", "results", "extras", "download", "model_file")
}
#: What the boxes of the diagram contain, for packages that are not folders.
CONTENTS = {
    "facade": "runinference, base, utils, ml_transform, yaml",
    "public handlers": "*_inference",
    "shared modules": "errors, checks, results, extras, download, model_file",
}


def _module_name(path: Path) -> str:
    parts = path.relative_to(SOURCES.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module_name(path): path for path in sorted(SOURCES.rglob("*.py"))}


def imports(module: str) -> set[str]:
    """Return the names of all modules that a module imports anywhere in its source."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (submodules & MODULES.keys()) or {node.module}
    return found


def internal_imports(module: str) -> set[str]:
    """Return the modules of the library that a module imports."""
    return imports(module) & MODULES.keys()


def package(module: str) -> str:
    """Return the package of a module, as named in `LAYERS`."""
    if module in FACADE:
        return "facade"
    if module in SHARED:
        return "shared modules"
    if module.count(".") == 1 and module.endswith("_inference"):
        return "public handlers"
    return module.split(".")[1]


def layer(module: str) -> int:
    """Return the number of the layer of a module, counted from the top."""
    return next(number for number, names in enumerate(LAYERS) if package(module) in names)


def package_imports() -> dict[str, set[str]]:
    """Return, for each package, the other packages that its modules import."""
    graph: dict[str, set[str]] = {name: set() for names in LAYERS for name in names}
    for module in MODULES:
        graph[package(module)] |= {package(other) for other in internal_imports(module)}
    return {name: others - {name} for name, others in graph.items()}


def diagram() -> str:
    """Return the packages and their imports as a Mermaid flowchart, without arrows that others imply."""
    graph = package_imports()
    lines = ["flowchart TD"]
    for number, names in enumerate(LAYERS):
        lines.append(f"    subgraph layer{number} [ ]")
        lines += [f'        {_node(name)}["{_label(name)}"]' for name in names]
        lines.append("    end")
    for name, others in graph.items():
        implied = set().union(*(_reachable(graph, other) for other in others))
        lines += [f"    {_node(name)} --> {_node(other)}" for other in sorted(others - implied)]
    return "\n".join(lines)


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    direct = graph[start]
    return direct.union(*(_reachable(graph, other) for other in direct))


def _node(name: str) -> str:
    return name.replace(" ", "_")


def _label(name: str) -> str:
    return f"{name}<br>{CONTENTS[name]}" if name in CONTENTS else f"{name}/"


def update_diagram(page: str) -> str:
    """Return the text of the architecture page with an up-to-date diagram."""
    block = f"<!-- packages -->\n```mermaid\n{diagram()}\n```"
    return re.sub(r"<!-- packages -->\n```mermaid\n.*?\n```", lambda _: block, page, flags=re.S)


if __name__ == "__main__":
    PAGE.write_text(update_diagram(PAGE.read_text()))
