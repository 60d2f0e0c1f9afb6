"""A row of the table: what a program does with either package."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from defects.packages import Package


@dataclass(frozen=True)
class Row:
    """One defect, and the promise kept here.

    Attributes:
        what: What the program does.
        look: Runs it with a package, and says what came of it.
        in_beam: What comes of it in Beam: a text, or a pattern where a number varies.
        here: The same for this package.
    """

    what: str
    look: Callable[[Package], str]
    in_beam: str | re.Pattern[str]
    here: str | re.Pattern[str]


def agrees(expected: str | re.Pattern[str], said: str) -> bool:
    """Whether a text is the expected one, or fits the pattern."""
    if isinstance(expected, re.Pattern):
        return expected.fullmatch(said) is not None
    return said == expected
