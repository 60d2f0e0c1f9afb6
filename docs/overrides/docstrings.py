"""Griffe extension for the API reference: shows doctests as complete programs.

A session with `>>>` can't be pasted into a file. The program shown instead imports what it uses, and prints
what the session would have shown.
"""

from __future__ import annotations

import ast
import builtins
import doctest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

Names = dict[str, tuple[str, str]]
"""For each name, the module to import it from (empty for `import x`) and the imported words."""

_REPR = ("'", '"', "array(")
"""Beginnings of values for which `print(value)` differs from what the session shows."""

_USUAL: Names = {
    "np": ("", "numpy as np"),
    "pd": ("", "pandas as pd"),
    "tf": ("", "tensorflow as tf"),
    "torch": ("", "torch"),
}
"""Names that doctests use without an import statement in their module, because frameworks are imported late."""


class ExamplesAsPrograms(griffe.Extension):
    """Replaces the doctests in each docstring with a program that can be copied, and its output."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring and ">>>" in obj.docstring.value:
            file = (obj if obj.is_module else obj.module).filepath
            obj.docstring.value = with_programs(obj.docstring.value, known_names(file))

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Document the arguments of each class that inherits `__init__`, from its base class."""
        for module in _all_modules(pkg):
            for cls in module.classes.values():
                init = None if cls.is_alias else cls.inherited_members.get("__init__")
                if init and init.docstring and not cls.name.startswith("_"):
                    _, _, rest = init.docstring.value.partition("\n\n")
                    before = cls.docstring.value if cls.docstring else ""
                    cls.docstring = griffe.Docstring(
                        f"{before.rstrip()}\n\n{rest}",
                        parent=cls,
                        parser=init.docstring.parser,
                        parser_options=init.docstring.parser_options,
                    )


def _all_modules(package: griffe.Module) -> Iterator[griffe.Module]:
    for module in package.modules.values():
        yield module
        yield from _all_modules(module)


def with_programs(text: str, known: Names) -> str:
    """Return the docstring with each session replaced by a fenced program and its output."""
    pieces: list[str] = []
    session: list[doctest.Example] = []
    for piece in [*doctest.DocTestParser().parse(text), "end"]:
        if isinstance(piece, doctest.Example):
            session.append(piece)
        elif piece.strip():
            if session:
                printed = "".join(example.want for example in session)
                pieces.append(f"```python\n{program(session, known)}\n```\n\n")
                pieces.append(f'```text title="Output"\n{printed}```\n\n' if printed else "")
                session = []
            pieces.append(piece)
    return "".join(pieces[:-1])


def program(session: list[doctest.Example], known: Names) -> str:
    """Return a complete program that prints what the session shows."""
    bodies = [ast.parse(example.source).body for example in session]
    uses = {each for body in bodies for node in body for each in imported_names(node).values()}
    uses |= {known[name] for name in _unbound_names(bodies) if name in known}
    parts = [_import_lines(uses)]
    for example, body in zip(session, bodies, strict=True):
        if not all(imported_names(node) for node in body):
            is_definition = isinstance(body[0], ast.ClassDef | ast.FunctionDef)
            first = "\n\n" if is_definition else "\n"
            gap = "\n\n\n" if is_definition or parts[-1].startswith(("class ", "def ")) else "\n"
            parts += [first if len(parts) == 1 else gap, _printing_source(example, body)]
    return "\n".join([parts[0], "".join(parts[1:])]).lstrip("\n")


def known_names(file: Path) -> Names:
    """Return the names that are available in a module, with the public module to import each one from."""
    root = _root_package(file)
    module = ".".join([root.name, *file.relative_to(root).with_suffix("").parts])
    names = dict(_USUAL)
    for node in ast.parse(file.read_text("utf-8")).body:
        names |= imported_names(node)
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names[node.name] = (module, node.name)
    public = _public_names(root)
    return {name: public.get(found, found) for name, found in names.items()}


def _root_package(file: Path) -> Path:
    return next(folder for folder in file.parents if not (folder.parent / "__init__.py").exists())


def _public_names(root: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """Map the place where each name is defined to the public module that exports it.

    A name that the package itself exports is imported from there.
    """
    facade = [root / "base.py", root / "__init__.py"]
    packages = [root / name / "__init__.py" for name in ("testing", "samples", "tuning")]
    public: dict[tuple[str, str], tuple[str, str]] = {}
    for file in [*packages, *sorted(root.glob("*_inference.py")), *facade]:
        parts = (file.parent if file.stem == "__init__" else file.with_suffix("")).parts
        module = root.name if file in facade else ".".join(parts[parts.index(root.name) :])
        tree = ast.parse(file.read_text("utf-8"))
        imported = {k: v for node in tree.body for k, v in imported_names(node).items()}
        exported = _exported_names(tree)
        public |= {found: (module, name) for name, found in imported.items() if name in exported}
    return public


def _exported_names(tree: ast.Module) -> set[str]:
    """Return the strings in `__all__`."""
    values = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return {
        each.value for value in values for each in ast.walk(value) if isinstance(each, ast.Constant)
    }


def imported_names(node: ast.stmt) -> Names:
    """Return the names that a statement imports."""
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return {}
    source = node.module or "" if isinstance(node, ast.ImportFrom) else ""
    return {name.asname or name.name: (source, ast.unparse(name)) for name in node.names}


def _import_lines(uses: set[tuple[str, str]]) -> str:
    """Return the import statements, one for each module, with this package last."""
    lines = {f"import {words}" for source, words in uses if not source}
    for source in {source for source, _ in uses if source}:
        names = sorted(words for module, words in uses if module == source)
        lines.add(f"from {source} import {', '.join(names)}")
    return "\n".join(sorted(lines, key=_import_order))


def _import_order(line: str) -> tuple[bool, bool, str]:
    return "runinference" in line, line.startswith("from"), line


def _printing_source(example: doctest.Example, body: list[ast.stmt]) -> str:
    """Return the source of an example, with a `print` around its value if the session shows the value."""
    source = example.source.rstrip("\n")
    is_shown = bool(example.want) and isinstance(body[-1], ast.Expr)
    if not is_shown or source.startswith("print("):
        return source
    if example.want.startswith(_REPR):
        return f"print(repr({source}))"
    is_bare_tuple = isinstance(body[-1].value, ast.Tuple) and not source.startswith("(")
    return f"print(({source}))" if is_bare_tuple else f"print({source})"


def _unbound_names(bodies: list[list[ast.stmt]]) -> set[str]:
    """Return the names that the session uses from its module."""
    tree = ast.Module([node for body in bodies for node in body], [])
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    loaded = {name.id for name in names if isinstance(name.ctx, ast.Load)}
    stored = {name.id for name in names if not isinstance(name.ctx, ast.Load)}
    return loaded - stored - set(_bound_names(tree)) - set(dir(builtins))


def _bound_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (name.asname or name.name for name in node.names)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
