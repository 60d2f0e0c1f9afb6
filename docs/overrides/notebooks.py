"""MkDocs hook that makes notebooks look like the other pages.

mkdocs-jupyter adds the styles and scripts of JupyterLab, two of them from other hosts, and doesn't resolve links.
This hook keeps only the content of the notebook and resolves its links; the site's style sheet does the rest.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from hashlib import sha256
from html import escape
from pathlib import Path
from posixpath import join, normpath
from typing import Any

sys.path.append(str(Path(__file__).parent))
import needs
import provenance

_LOG = logging.getLogger("mkdocs.plugins.notebooks")
_WRAPPER = '<div class="jupyter-wrapper">'
_STYLE = re.compile(r"<style.*?</style>\s*", re.DOTALL)
_CODE = re.compile(
    r'<div class="zeroclipboard-container">.*?</clipboard-copy>\s*</div>\s*'
    r'<div class="highlight-ipynb hl-python"><pre>(?P<code>.*?)\n?</pre></div>\s*'
    r'<div class="clipboard-copy-txt".*?</div>',
    re.DOTALL,
)
_SHOWN = (
    r'<div class="language-python highlight"><pre><span></span><code>\g<code></code></pre></div>'
)
_NO_ALT = 'alt="No description has been provided for this image"'
_LINK = re.compile(r'(?<=href=")(?P<path>[^":#]+\.(?:md|ipynb))(?P<anchor>#[^"]*)?(?=")')


def on_page_content(html: str, page: Any, files: Any, config: Any, **_: Any) -> str:
    if not page.file.src_uri.endswith(".ipynb") or _WRAPPER not in html:
        return html
    page.meta.setdefault("search", {"boost": 0.5})  # guides rank above notebooks
    html = _STYLE.sub("", html[html.index(_WRAPPER) :])
    html = _CODE.sub(_SHOWN, html)
    html = html.replace(' tabindex="0"', "").replace('class="anchor-link"', 'class="headerlink"')
    html = html.replace('id="cell-id=', 'id="cell-')  # the copy button accepts no "="
    html = html.replace('<table border="1" class="dataframe">', "<table>")
    for alt in alt_texts(Path(page.file.abs_src_path)):
        html = html.replace(_NO_ALT, f'alt="{escape(alt, quote=True)}"', 1)
    html = _LINK.sub(lambda link: _resolve_link(link, page, files), html)
    name = page.file.src_uri.rpartition("/")[2]
    root = Path(config.config_file_path).parent
    source = Path(page.file.abs_src_path)
    line = _download_line(name, source) + _run_line(source, root)
    return html.replace("</h1>", f"</h1>\n{line}", 1)


def alt_texts(notebook: Path) -> list[str]:
    """Return the text alternative of each image, from `alt` in the metadata of its cell."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return [
        cell["metadata"].get("alt", "")
        for cell in cells
        for output in cell.get("outputs", [])
        if any(kind.startswith("image/") for kind in output.get("data", {}))
    ]


def _resolve_link(link: re.Match[str], page: Any, files: Any) -> str:
    """Return the URL of a page that a notebook links by its file name."""
    path = normpath(join(page.file.src_uri.rpartition("/")[0], link["path"]))
    file = files.get_file_from_path(path)
    if file is None:
        _LOG.warning(f"{page.file.src_uri} links to {link['path']}, which does not exist.")
        return link[0]
    return file.url_relative_to(page.file) + (link["anchor"] or "")


def _run_line(notebook: Path, root: Path) -> str:
    """Return when the tests last executed this version of the notebook, if they did."""
    key = sha256(notebook.read_bytes()).hexdigest()[:16]
    blocks = provenance.read_report(root).get("blocks", {})
    return (
        f'<p class="ran">{escape(provenance.format_run(blocks[key]))}</p>' if key in blocks else ""
    )


def _download_line(name: str, notebook: Path) -> str:
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    needed = needs.find_requirements(code)
    needed.packages.append("notebook")
    command = f" To run it: <code>{escape(needed.command)}</code> in a clone of the repository."
    link = f'<a href="{name}" download>Download this notebook</a>.'
    return f'<p class="download">{link}{"" if needs.is_installed(needed, text) else command}</p>'
