"""What the API reference does to a docstring before it is shown: its doctests become programs.

A session with `>>>` cannot be pasted into a file. The program shown instead imports what it uses, and
prints what the session would have shown.
"""

from __future__ import annotations

import ast
import builtins
import doctest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

_REPR = ("'", '"', "array(")
"""How the value of an expression begins that `print` would write otherwise than the session does."""


Names = dict[str, tuple[str, str]]
_USUAL: Names = {
    "np": ("", "numpy as np"),
    "pd": ("", "pandas as pd"),
    "tf": ("", "tensorflow as tf"),
    "torch": ("", "torch"),
}
"""Names that a module may have without an import statement of its own, as frameworks are imported late."""


class ExamplesAsPrograms(griffe.Extension):
    """Shows the doctests of each docstring as a program that can be copied, and its output."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring and ">>>" in obj.docstring.value:
            file = (obj if obj.is_module else obj.module).filepath
            obj.docstring.value = with_programs(obj.docstring.value, known(file))

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """A class that takes over `__init__` from a base shows what that says of the arguments."""
        for module in pkg.modules.values():
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


def with_programs(text: str, known: Names) -> str:
    """The docstring with each session as a fenced program and what that prints."""
    shown: list[str] = []
    session: list[doctest.Example] = []
    for piece in [*doctest.DocTestParser().parse(text), "end"]:
        if isinstance(piece, doctest.Example):
            session.append(piece)
        elif piece.strip():
            if session:
                printed = "".join(example.want for example in session)
                shown.append(f"```python\n{program(session, known)}\n```\n\n")
                shown.append(f'```text title="Output"\n{printed}```\n\n' if printed else "")
                session = []
            shown.append(piece)
    return "".join(shown[:-1])


def program(session: list[doctest.Example], known: Names) -> str:
    """A whole program that prints what the session shows."""
    bodies = [ast.parse(example.source).body for example in session]
    uses = {each for body in bodies for node in body for each in imported(node).values()}
    uses |= {known[name] for name in _unbound(bodies) if name in known}
    parts = [_lines_of(uses)]
    for example, body in zip(session, bodies, strict=True):
        if not all(imported(node) for node in body):
            apart = isinstance(body[0], ast.ClassDef | ast.FunctionDef)
            first = "\n\n" if apart else "\n"
            gap = "\n\n\n" if apart or parts[-1].startswith(("class ", "def ")) else "\n"
            parts += [first if len(parts) == 1 else gap, _printing(example, body)]
    return "\n".join([parts[0], "".join(parts[1:])]).lstrip("\n")


def known(file: Path) -> Names:
    """For each name of a module, where a program imports it from."""
    package, module = file.parent.name, f"{file.parent.name}.{file.stem}"
    found = dict(_USUAL)
    for node in ast.parse(file.read_text("utf-8")).body:
        found |= imported(node)
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = (module, node.name)
    facade = [node for file in _facade(file.parent) for node in ast.parse(file).body]
    public = {name for node in facade for name in imported(node)}
    return found | {name: (package, name) for name in found if name in public}


def _facade(directory: Path) -> list[str]:
    """The modules that say which names the package itself gives."""
    return [(directory / name).read_text("utf-8") for name in ("__init__.py", "base.py")]


def imported(node: ast.stmt) -> Names:
    """What a statement imports: each name, with its module (none in `import x`) and its words."""
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return {}
    source = node.module or "" if isinstance(node, ast.ImportFrom) else ""
    return {name.asname or name.name: (source, ast.unparse(name)) for name in node.names}


def _order(line: str) -> tuple[bool, bool, str]:
    return "runinference" in line, line.startswith("from"), line


def _lines_of(uses: set[tuple[str, str]]) -> str:
    """Import statements, one for each module, ours last."""
    lines = {f"import {words}" for source, words in uses if not source}
    for source in {source for source, _ in uses if source}:
        names = sorted(words for module, words in uses if module == source)
        lines.add(f"from {source} import {', '.join(names)}")
    return "\n".join(sorted(lines, key=_order))


def _printing(example: doctest.Example, body: list[ast.stmt]) -> str:
    """The source of an example; its value, if the session shows it, is printed."""
    source = example.source.rstrip("\n")
    shows = bool(example.want) and isinstance(body[-1], ast.Expr)
    if not shows or source.startswith("print("):
        return source
    if example.want.startswith(_REPR):
        return f"print(repr({source}))"
    bare = isinstance(body[-1].value, ast.Tuple) and not source.startswith("(")
    return f"print(({source}))" if bare else f"print({source})"


def _unbound(bodies: list[list[ast.stmt]]) -> set[str]:
    """The names that the session takes from the module it stands in."""
    tree = ast.Module([node for body in bodies for node in body], [])
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    loaded = {name.id for name in names if isinstance(name.ctx, ast.Load)}
    stored = {name.id for name in names if not isinstance(name.ctx, ast.Load)}
    return loaded - stored - set(_bound(tree)) - set(dir(builtins))


def _bound(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (name.asname or name.name for name in node.names)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
