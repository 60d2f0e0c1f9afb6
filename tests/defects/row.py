"""A row of the tables: one case, with its outcome in each package."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from defects.packages import Package


@dataclass(frozen=True)
class Row:
    """A defect of Beam and the behavior of this package.

    Attributes:
        description: What the case does.
        run: Runs the case with a package and returns the outcome as text.
        in_beam: The outcome with Beam. A pattern if a number in it varies.
        here: The outcome with this package. A pattern if a number in it varies.
    """

    description: str
    run: Callable[[Package], str]
    in_beam: str | re.Pattern[str]
    here: str | re.Pattern[str]


def matches(expected: str | re.Pattern[str], outcome: str) -> bool:
    """Return whether an outcome equals the expected text or matches the pattern."""
    if isinstance(expected, re.Pattern):
        return expected.fullmatch(outcome) is not None
    return outcome == expected
