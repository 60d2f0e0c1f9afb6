"""Plain Markdown versions of all pages, and `llms.txt`, for language models and other programs.

`batching/` is also available as `batching/index.md`: the source of the page without the comments for the
tests. The API reference is rendered from the docstrings, and notebooks with their stored outputs.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.append(str(Path(__file__).parent))
from docstrings import ExamplesAsPrograms

_COMMENT = re.compile(r"^[ \t]*<!--.*?-->[ \t]*\n", re.MULTILINE | re.DOTALL)
_HTML = re.compile(r"^</?div[^>]*>\n", re.MULTILINE)
_OBJECT = re.compile(r"^::: (?P<path>[\w.]+)\n(?:    .*\n?)*", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)(\{[^}]*\})?")
_texts: dict[str, str] = {}
_state = {"command": "build"}


def on_startup(command: str, **_: Any) -> None:
    """Remember the command: `make serve` skips the plain versions, so that edits appear at once."""
    _state["command"] = command


def on_pre_build(**_: Any) -> None:
    _texts.clear()


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> None:
    """Store the Markdown of the page, as the other hooks left it."""
    if _state["command"] == "serve":
        return
    keeps_comments = page.file.src_uri == "contributing.md"  # it documents them
    text = markdown if keeps_comments else _HTML.sub("", _COMMENT.sub("", markdown))
    source = Path(config.config_file_path).parent / "src"
    _texts[page.file.src_uri] = _OBJECT.sub(lambda match: render_api(match["path"], source), text)


def on_page_content(html: str, page: Any, **_: Any) -> None:
    """Store a Markdown rendering of each notebook, which has no Markdown source."""
    if page.file.src_uri.endswith(".ipynb"):
        _texts[page.file.src_uri] = render_notebook(Path(page.file.abs_src_path))


def on_post_build(config: Any, **_: Any) -> None:
    if _state["command"] == "serve":
        return
    site = Path(config.site_dir)
    for page in _nav_pages(config):
        text = _texts[page.file.src_uri].strip() + "\n"
        (site / page.file.dest_uri).with_name("index.md").write_text(text, "utf-8")
    (site / "llms.txt").write_text(render_llms_txt(config), "utf-8")


_navs: list[Any] = []


def on_nav(nav: Any, **_: Any) -> None:
    _navs[:] = [nav]


def _nav_pages(config: Any) -> list[Any]:
    return [page for page in _navs[-1].pages if page.file.src_uri in _texts]


def render_llms_txt(config: Any) -> str:
    """Return the table of contents: the sections of the site, and the first sentence of each page."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    for item in _navs[-1].items:
        if item.is_section:
            lines += [f"## {item.title}", ""]
            lines += [f"- {_llms_entry(page)}" for page in _section_pages(item)]
            lines.append("")
    return "\n".join(lines)


def _section_pages(section: Any) -> list[Any]:
    nested = [_section_pages(each) if each.is_section else [each] for each in section.children]
    return [page for pages in nested for page in pages if page.is_page]


def _llms_entry(page: Any) -> str:
    return f"[{page.title}]({page.url}index.md): {first_sentence(_texts[page.file.src_uri])}"


def first_sentence(text: str) -> str:
    """Return the first sentence of a page, with plain text in place of links."""
    paragraphs = [
        paragraph
        for paragraph in re.split(r"\n\s*\n", text)
        if paragraph[:1].isalnum() or paragraph.startswith(("`", "["))
    ]
    text = _LINK.sub(r"\1", " ".join(paragraphs[0].split())) if paragraphs else ""
    return re.split(r"(?<=[.?!:])\s", text, maxsplit=1)[0]


def render_api(path: str, source: Path) -> str:
    """Return the documentation of an object, or of a module and its public members, from the docstrings."""
    return "\n".join(_describe(_load_package(source)[path.partition(".")[2]], 2))


def _describe(found: Any, level: int) -> list[str]:
    lines = [f"{'#' * level} {found.path}", ""]
    found = found.final_target if found.is_alias else found
    if found.is_class or found.is_function:
        lines += ["```python", _signature(found), "```", ""]
    lines += [found.docstring.value, ""] if found.docstring else []
    if found.is_module or found.is_class:
        for name, member in found.members.items():
            is_public = not name.startswith("_") and (not member.is_alias or member.is_exported)
            if is_public and (member.is_class or member.is_function) and member.docstring:
                lines += _describe(member, level + 1)
    return lines


def _signature(found: Any) -> str:
    parameters = [each for each in found.parameters if each.name != "self"]
    inside = "".join(f"    {_parameter(each)},\n" for each in parameters)
    returns = f" -> {found.returns}" if found.is_function and found.returns else ""
    return f"{found.name}(\n{inside}){returns}" if inside else f"{found.name}(){returns}"


def _parameter(each: Any) -> str:
    stars = {"variadic positional": "*", "variadic keyword": "**"}.get(each.kind.value, "")
    annotation = f": {each.annotation}" if each.annotation else ""
    default = f" = {each.default}" if each.default is not None and not stars else ""
    return f"{stars}{each.name}{annotation}{default}"


_packages: dict[float, Any] = {}


def _load_package(source: Path) -> Any:
    """Load the library with griffe, again if a module has changed."""
    newest = max(file.stat().st_mtime for file in source.rglob("*.py"))
    if newest not in _packages:
        _packages.clear()
        extensions = griffe.load_extensions(ExamplesAsPrograms)
        _packages[newest] = griffe.load(
            "runinference", search_paths=[str(source)], extensions=extensions
        )
    return _packages[newest]


def render_notebook(file: Path) -> str:
    """Return the cells of a notebook and their text outputs as Markdown."""
    parts = []
    for cell in json.loads(file.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            text = output.get("text") or ("" if "image/png" in data else data.get("text/plain", ""))
            if text := "".join(text).rstrip():
                parts.append(f'```text title="Output"\n{text}\n```')
            if "image/png" in data:
                parts.append(f"(Figure: {cell['metadata'].get('alt', '')})")
    return "\n\n".join(parts)
