"""Collects all code blocks, and checks that two independent parsers find the same Python blocks.

pytest-examples collects the Python blocks. The Markdown parser of the site (`site_reader`) finds them too, with
their outputs and the blocks in other languages.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from pytest_examples import EvalExample, find_examples

from docs import site_reader
from docs.blocks import ROOT, Block, Problem, Program, attach_outputs


def find_sources(root: Path = ROOT) -> list[Path]:
    """Return all files of a project that contain documentation: pages, README, and modules."""
    pages = [page for page in (root / "docs").rglob("*.md") if "overrides" not in page.parts]
    readme = [root / "README.md"] if (root / "README.md").exists() else []
    return sorted(pages) + readme + sorted((root / "src").rglob("*.py"))


def set_style(eval_example: EvalExample, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the style of code on pages, which are narrower than modules."""
    # The only format of ruff in which pytest-examples replaces the lines by those of the page.
    monkeypatch.setenv("RUFF_OUTPUT_FORMAT", "concise")
    monkeypatch.chdir(eval_example.tmp_path)  # away from the settings of the project
    eval_example.set_config(
        line_length=88,
        target_version="py310",
        quotes="double",
        ruff_line_length=88,
        ruff_select=["E", "F", "I", "B", "UP", "SIM", "C4", "W"],
        ruff_ignore=["FURB", "PL", "RET", "RUF"],  # in the default selection of ruff
    )


def read_all(paths: Iterable[Path]) -> tuple[list[Program], list[Block], list[Problem]]:
    """Return the programs and blocks of these files, without those of files with problems, and the problems.

    A wrong fence or title has consequences for the blocks around it. Only the cause is reported.
    """
    programs: list[Program] = []
    blocks: list[Block] = []
    problems: list[Problem] = []
    is_empty = True
    for path in paths:
        page_blocks, page_problems = site_reader.read(path)
        is_empty = is_empty and not page_blocks
        page_programs, attach_problems = attach_outputs(page_blocks)
        empty = [block for block in page_blocks if not block.code.strip()]
        page_problems = page_problems or [
            block.problem(
                "an empty block", "Fill it or remove it. `<!-- draws: LR -->` fills a diagram."
            )
            for block in empty
            if not block.role
        ]
        # pytest-examples misreads empty blocks, which `make docs-update` is about to fill.
        page_problems = page_problems or ([] if empty else compare_parsers(path, page_blocks))
        page_problems = page_problems or attach_problems
        problems += _first_per_line(page_problems)
        if not page_problems:
            programs += page_programs
            blocks += page_blocks
    if is_empty:
        problems.append(
            Problem(ROOT / "docs", 1, "no block was found at all", "Check docs.site_reader.")
        )
    return programs, blocks, problems


def compare_parsers(path: Path, blocks: list[Block]) -> list[Problem]:
    """Return the Python blocks that the two parsers read differently."""
    on_site = {
        block.line: block.code.strip() for block in blocks if block.language.startswith("py")
    }
    in_tests = {
        example.start_line: example.source.strip()
        for example in find_examples(path)
        if example.source.strip()
    }
    only_site = [
        Problem(
            path,
            line,
            "the site shows this Python block, but pytest-examples doesn't find it",
            "Open it with ```python: three backticks, and only spaces before them.",
        )
        for line in sorted(on_site.keys() - in_tests.keys())
    ]
    only_tests = [
        Problem(
            path,
            line,
            "pytest-examples finds this Python block, but the site doesn't show it",
            "Fix its fences or its indentation, and keep it out of HTML comments.",
        )
        for line in sorted(in_tests.keys() - on_site.keys())
    ]
    different = [
        Problem(
            path,
            line,
            "the two parsers read different code in this block",
            "Indent every line at least as far as the fence.",
        )
        for line in sorted(on_site.keys() & in_tests.keys())
        if on_site[line] != in_tests[line]
    ]
    return only_site + only_tests + different


def _first_per_line(problems: list[Problem]) -> list[Problem]:
    """Keep the first problem of each line, which is the most specific one."""
    first: dict[tuple[Path, int], Problem] = {}
    for problem in problems:
        first.setdefault((problem.path, problem.line), problem)
    return list(first.values())
