"""Prepares tables with two to four columns for small screens.

On a narrow screen, the style sheet puts the cells of a row below each other, with the name of the column
beside each cell. Wider tables keep their layout and scroll.
"""

from __future__ import annotations

import re
from html import escape, unescape
from typing import Any

_TABLE = re.compile(r"<table>(?P<head>\s*<thead>.*?</thead>)(?P<body>.*?</table>)", re.DOTALL)
_COLUMN = re.compile(r"<th\b[^>]*>(.*?)</th>", re.DOTALL)
_ROW = re.compile(r"<tr>.*?</tr>", re.DOTALL)
_TAG = re.compile(r"<[^>]+>")


def on_page_content(html: str, **_: Any) -> str:
    return _TABLE.sub(_add_labels, html)


def _add_labels(table: re.Match[str]) -> str:
    names = [unescape(_TAG.sub("", name)).strip() for name in _COLUMN.findall(table["head"])]
    if len(names) not in (2, 3, 4) or "<th" in table["body"]:
        return table[0]
    rows = _ROW.sub(lambda row: _label_row(row[0], names), table["body"]) if names[2:] else None
    return f'<table data-columns="{len(names)}">{table["head"]}{rows or table["body"]}'


def _label_row(row: str, names: list[str]) -> str:
    """Add the column name to each cell except the first, which is the heading of the row."""
    first, *others = row.split("<td")[1:]
    cells = zip(others, names[1:], strict=True)
    labelled = [f'<td data-label="{escape(name, quote=True)}"{cell}' for cell, name in cells]
    return "".join([row.split("<td")[0], "<td", first, *labelled])
