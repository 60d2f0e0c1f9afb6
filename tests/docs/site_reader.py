"""Reads the code blocks of a page with the Markdown parser of the site."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from markdown import Markdown
from mkdocs.utils.yaml import yaml_load
from pymdownx.superfences import highlight_validator

from docs import directives
from docs.blocks import ROOT, Block, Problem

_FENCE = re.compile(r"^(?P<indent>[\s>]*)(?P<ticks>`{3,}|~{3,})(?P<header>[^`]*)$")
_FENCED = "pymdownx.superfences"


@dataclass
class _SiteBlock:
    language: str
    title: str
    code: str


class _Recorder:
    """Replaces the highlighter of the site, and records each block."""

    def __init__(self) -> None:
        self.found: list[_SiteBlock] = []

    def __call__(self, source, language, css_class, options, md, **_: Any) -> str:
        self.found.append(_SiteBlock(language, options.get("title", ""), source))
        return f'<pre data-block="{len(self.found) - 1}"></pre>'

    def parser(self) -> Markdown:
        """Return the parser that mkdocs.yml configures, with this recorder for every language."""
        names, settings = [], {}
        for extension in _extensions():
            name, given = (
                next(iter(extension.items())) if isinstance(extension, dict) else (extension, {})
            )
            names.append(name)
            settings[name] = dict(given or {})
        fence = {"name": "*", "class": "", "format": self, "validator": highlight_validator}
        settings[_FENCED] = {**settings.get(_FENCED, {}), "custom_fences": [fence]}
        return Markdown(extensions=names, extension_configs=settings)


class _VisibleBlocks(HTMLParser):
    """Finds the recorded blocks that are visible, that is, not inside an HTML comment."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        number = dict(attrs).get("data-block")
        if tag == "pre" and number is not None:
            self.numbers.append(int(number))


@cache
def _extensions() -> list[Any]:
    with (ROOT / "mkdocs.yml").open(encoding="utf-8") as file:
        return yaml_load(file)["markdown_extensions"]


def read(path: Path) -> tuple[list[Block], list[Problem]]:
    """Return the blocks of a page or of the docstrings of a module, and the problems with its fences."""
    text = path.read_text("utf-8")
    lines = text.splitlines()
    blocks: list[Block] = []
    problems: list[Problem] = []
    for first, last, markdown in _markdown_texts(path, text):
        found, found_problems = _locate(path, lines, first, last, _visible_blocks(markdown))
        blocks += found
        problems += found_problems
    return blocks, problems


def _markdown_texts(path: Path, text: str) -> list[tuple[int, int, str]]:
    """Return the pieces of Markdown in a file, with the first and last line of each, counted from 0."""
    if path.suffix != ".py":
        return [(0, len(text.splitlines()), text)]
    pieces = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and "```" in docstring:
                place = node.body[0]
                pieces.append((place.lineno - 1, place.end_lineno or place.lineno, docstring))
    return sorted(pieces)


def _visible_blocks(markdown: str) -> list[_SiteBlock]:
    recorder, visible = _Recorder(), _VisibleBlocks()
    visible.feed(recorder.parser().convert(markdown))
    return [recorder.found[number] for number in sorted(visible.numbers)]


def _locate(
    path: Path, lines: list[str], first: int, last: int, found: list[_SiteBlock]
) -> tuple[list[Block], list[Problem]]:
    """Find the fences of each block, and the fences that belong to no block."""
    blocks: list[Block] = []
    problems: list[Problem] = []
    number = first
    for each in found:
        code = each.code.split("\n") if each.code else []
        while number < last and not _opens_at(lines, number, code):
            problems += _check_stray_fence(path, lines, number)
            number += 1
        if number >= last:
            problems.append(
                Problem(
                    path,
                    first + 1,
                    f"a block that the site shows is not in the source: {each.code[:60]!r}",
                    'In a docstring with backslashes, write r""" instead of """.',
                )
            )
            break
        found_directives, unknown = directives.read_directives(path, lines, number + 1)
        match = _FENCE.match(lines[number])
        assert match
        end = number + len(code) + 2
        block = Block(
            path,
            number + 1,
            end,
            each.language,
            each.title,
            each.code,
            match["indent"],
            found_directives,
        )
        blocks.append(block)
        problems += unknown + directives.check_directives(block)
        problems += directives.check_fence(path, number + 1, match["header"])
        problems += _check_portability(block, match)
        number = end
    for rest in range(number, last):
        problems += _check_stray_fence(path, lines, rest)
    return blocks, problems


def _opens_at(lines: list[str], number: int, code: list[str]) -> bool:
    """Return whether the block with these lines of code opens here."""
    match = _FENCE.match(lines[number])
    if not match:
        return False
    inside = [line.lstrip("> \t").rstrip() for line in lines[number + 1 :][: len(code)]]
    closing = number + len(code) + 1
    return (
        inside == [line.strip().lstrip("> ") for line in code]
        and closing < len(lines)
        and lines[closing].lstrip("> \t").startswith(match["ticks"])
    )


def _check_portability(block: Block, fence: re.Match[str]) -> list[Problem]:
    """Return the fences that the site shows, but pytest-examples or GitHub doesn't."""
    if fence["ticks"] != "```":
        return [block.problem(f"a fence of {fence['ticks']}", "Write three backticks.")]
    if ">" in fence["indent"]:
        return [block.problem("a block inside a block quote", "Use an admonition (`!!! note`).")]
    return []


def _check_stray_fence(path: Path, lines: list[str], number: int) -> list[Problem]:
    """Return a problem if the line looks like a fence, but the site shows no block."""
    match = _FENCE.match(lines[number])
    if not match or not match["header"].strip():
        return []
    return directives.check_fence(path, number + 1, match["header"]) or [
        Problem(
            path,
            number + 1,
            "the site doesn't show this fence as a block",
            "Close it, indent it like the text around it, and keep it out of HTML comments.",
        )
    ]
