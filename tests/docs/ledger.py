"""The list of all code that the tests don't run, with the reasons, for the page on documentation tests."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from docs.blocks import ROOT, Block, display_path
from docs.shell import STUBS, find_stubbed_lines

PAGE = ROOT / "docs" / "how-the-documentation-is-tested.md"

MAX_SKIPPED = {"python": 0, "shell": 0}
"""The number of blocks of each language that may be skipped. Lower it when you can."""


@dataclass(frozen=True)
class SkippedCode:
    """A block, or a line of one, that the tests don't run, with the reason."""

    page: str
    language: str
    code: str
    reason: str


def skipped_blocks(blocks: list[Block]) -> list[SkippedCode]:
    """Return the blocks that are not run at all."""
    return [
        SkippedCode(
            display_path(block.path), block.language, block.code.splitlines()[0], block.skip
        )
        for block in blocks
        if block.skip
    ]


def stubbed_lines(blocks: list[Block]) -> list[SkippedCode]:
    """Return the lines of shell blocks that are checked instead of run."""
    return [
        SkippedCode(display_path(block.path), "shell", line, STUBS[line.split()[0]])
        for block in blocks
        if block.language == "shell" and not block.skip
        for line in find_stubbed_lines(block)
    ]


def format_table(entries: Iterable[SkippedCode]) -> str:
    """Return the list as a Markdown table, between the marks that show its place on the page."""
    rows = sorted({f"| `{each.page}` | `{each.code}` | {each.reason} |" for each in entries})
    head = ["| where | what | instead |", "|---|---|---|"] if rows else ["Nothing."]
    return "\n".join(["<!-- ledger -->", "", *head, *rows, "", "<!-- /ledger -->"])


def fill_in_table(text: str, blocks: list[Block]) -> str:
    """Return the text of the page with the table for these blocks."""
    table = format_table([*skipped_blocks(blocks), *stubbed_lines(blocks)])
    return re.sub(r"<!-- ledger -->.*<!-- /ledger -->", lambda _: table, text, flags=re.DOTALL)
