"""The tables of docs/coming-from-beam.md: each row as a run of both packages printed it."""

from __future__ import annotations

import re
from pathlib import Path

from defects import cost, options, records, several
from defects.packages import BEAM, OURS
from defects.row import Row

PAGE = Path(__file__).parents[2] / "docs" / "coming-from-beam.md"

TABLES: dict[str, tuple[Row, ...]] = {
    "records": records.ROWS,
    "options": options.ROWS,
    "several": several.ROWS,
    "cost": cost.ROWS,
}


def line(what: str, in_beam: str, here: str) -> str:
    """A row as a line of a Markdown table."""
    return f"| {what} | {_cell(in_beam)} | {_cell(here)} |"


def _cell(said: str) -> str:
    return said.replace("|", "\\|")


def rewritten(page: str) -> str:
    """The page with its tables as both packages print them now."""
    for name, rows in TABLES.items():
        lines = [line(row.what, row.look(BEAM), row.look(OURS)) for row in rows]
        head = ["| a program | in Beam 2.77 | here |", "|---|---|---|"]
        table = "\n".join([f"<!-- {name} -->", "", *head, *lines, "", f"<!-- /{name} -->"])
        page = re.sub(
            f"<!-- {name} -->.*<!-- /{name} -->", lambda _, t=table: t, page, flags=re.DOTALL
        )
    return page


def shown(page: str, name: str) -> list[list[str]]:
    """The cells of a table of the page, without its head."""
    [inside] = re.findall(f"<!-- {name} -->(.*)<!-- /{name} -->", page, flags=re.DOTALL)
    lines = [text for text in inside.strip().splitlines() if text][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", text)[1:-1]] for text in lines]
