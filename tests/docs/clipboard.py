"""Builds programs from the text that the copy buttons of a page put into the clipboard."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from docs import site_reader
from docs.blocks import ROOT, Block, Problem, Program, attach_outputs
from docs.collect import find_sources
from docs.site import CopiedBlock


def read_programs(page: Path, copied: list[CopiedBlock]) -> tuple[list[Program], list[Problem]]:
    """Return the copied programs with the outputs that the browser shows."""
    blocks = [_to_block(page, each, number) for number, each in enumerate(copied)]
    problems = []
    for block, each in zip(blocks, copied, strict=True):
        if each.clipboard is None:
            hint = "The theme's copy button is missing. Check docs/overrides."
            problems.append(block.problem("the site shows no copy button", hint))
    programs, attach_problems = attach_outputs(blocks)
    return programs, problems + attach_problems


def _to_block(page: Path, copied: CopiedBlock, number: int) -> Block:
    """Return a block of the browser, with the directives of the same block in the source."""
    is_output = copied.language == "text" and copied.title
    code = copied.shown.rstrip("\n") if is_output else copied.clipboard or ""
    on_page = {_identity(block): block for block in _page_blocks(page)}
    block = Block(page, number, number, copied.language, copied.title, code)
    source = on_page.get(_identity(block)) or _docstring_blocks().get(_identity(block))
    if source is None:
        return block
    return replace(block, line=source.line, path=source.path, directives=source.directives)


def compare_with_source(page: Path, copied: list[CopiedBlock]) -> list[Problem]:
    """Return the blocks of the source whose text differs from the clipboard, by even one byte."""
    blocks = [block for block in _page_blocks(page) if block.language != "mermaid"]
    texts = [each.clipboard for each in copied]
    if len(blocks) != len(texts):
        message = f"the page has {len(blocks)} blocks, but the browser shows {len(texts)}"
        return [Problem(page, 1, message, "Look for a fence that the site doesn't show.")]
    return [
        block.problem(f"the clipboard has different text:\n{text}", "Fix docs/overrides.")
        for block, text in zip(blocks, texts, strict=True)
        if block.text != text
    ]


def _identity(block: Block) -> tuple[str, str, str]:
    return block.language, block.title, block.text


@cache
def _page_blocks(page: Path) -> tuple[Block, ...]:
    return tuple(site_reader.read(page)[0]) if page.suffix == ".md" else ()


@cache
def _docstring_blocks() -> dict[tuple[str, str, str], Block]:
    modules = [path for path in find_sources(ROOT) if path.suffix == ".py"]
    return {_identity(block): block for path in modules for block in site_reader.read(path)[0]}
