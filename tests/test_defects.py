"""Every defect of Beam in docs/coming-from-apache-beam.md exists, and this package doesn't have it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from defects.packages import BEAM, OURS
from defects.promises import PROMISES
from defects.row import Row, matches
from defects.table import PAGE, TABLES, read_table

ROWS = [row for rows in TABLES.values() for row in rows]


@pytest.fixture(autouse=True)
def _silence_logs():
    """Silence the logs of expected failures."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def case_name(row: Row) -> str:
    return row.run.__name__


@pytest.mark.parametrize("row", ROWS, ids=case_name)
def test_beam_has_the_defect(row):
    outcome = row.run(BEAM)
    assert matches(row.in_beam, outcome), (
        f"Beam returns {outcome!r} now. If this is correct, remove the row."
    )


@pytest.mark.parametrize("row", ROWS, ids=case_name)
def test_this_package_does_not_have_the_defect(row):
    assert matches(row.here, row.run(OURS))


@pytest.mark.parametrize("name", TABLES)
def test_page_shows_the_outcomes_of_both_packages(name):
    """`PYTHONPATH=tests python -m defects` updates the tables."""
    rows = TABLES[name]
    cells = read_table(PAGE.read_text("utf-8"), name)
    assert [description for description, _, _ in cells] == [row.description for row in rows]
    for (description, in_beam, here), row in zip(cells, rows, strict=True):
        assert matches(row.in_beam, in_beam), description
        assert matches(row.here, here), description


def test_outcomes_of_the_packages_differ():
    for row in ROWS:
        assert row.in_beam != row.here, row.description


@pytest.mark.parametrize("promise", PROMISES)
def test_every_promise_names_existing_tests(promise):
    case_names = set(map(case_name, ROWS))
    for name in PROMISES[promise]:
        file, _, test = name.partition("::")
        if test:
            assert f"def {test}(" in (Path(__file__).parent / file).read_text("utf-8"), name
        else:
            assert name in case_names


def test_every_row_belongs_to_a_promise():
    named = {name for names in PROMISES.values() for name in names}
    assert set(map(case_name, ROWS)) <= named
