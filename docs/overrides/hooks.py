"""What the site does to a page before it is shown."""

from __future__ import annotations

import re
from typing import Any

_DIRECTIVE = re.compile(
    r"^[ \t]*<!--\s*(?:raises|varies|draws|skip)\s*:.*?-->[ \t]*\n", re.MULTILINE
)


_ERROR = re.compile(r'(<div class="language-text highlight)("><span class="filename">Error</span>)')


def on_page_content(html: str, **_: Any) -> str:
    """Mark what shows an error: its message is prose, and wraps, so that nobody misses the cure."""
    return _ERROR.sub(r"\1 error\2", html)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Take away the comments that are meant for the tests of the documentation."""
    return _DIRECTIVE.sub("", markdown)
