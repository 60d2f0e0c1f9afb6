"""Rewrite the outputs (or, with --format, the code) that pages show; every other byte stays.

python -m docs.update [--format] [page ...]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue

from docs import compare, ledger, notebooks
from docs.agree import read_all, sources
from docs.blocks import Block, Fault, Program
from docs.lint import formatted
from docs.run import Interpreter, Ran, environment, forking, run

Change = tuple[Block, str]


def rewrite(path: Path, changes: list[Change]) -> None:
    """Put other text between the fences of these blocks."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = file.read().splitlines(keepends=True)
    for block, text in sorted(changes, key=lambda change: change[0].line, reverse=True):
        ending = "\r\n" if lines[block.line - 1].endswith("\r\n") else "\n"
        inside = [f"{block.indent}{line}".rstrip() + ending for line in text.split("\n")]
        lines[block.line : block.end_line - 1] = inside
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("".join(lines))


def wanted(program: Program, ran: Ran) -> tuple[list[Change], list[Fault]]:
    """What the page should show instead, and what only its author can mend."""
    changes = []
    for block, actual in compare.pairs(program, ran):
        if actual.strip() and not compare.same(block, actual):
            changes.append((block, actual.strip("\n")))
    mended = {block.line for block, _ in changes}
    faults = [fault for fault in compare.faults_of(program, ran) if fault.line not in mended]
    return changes, faults


@contextmanager
def interpreters(env: dict[str, str]) -> Iterator[SimpleQueue[Interpreter]]:
    """As many interpreters as there are processors to run them, at most four."""
    free: SimpleQueue[Interpreter] = SimpleQueue()
    with ExitStack() as stack:
        for _ in range(min(os.cpu_count() or 1, 4)):
            free.put(stack.enter_context(forking(env)))
        yield free


def update(programs: list[Program]) -> list[Fault]:
    """Run the programs and rewrite their pages."""
    with tempfile.TemporaryDirectory(prefix="docs-home-") as home:
        env = environment(Path(home))
        with interpreters(env) as free, ThreadPoolExecutor(free.qsize()) as pool:

            def one(program: Program) -> tuple[list[Change], list[Fault]]:
                interpreter = free.get()
                try:
                    return wanted(program, run(program, interpreter, env))
                finally:
                    free.put(interpreter)

            results = list(pool.map(one, (each for each in programs if not each.block.skip)))
    _apply([change for changes, _ in results for change in changes], "the output")
    return [fault for _, faults in results for fault in faults]


def update_notebooks(books: list[Path]) -> list[Fault]:
    """Run these notebooks and store what they give."""
    with tempfile.TemporaryDirectory(prefix="docs-home-") as home:
        env = environment(Path(home))
        return [fault for book in books for fault in notebooks.update(book, env)]


def reformat(blocks: list[Block]) -> None:
    """Format the code that pages show, as ruff would."""
    python = [block for block in blocks if block.language == "python"]
    texts = formatted(python) if python else []
    pairs = zip(python, texts, strict=True)
    _apply([(block, text) for block, text in pairs if text != block.code.rstrip("\n")], "the code")


def write_ledger() -> None:
    """Tell the site what the tests do not run."""
    text = ledger.PAGE.read_text("utf-8")
    _, blocks, _ = read_all(sources())
    ledger.PAGE.write_text(ledger.on_page(text, blocks), "utf-8")


def _apply(changes: list[Change], what: str) -> None:
    by_path: dict[Path, list[Change]] = {}
    for block, text in changes:
        print(f"{block.name}: rewrote {what}")
        by_path.setdefault(block.path, []).append((block, text))
    for path, each in by_path.items():
        rewrite(path, each)
    if not changes:
        print(f"nothing to rewrite: {what} is as it should be")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--format", action="store_true")
    asked = parser.parse_args()
    paths = [page.resolve() for page in asked.pages]
    books = [path for path in paths if path.suffix == ".ipynb"] or (
        [] if paths else notebooks.notebooks()
    )
    pages = [path for path in paths if path not in books] if paths else sources()
    programs, blocks, faults = read_all(pages) if pages else ([], [], [])
    faulty = {fault.path for fault in faults}  # their blocks may not be what they seem
    if asked.format:
        reformat([block for block in blocks if block.path not in faulty])
    else:
        faults += update([each for each in programs if each.block.path not in faulty])
        faults += update_notebooks(books)
        write_ledger()
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
