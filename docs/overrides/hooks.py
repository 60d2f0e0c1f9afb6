"""What the site does to a page before it is shown."""

from __future__ import annotations

import re
from typing import Any

_DIRECTIVE = re.compile(
    r"^[ \t]*<!--\s*(?:raises|varies|draws|skip)\s*:.*?-->[ \t]*\n", re.MULTILINE
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Take away the comments that are meant for the tests of the documentation."""
    return _DIRECTIVE.sub("", markdown)
