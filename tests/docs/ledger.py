"""Every block that is not run as it stands, with the reason: a skip is a debt."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from docs.blocks import ROOT, Block, shown
from docs.shell import STAND_INS, stood_in

PAGE = ROOT / "docs" / "tested.md"

CEILING = {"python": 0, "shell": 0}
"""How many blocks of each language may be skipped. Lower it when you can."""


@dataclass(frozen=True)
class Entry:
    """A block, or a line of one, that the tests do not run, and why."""

    page: str
    language: str
    what: str
    reason: str


def skipped(blocks: list[Block]) -> list[Entry]:
    """The blocks that are not run at all."""
    return [
        Entry(shown(block.path), block.language, block.code.splitlines()[0], block.skip)
        for block in blocks
        if block.skip
    ]


def checked(blocks: list[Block]) -> list[Entry]:
    """The lines of shell blocks that are checked instead of run."""
    return [
        Entry(shown(block.path), "shell", line, STAND_INS[line.split()[0]])
        for block in blocks
        if block.language == "shell" and not block.skip
        for line in stood_in(block)
    ]


def table(entries: Iterable[Entry]) -> str:
    """The ledger as a table of the site, between the marks that tell where it stands."""
    rows = sorted({f"| `{each.page}` | `{each.what}` | {each.reason} |" for each in entries})
    head = ["| where | what | instead |", "|---|---|---|"] if rows else ["Nothing."]
    return "\n".join(["<!-- ledger -->", "", *head, *rows, "", "<!-- /ledger -->"])


def on_page(text: str, blocks: list[Block]) -> str:
    """The text of the page with the ledger of these blocks."""
    told = table([*skipped(blocks), *checked(blocks)])
    return re.sub(r"<!-- ledger -->.*<!-- /ledger -->", lambda _: told, text, flags=re.DOTALL)
