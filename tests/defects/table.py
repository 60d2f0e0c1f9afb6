"""Generate the tables of docs/coming-from-apache-beam.md by running every case with both packages."""

from __future__ import annotations

import re
from pathlib import Path

from defects import cost, multiple_models, options, results
from defects.packages import BEAM, OURS
from defects.row import Row

PAGE = Path(__file__).parents[2] / "docs" / "coming-from-apache-beam.md"

TABLES: dict[str, tuple[Row, ...]] = {
    "results": results.ROWS,
    "options": options.ROWS,
    "multiple_models": multiple_models.ROWS,
    "cost": cost.ROWS,
}


def format_row(description: str, in_beam: str, here: str) -> str:
    """Format a row of a Markdown table."""
    return f"| {description} | {_escape(in_beam)} | {_escape(here)} |"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def update_tables(page: str) -> str:
    """Run every case and return the page with updated tables."""
    for name, rows in TABLES.items():
        lines = [format_row(row.description, row.run(BEAM), row.run(OURS)) for row in rows]
        head = ["| Case | Beam 2.77 | runinference |", "|---|---|---|"]
        table = "\n".join([f"<!-- {name} -->", "", *head, *lines, "", f"<!-- /{name} -->"])
        page = re.sub(
            f"<!-- {name} -->.*<!-- /{name} -->", lambda _, t=table: t, page, flags=re.DOTALL
        )
    return page


def read_table(page: str, name: str) -> list[list[str]]:
    """Return the cells of a table of the page, without its header."""
    [inside] = re.findall(f"<!-- {name} -->(.*)<!-- /{name} -->", page, flags=re.DOTALL)
    lines = [text for text in inside.strip().splitlines() if text][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", text)[1:-1]] for text in lines]
