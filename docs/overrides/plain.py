"""Each page as plain Markdown beside its HTML, and `llms.txt`, for readers that are programs.

`batching/` is also `batching/index.md`: what its author wrote, with the outputs that the tests proved, and without
the comments for the tests. The API reference is written out from the docstrings, a notebook with what it gave.
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
_asked = {"command": "build"}


def on_startup(command: str, **_: Any) -> None:
    """`make serve` is for people, and shows an edit at once; programs read what was built."""
    _asked["command"] = command


def on_pre_build(**_: Any) -> None:
    _texts.clear()


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> None:
    """Keep what the page says, after the other hooks have done their part."""
    if _asked["command"] == "serve":
        return
    comments = page.file.src_uri == "contributing.md"  # which shows how they are written
    text = markdown if comments else _HTML.sub("", _COMMENT.sub("", markdown))
    source = Path(config.config_file_path).parent / "src"
    _texts[page.file.src_uri] = _OBJECT.sub(lambda match: api(match["path"], source), text)


def on_page_content(html: str, page: Any, **_: Any) -> None:
    """A notebook has no Markdown of its own."""
    if page.file.src_uri.endswith(".ipynb"):
        _texts[page.file.src_uri] = notebook(Path(page.file.abs_src_path))


def on_post_build(config: Any, **_: Any) -> None:
    if _asked["command"] == "serve":
        return
    site = Path(config.site_dir)
    for page in _nav_pages(config):
        text = _texts[page.file.src_uri].strip() + "\n"
        (site / page.file.dest_uri).with_name("index.md").write_text(text, "utf-8")
    (site / "llms.txt").write_text(llms(config), "utf-8")


_navs: list[Any] = []


def on_nav(nav: Any, **_: Any) -> None:
    _navs[:] = [nav]


def _nav_pages(config: Any) -> list[Any]:
    return [page for page in _navs[-1].pages if page.file.src_uri in _texts]


def llms(config: Any) -> str:
    """The table of contents: each section of the site, its pages, and what each says first."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    for item in _navs[-1].items:
        if item.is_section:
            lines += [f"## {item.title}", ""]
            lines += [f"- {_entry(page)}" for page in _pages_of(item)]
            lines.append("")
    return "\n".join(lines)


def _pages_of(section: Any) -> list[Any]:
    nested = [_pages_of(each) if each.is_section else [each] for each in section.children]
    return [page for pages in nested for page in pages if page.is_page]


def _entry(page: Any) -> str:
    return f"[{page.title}]({page.url}index.md): {first_words(_texts[page.file.src_uri])}"


def first_words(text: str) -> str:
    """The first sentence of a page, without its links."""
    paragraphs = [
        paragraph
        for paragraph in re.split(r"\n\s*\n", text)
        if paragraph[:1].isalnum() or paragraph.startswith(("`", "["))
    ]
    said = _LINK.sub(r"\1", " ".join(paragraphs[0].split())) if paragraphs else ""
    return re.split(r"(?<=[.?!:])\s", said, maxsplit=1)[0]


def api(path: str, source: Path) -> str:
    """An object of the library, or a module with all of its own, from the docstrings."""
    found = _package(source)[path.partition(".")[2]]
    found = found.final_target if found.is_alias else found
    return "\n".join(_described(found, 2))


def _described(found: Any, level: int) -> list[str]:
    lines = [f"{'#' * level} {found.path}", ""]
    if found.is_class or found.is_function:
        lines += ["```python", _signature(found), "```", ""]
    lines += [found.docstring.value, ""] if found.docstring else []
    if found.is_module or found.is_class:
        for name, member in found.members.items():
            own = not member.is_alias and (member.is_class or member.is_function)
            if own and member.docstring and not name.startswith("_"):
                lines += _described(member, level + 1)
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


def _package(source: Path) -> Any:
    """The library as griffe reads it; read again when a module has changed."""
    newest = max(file.stat().st_mtime for file in source.rglob("*.py"))
    if newest not in _packages:
        _packages.clear()
        extensions = griffe.load_extensions(ExamplesAsPrograms)
        _packages[newest] = griffe.load(
            "runinference", search_paths=[str(source)], extensions=extensions
        )
    return _packages[newest]


def notebook(file: Path) -> str:
    """The cells of a notebook, and what they gave, as far as that is text."""
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
                parts.append(f"(a picture: {cell['metadata'].get('alt', '')})")
    return "\n\n".join(parts)
