"""Tables that a phone can show: of two to four columns, each row can stand as a short list.

The page stays a table; on a narrow screen the style sheet sets the cells of a row below each other, and says
beside each what its column is called. Wider tables keep their shape, and scroll.
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
    return _TABLE.sub(_stacking, html)


def _stacking(table: re.Match[str]) -> str:
    names = [unescape(_TAG.sub("", name)).strip() for name in _COLUMN.findall(table["head"])]
    if len(names) not in (2, 3, 4) or "<th" in table["body"]:
        return table[0]
    rows = _ROW.sub(lambda row: _labelled(row[0], names), table["body"]) if names[2:] else None
    return f'<table data-columns="{len(names)}">{table["head"]}{rows or table["body"]}'


def _labelled(row: str, names: list[str]) -> str:
    """The cells of a row with the names of their columns; the first cell names the row itself."""
    first, *others = row.split("<td")[1:]
    cells = zip(others, names[1:], strict=True)
    told = [f'<td data-label="{escape(name, quote=True)}"{cell}' for cell, name in cells]
    return "".join([row.split("<td")[0], "<td", first, *told])
