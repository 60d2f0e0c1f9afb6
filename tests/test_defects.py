"""Each defect of Beam's that the page names is one, and each promise made there is kept."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from defects.packages import BEAM, OURS
from defects.promises import PROMISES
from defects.row import Row, agrees
from defects.table import PAGE, TABLES, shown

ROWS = [row for rows in TABLES.values() for row in rows]


@pytest.fixture(autouse=True)
def _quiet():
    """The failures are wanted; what Beam logs of them is not."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def named(row: Row) -> str:
    return row.look.__name__


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_beam_shows_the_defect(row):
    found = row.look(BEAM)
    assert agrees(row.in_beam, found), (
        f"Beam gives {found!r} now: if that is right, remove the row."
    )


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_the_promise_is_kept_here(row):
    assert agrees(row.here, row.look(OURS))


@pytest.mark.parametrize("name", TABLES)
def test_the_page_shows_what_both_packages_print(name):
    """``PYTHONPATH=tests python -m defects`` writes the tables anew."""
    rows = TABLES[name]
    cells = shown(PAGE.read_text("utf-8"), name)
    assert [what for what, _, _ in cells] == [row.what for row in rows]
    for (what, in_beam, here), row in zip(cells, rows, strict=True):
        assert agrees(row.in_beam, in_beam), what
        assert agrees(row.here, here), what


def test_a_promise_and_a_defect_are_not_the_same():
    for row in ROWS:
        assert row.in_beam != row.here, row.what


@pytest.mark.parametrize("promise", PROMISES)
def test_each_promise_is_tested_by_what_it_names(promise):
    looks = {row.look.__name__ for row in ROWS}
    for name in PROMISES[promise]:
        file, _, test = name.partition("::")
        if test:
            assert f"def {test}(" in (Path(__file__).parent / file).read_text("utf-8"), name
        else:
            assert name in looks


def test_each_row_of_the_tables_keeps_a_promise():
    named = {name for names in PROMISES.values() for name in names}
    assert {row.look.__name__ for row in ROWS} <= named
