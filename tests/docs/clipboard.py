"""From the clipboard to the output: what a reader copies is a program, and prints what the page shows."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from docs import site_reader
from docs.agree import sources
from docs.blocks import ROOT, Block, Fault, Program, pair_up
from docs.site import Copied


def programs(page: Path, seen: list[Copied]) -> tuple[list[Program], list[Fault]]:
    """The programs that the clipboard held, with the outputs as the browser shows them."""
    blocks = [_block(page, each, number) for number, each in enumerate(seen)]
    faults = []
    for block, each in zip(blocks, seen, strict=True):
        if each.clipboard is None:
            cure = "The theme's copy button is missing: look at docs/overrides."
            faults.append(block.fault("the site shows no copy button", cure))
    paired, unpaired = pair_up(blocks)
    return paired, faults + unpaired


def _block(page: Path, each: Copied, number: int) -> Block:
    """What the browser showed, as a block; the comments of the source stand only in the source."""
    shows = each.language == "text" and each.title
    code = each.shown.rstrip("\n") if shows else each.clipboard or ""
    here = {_name(block): block for block in _written(page)}
    block = Block(page, number, number, each.language, each.title, code)
    source = here.get(_name(block)) or _in_docstrings().get(_name(block))
    if source is None:
        return block
    return replace(block, line=source.line, path=source.path, directives=source.directives)


def differing(page: Path, seen: list[Copied]) -> list[Fault]:
    """Blocks of the page's source whose text is not, to the byte, what the clipboard held."""
    written = [block for block in _written(page) if block.language != "mermaid"]
    held = [each.clipboard for each in seen]
    if len(written) != len(held):
        told = f"the page has {len(written)} blocks, and the browser shows {len(held)}"
        return [Fault(page, 1, told, "Look for a fence that the site does not show.")]
    return [
        block.fault(f"the clipboard held something else:\n{text}", "Mend docs/overrides.")
        for block, text in zip(written, held, strict=True)
        if block.text != text
    ]


def _name(block: Block) -> tuple[str, str, str]:
    return block.language, block.title, block.text


@cache
def _written(page: Path) -> tuple[Block, ...]:
    return tuple(site_reader.read(page)[0]) if page.suffix == ".md" else ()


@cache
def _in_docstrings() -> dict[tuple[str, str, str], Block]:
    modules = [path for path in sources(ROOT) if path.suffix == ".py"]
    return {_name(block): block for path in modules for block in site_reader.read(path)[0]}
