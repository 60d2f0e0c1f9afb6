"""Collects all code blocks, and checks that two independent parsers find the same Python blocks.

The parsers are the Markdown parser of the site (`site_reader`) and pytest-examples.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pytest_examples import find_examples

from docs import site_reader
from docs.blocks import ROOT, Block, Problem, Program, attach_outputs


def find_sources(root: Path = ROOT) -> list[Path]:
    """Return all files of a project that contain documentation: pages, README, and modules."""
    pages = [page for page in (root / "docs").rglob("*.md") if "overrides" not in page.parts]
    readme = [root / "README.md"] if (root / "README.md").exists() else []
    return sorted(pages) + readme + sorted((root / "src").rglob("*.py"))


def read_all(paths: Iterable[Path]) -> tuple[list[Program], list[Block], list[Problem]]:
    """Return all programs, blocks, and problems in these files."""
    programs: list[Program] = []
    blocks: list[Block] = []
    problems: list[Problem] = []
    for path in paths:
        page_blocks, read_problems = site_reader.read(path)
        page_programs, attach_problems = attach_outputs(page_blocks)
        programs += page_programs
        blocks += page_blocks
        empty = [block for block in page_blocks if not block.code.strip()]
        problems += [
            block.problem(
                "an empty block", "Fill it or remove it. `<!-- draws: LR -->` fills a diagram."
            )
            for block in empty
            if not block.role
        ]
        # pytest-examples misreads empty blocks, which `make docs-update` is about to fill.
        parser_problems = [] if empty else compare_parsers(path, page_blocks)
        problems += _first_per_line(read_problems + attach_problems + parser_problems)
    if not blocks:
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
