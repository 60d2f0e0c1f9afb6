"""Folding of long examples: the page shows the important lines, and a button shows the rest.

    <!-- shows: 5-12, 20-24 -->

above a code fence lists the visible lines. The copy button always copies all lines.
"""

from __future__ import annotations

import re
from html import escape, unescape
from typing import Any

_FOLDED = re.compile(
    r'<!--\s*shows:\s*(?P<lines>[\d,\s-]+?)\s*-->\s*<div class="(?P<kind>language-python highlight)">'
    r"(?P<before>(?:(?!</?div|<code).)*<code[^>]*>)(?P<code>.*?)</code>(?P<after>(?:(?!</?div).)*)</div>",
    re.DOTALL,
)
_LINE = re.compile(r"[^\n]*\n(?:</span>)*|[^\n]+$")
_TAG = re.compile(r"<[^>]+>")


def on_page_content(html: str, **_: Any) -> str:
    return _FOLDED.sub(_fold, html)


def ranges(text: str) -> list[range]:
    """Parse `5-12, 20` into ranges of line numbers, counted from 1."""
    pairs = (part.strip().partition("-") for part in text.split(","))
    return [range(int(first), int(last or first) + 1) for first, _, last in pairs]


def _fold(block: re.Match[str]) -> str:
    lines = _LINE.findall(block["code"])
    visible = {number for each in ranges(block["lines"]) for number in each}
    parts: list[str] = []
    hidden = False
    for number, line in enumerate(lines, 1):
        if (number not in visible) != hidden:
            parts.append("</span>" if hidden else '<span class="fold"></span><span class="folded">')
            hidden = not hidden
        parts.append(line)
    code = "".join(parts) + ("</span>" if hidden else "")
    code_to_copy = escape(unescape(_TAG.sub("", block["code"])).rstrip("\n"), quote=True)
    button = (
        '<button type="button" class="unfold" aria-expanded="false">'
        f"Show the full example ({len(lines)} lines)</button>"
    )
    return (
        f'<div class="{block["kind"]} folds" data-copy="{code_to_copy}">'
        f"{block['before']}{code}</code>{block['after']}{button}</div>"
    )
