"""Every block that is not run as it stands, with the reason: a skip is a debt."""

from __future__ import annotations

from dataclasses import dataclass

from docs.blocks import Block
from docs.shell import STAND_INS, stood_in

CEILING = {"python": 0, "shell": 0}
"""How many blocks of each language may be skipped. Lower it when you can."""


@dataclass(frozen=True)
class Entry:
    """A block, or a line of one, that the tests do not run, and why."""

    block: str
    language: str
    what: str
    reason: str


def skipped(blocks: list[Block]) -> list[Entry]:
    """The blocks that are not run at all."""
    return [
        Entry(block.name, block.language, block.code.splitlines()[0], block.skip)
        for block in blocks
        if block.skip
    ]


def checked(blocks: list[Block]) -> list[Entry]:
    """The lines of shell blocks that are checked instead of run."""
    return [
        Entry(block.name, "shell", line, f"a stand-in {STAND_INS[line.split()[0]]}")
        for block in blocks
        if block.language == "shell" and not block.skip
        for line in stood_in(block)
    ]
