"""The first reader: which blocks does the site show? Asked of the site's own Markdown parser."""

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
from docs.blocks import ROOT, Block, Fault

_FENCE = re.compile(r"^(?P<indent>[\s>]*)(?P<ticks>`{3,}|~{3,})(?P<header>[^`]*)$")
_FENCED = "pymdownx.superfences"


@dataclass
class _Found:
    language: str
    title: str
    code: str


class _Recorder:
    """Takes the place of the site's highlighter, and remembers each block it is given."""

    def __init__(self) -> None:
        self.found: list[_Found] = []

    def __call__(self, source, language, css_class, options, md, **_: Any) -> str:
        self.found.append(_Found(language, options.get("title", ""), source))
        return f'<pre data-block="{len(self.found) - 1}"></pre>'

    def parser(self) -> Markdown:
        """The site's parser, as mkdocs.yml sets it up, with this recorder for every language."""
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


class _Visible(HTMLParser):
    """Which recorded blocks are on the page, and not inside a comment of it."""

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


def read(path: Path) -> tuple[list[Block], list[Fault]]:
    """The blocks of a page, or of a module's docstrings, and what is wrong with its fences."""
    text = path.read_text("utf-8")
    lines = text.splitlines()
    blocks: list[Block] = []
    faults: list[Fault] = []
    for first, last, markdown in _texts(path, text):
        found, wrong = _place(path, lines, first, last, _shown(markdown))
        blocks += found
        faults += wrong
    return blocks, faults


def _texts(path: Path, text: str) -> list[tuple[int, int, str]]:
    """The pieces of Markdown in a file, with the lines (from zero) between which each stands."""
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


def _shown(markdown: str) -> list[_Found]:
    recorder, visible = _Recorder(), _Visible()
    visible.feed(recorder.parser().convert(markdown))
    return [recorder.found[number] for number in sorted(visible.numbers)]


def _place(
    path: Path, lines: list[str], first: int, last: int, found: list[_Found]
) -> tuple[list[Block], list[Fault]]:
    """Find each block's fences among the lines, and the fences that belong to no block."""
    blocks: list[Block] = []
    faults: list[Fault] = []
    number = first
    for each in found:
        code = each.code.split("\n") if each.code else []
        while number < last and not _opens(lines, number, code):
            faults += _stray(path, lines, number)
            number += 1
        if number >= last:
            faults.append(
                Fault(
                    path,
                    first + 1,
                    f"a block that the site shows is not in the source: {each.code[:60]!r}",
                    'In a docstring with backslashes, write r""" instead of """.',
                )
            )
            break
        said, unknown = directives.above(path, lines, number + 1)
        match = _FENCE.match(lines[number])
        assert match
        end = number + len(code) + 2
        block = Block(
            path, number + 1, end, each.language, each.title, each.code, match["indent"], said
        )
        blocks.append(block)
        faults += unknown + directives.misused(block)
        faults += directives.header(path, number + 1, match["header"]) + _unusual(block, match)
        number = end
    for rest in range(number, last):
        faults += _stray(path, lines, rest)
    return blocks, faults


def _opens(lines: list[str], number: int, code: list[str]) -> bool:
    """Does the block with these lines of code open here?"""
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


def _unusual(block: Block, fence: re.Match[str]) -> list[Fault]:
    """Fences that the site shows, but the other reader, or GitHub, would not."""
    if fence["ticks"] != "```":
        return [block.fault(f"a fence of {fence['ticks']}", "Write three backticks.")]
    if ">" in fence["indent"]:
        return [block.fault("a block inside a block quote", "Use an admonition (`!!! note`).")]
    return []


def _stray(path: Path, lines: list[str], number: int) -> list[Fault]:
    """A line that looks like a fence, where the site shows no block."""
    match = _FENCE.match(lines[number])
    if not match or not match["header"].strip():
        return []
    return directives.header(path, number + 1, match["header"]) or [
        Fault(
            path,
            number + 1,
            "the site does not show this fence as a block",
            "Close it, indent it as its surroundings ask, and keep it out of HTML comments.",
        )
    ]
