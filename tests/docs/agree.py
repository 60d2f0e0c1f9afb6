"""The second reader, pytest-examples, and whether it sees the same Python blocks as the site."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pytest_examples import find_examples

from docs import site_reader
from docs.blocks import ROOT, Block, Fault, Program, pair_up


def sources(root: Path = ROOT) -> list[Path]:
    """Every file of a project whose blocks are shown: its pages, its README, its modules."""
    pages = [page for page in (root / "docs").rglob("*.md") if "overrides" not in page.parts]
    readme = [root / "README.md"] if (root / "README.md").exists() else []
    return sorted(pages) + readme + sorted((root / "src").rglob("*.py"))


def read_all(paths: Iterable[Path]) -> tuple[list[Program], list[Block], list[Fault]]:
    """All programs, all blocks and all faults of these files."""
    programs: list[Program] = []
    blocks: list[Block] = []
    faults: list[Fault] = []
    for path in paths:
        seen, wrong = site_reader.read(path)
        paired, unpaired = pair_up(seen)
        programs += paired
        blocks += seen
        empty = [block for block in seen if not block.code.strip()]
        faults += [
            block.fault(
                "an empty block", "Fill it, or take it away; `<!-- draws: LR -->` fills it."
            )
            for block in empty
            if not block.shows
        ]
        # An empty block, which `make docs-update` is about to fill, confuses pytest-examples.
        faults += _once(wrong + unpaired + ([] if empty else disagreements(path, seen)))
    if not blocks:
        faults.append(
            Fault(ROOT / "docs", 1, "no block was found at all", "Look for a broken reader.")
        )
    return programs, blocks, faults


def disagreements(path: Path, seen: list[Block]) -> list[Fault]:
    """Python blocks that only one of the two readers finds."""
    site = {block.line: block.code.strip() for block in seen if block.language.startswith("py")}
    tests = {
        example.start_line: example.source.strip()
        for example in find_examples(path)
        if example.source.strip()
    }
    only_site = [
        Fault(
            path,
            line,
            "the site shows this Python block, but pytest-examples does not find it",
            "Open it with ```python: three backticks, and nothing but spaces before them.",
        )
        for line in sorted(site.keys() - tests.keys())
    ]
    only_tests = [
        Fault(
            path,
            line,
            "pytest-examples finds this Python block, but the site does not show it",
            "Mend its fences, or its indentation; take it out of the HTML comment.",
        )
        for line in sorted(tests.keys() - site.keys())
    ]
    differing = [
        Fault(
            path,
            line,
            "the two readers do not see the same code in this block",
            "Indent every line of it as far as its fence.",
        )
        for line in sorted(site.keys() & tests.keys())
        if site[line] != tests[line]
    ]
    return only_site + only_tests + differing


def _once(faults: list[Fault]) -> list[Fault]:
    """One fault a line: the first says most."""
    first: dict[tuple[Path, int], Fault] = {}
    for fault in faults:
        first.setdefault((fault.path, fault.line), fault)
    return list(first.values())
