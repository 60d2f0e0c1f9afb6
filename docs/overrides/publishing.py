"""Addresses of the published site, edit links, and the description of each page.

`REPO_URL` is the address of the repository. The address of the site follows from it; `SITE_URL` overrides that.
"""

from __future__ import annotations

import re
import sys
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.append(str(Path(__file__).parent))
import plain
import roots

PLACEHOLDER = "https://example.com/runinference"
"""The address of the repository on pages and, by default, in mkdocs.yml."""

_PAGES_HOSTS = {"github.com": "github.io", "gitlab.com": "gitlab.io"}
_MARKS = re.compile(r"`|\*\*|(?<!\w)[*_]|[*_](?!\w)|<[^>]+>|\{[^}]*\}")
_MODULE = re.compile(r"^::: (?P<path>[\w.]+)", re.MULTILINE)


def on_config(config: Any) -> Any:
    config.site_url = config.site_url or guess_site_url(config.repo_url)
    return config


def guess_site_url(repo_url: str) -> str:
    """Return the address of a project's pages on GitHub or GitLab. Other repositories contain their site."""
    address = urlsplit(repo_url.rstrip("/"))
    owner, _, name = address.path.strip("/").partition("/")
    if address.netloc in _PAGES_HOSTS and name:
        return f"https://{owner.lower()}.{_PAGES_HOSTS[address.netloc]}/{name}/"
    return f"{address.geturl()}/"


def source_url(config: Any, path: str) -> str:
    """Return the address at which a file of the repository can be edited."""
    return f"{config.repo_url.rstrip('/')}/{config.edit_uri.removesuffix('docs/')}{path}"


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Set the edit link and the description of a page, and the address of the repository in its text.

    Pages of the reference are edited in the module that they document, whose name is their title.
    """
    place = page.file.src_uri
    if place in roots.PAGES:
        page.edit_url = source_url(config, roots.PAGES[place])
    elif module := _MODULE.match(markdown):
        root = Path(config.config_file_path).parent
        page.edit_url = source_url(config, module_path(module["path"], root))
        page.meta.setdefault("title", module["path"])
    if not place.endswith(".ipynb"):
        text = plain.plain_markdown(markdown, config)
        page.meta.setdefault("description", describe(text))
    return markdown.replace(PLACEHOLDER, config.repo_url.rstrip("/"))


def on_page_content(html: str, page: Any, **_: Any) -> None:
    """Set the description of a notebook, which has no Markdown source."""
    if page.file.src_uri.endswith(".ipynb"):
        text = plain.render_notebook(Path(page.file.abs_src_path))
        page.meta.setdefault("description", describe(text))


def module_path(module: str, root: Path) -> str:
    """Return the path of a module relative to the root of the repository."""
    path = Path("src", *module.split("."))
    return str(path / "__init__.py" if (root / path).is_dir() else path.with_suffix(".py"))


def describe(text: str) -> str:
    """Return the first sentence of a page without Markdown."""
    return unescape(_MARKS.sub("", plain.first_sentence(text)))
