"""Rewrites the outputs on pages, and changes no other byte.

python -m docs.update [page ...]
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
from docs.blocks import Block, Problem, Program
from docs.collect import find_sources, read_all
from docs.run import PRELOADED, Interpreter, RunResult, environment, run, start_fork_server

Change = tuple[Block, str]


def rewrite(path: Path, changes: list[Change]) -> None:
    """Replace the text between the fences of these blocks."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = file.read().splitlines(keepends=True)
    for block, text in sorted(changes, key=lambda change: change[0].line, reverse=True):
        ending = "\r\n" if lines[block.line - 1].endswith("\r\n") else "\n"
        inside = [f"{block.indent}{line}".rstrip() + ending for line in text.split("\n")]
        lines[block.line : block.end_line - 1] = inside
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("".join(lines))


def needed_changes(program: Program, result: RunResult) -> tuple[list[Change], list[Problem]]:
    """Return the changes to the page, and the problems that only the author can fix."""
    changes = []
    for block, actual in compare.shown_and_actual(program, result):
        if actual.strip() and not compare.matches(block, actual):
            changes.append((block, actual.strip("\n")))
    changed_lines = {block.line for block, _ in changes}
    problems = [
        problem
        for problem in compare.check_run(program, result)
        if problem.line not in changed_lines
    ]
    return changes, problems


@contextmanager
def start_interpreters(env: dict[str, str]) -> Iterator[SimpleQueue[Interpreter]]:
    """Start one interpreter for each CPU, at most four."""
    free: SimpleQueue[Interpreter] = SimpleQueue()
    with ExitStack() as stack:
        for _ in range(min(os.cpu_count() or 1, 4)):
            free.put(stack.enter_context(start_fork_server(env, PRELOADED)))
        yield free


def update(programs: list[Program]) -> list[Problem]:
    """Run the programs and rewrite their pages."""
    with tempfile.TemporaryDirectory(prefix="docs-home-") as home:
        env = environment(Path(home))
        with start_interpreters(env) as free, ThreadPoolExecutor(free.qsize()) as pool:

            def run_one(program: Program) -> tuple[list[Change], list[Problem]]:
                interpreter = free.get()
                try:
                    return needed_changes(program, run(program, interpreter, env))
                finally:
                    free.put(interpreter)

            results = list(pool.map(run_one, (each for each in programs if not each.block.skip)))
    _apply([change for changes, _ in results for change in changes])
    return [problem for _, problems in results for problem in problems]


def update_notebooks(paths: list[Path]) -> list[Problem]:
    """Run these notebooks and store their outputs."""
    with tempfile.TemporaryDirectory(prefix="docs-home-") as home:
        env = environment(Path(home))
        return [problem for path in paths for problem in notebooks.update(path, env)]


def update_ledger() -> None:
    """Update the list of code that the tests don't run."""
    text = ledger.PAGE.read_text("utf-8")
    _, blocks, _ = read_all(find_sources())
    ledger.PAGE.write_text(ledger.fill_in_table(text, blocks), "utf-8")


def _apply(changes: list[Change]) -> None:
    by_path: dict[Path, list[Change]] = {}
    for block, text in changes:
        print(f"{block.name}: rewrote the output")
        by_path.setdefault(block.path, []).append((block, text))
    for path, each in by_path.items():
        rewrite(path, each)
    if not changes:
        print("nothing to rewrite: the outputs are up to date")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path)
    paths = [page.resolve() for page in parser.parse_args().pages]
    notebook_paths = [path for path in paths if path.suffix == ".ipynb"] or (
        [] if paths else notebooks.find_notebooks()
    )
    pages = [path for path in paths if path not in notebook_paths] if paths else find_sources()
    programs, _, problems = read_all(pages) if pages else ([], [], [])
    problems += update(programs)
    problems += update_notebooks(notebook_paths)
    update_ledger()
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
