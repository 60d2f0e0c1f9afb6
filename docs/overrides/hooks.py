"""MkDocs hooks that adjust each page: test comments, search ranking, and error blocks."""

from __future__ import annotations

import re
from typing import Any

_DIRECTIVE = re.compile(
    r"^[ \t]*<!--\s*(?:raises|varies|draws|skip)\s*:.*?-->[ \t]*\n", re.MULTILINE
)
_ERROR = re.compile(r'(<div class="language-text highlight)("><span class="filename">Error</span>)')
_NAME = re.compile(r'(<h1 id="runinference\.[^>]*>(?:(?!</h1>).)*?runinference\.)(?=\w)', re.DOTALL)
_BOOST = {
    "reference/": 0.3,
    "how-the-documentation-is-tested.md": 0.3,
    "architecture.md": 0.6,
    "examples/": 0.5,
    "changelog.md": 0.3,
    "contributing.md": 0.3,
    "batching.md": 1.5,
    "coming-from-apache-beam.md": 2,
    "model-refresh.md": 2,
    "pre-trained-models.md": 1.5,
    "prediction-results.md": 2,
}
"""Search ranking of pages, 1 by default. Guides rank above the reference."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Set the search ranking, and remove the comments that are meant for the documentation tests."""
    for place, boost in _BOOST.items():
        if page.file.src_uri.startswith(place):
            page.meta.setdefault("search", {"boost": boost})
    if page.file.src_uri == "contributing.md":  # it documents the comments
        return markdown
    return _DIRECTIVE.sub("", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Mark error blocks and signatures, and allow a line break in module names.

    Error messages wrap like prose, so that the hint is visible. Signatures have no copy button.
    """
    html = _NAME.sub(r"\1<wbr>", html, count=1)
    html = _ERROR.sub(r"\1 error\2", _DIRECTIVE.sub("", html))
    return html.replace("doc-signature highlight", "doc-signature highlight no-copy")
