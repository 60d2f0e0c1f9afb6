"""Plain Markdown versions of all pages, and `llms.txt`, for language models and other programs.

`batching/` is also available as `batching/index.md`: the source of the page without the comments for the
tests. The API reference is rendered from the same objects as on the
site, and notebooks with their stored outputs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from mkdocstrings_handlers.python import do_filter_objects, do_order_members

_COMMENT = re.compile(r"^[ \t]*<!--.*?-->[ \t]*\n", re.MULTILINE | re.DOTALL)
_HTML = re.compile(r"^</?div[^>]*>\n", re.MULTILINE)
_OBJECT = re.compile(
    r"^::: (?P<path>[\w.]+)(?:\n|\Z)(?P<settings>(?:    .*(?:\n|\Z))*)", re.MULTILINE
)
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
    _texts[page.file.src_uri] = markdown if keeps_comments else plain_markdown(markdown, config)


def plain_markdown(markdown: str, config: Any) -> str:
    """Return the Markdown without comments and HTML, and with the documentation of the objects that it names."""
    text = _HTML.sub("", _COMMENT.sub("", markdown))

    def describe(found: re.Match[str]) -> str:
        handler = config.plugins["mkdocstrings"].get_handler("python")
        return render_api(found["path"], found["settings"], handler)

    return _OBJECT.sub(describe, text)


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
    sentence = re.split(r"(?<=[.?!])\s", text, maxsplit=1)[0]
    return re.sub(r":$", ".", sentence)


def render_api(path: str, settings: str, handler: Any) -> str:
    """Return the documentation of an object and its members, with the settings of the page that names it."""
    options = handler.get_options((yaml.safe_load(settings) or {}).get("options", {}))
    return "\n".join(
        _describe(handler.collect(path, options), options, options.heading_level, is_root=True)
    )


def _describe(found: Any, options: Any, level: int, is_root: bool = False) -> Iterator[str]:
    if not is_root or options.show_root_heading:
        yield f"{'#' * level} {found.path}\n"
    if found.is_function or "__init__" in found.all_members:
        yield f"```python\n{_signature(found)}\n```\n"
    if found.is_class or found.is_function:
        yield f"[Source]({source_url(found, options)})\n"
    if found.docstring:
        yield found.docstring.value + "\n"
    constructor = found.members.get("__init__") if found.is_class else None
    if constructor and constructor.docstring:  # the site merges it into the class
        yield constructor.docstring.value.partition("\n\n")[2] + "\n"
    if is_root and found.is_module:
        yield "| name | description |\n|---|---|"
        yield from (
            f"| `{each.name}` | {summary(each)} |" for each in public_members(found, options)
        )
        yield ""
    for each in public_members(found, options, options.members if is_root else None):
        if each.is_class or each.is_function:
            yield from _describe(each, options, level + 1)


def public_members(found: Any, options: Any, names: Any = None) -> list[Any]:
    """Return the members that the page of the site shows, in its order: attributes, classes, and functions."""
    members = do_filter_objects(
        found.all_members,
        filters=options.filters,
        members_list=names,
        inherited_members=options.inherited_members,
        keep_no_docstrings=options.show_if_no_docstring,
    )
    return [
        each
        for each in sorted(
            do_order_members(members, options.members_order, names),
            key=lambda each: each.kind.value,
        )
        if each.name != "__init__"
        and not each.is_module
        and (options.filters == "public" or not each.is_imported or each.is_public)
    ]


def summary(found: Any) -> str:
    """Return the first paragraph of a docstring as one line."""
    return " ".join(found.docstring.value.partition("\n\n")[0].split()) if found.docstring else ""


def source_url(found: Any, options: Any) -> str:
    """Return the address of the source of an object in the repository."""
    path = found.relative_package_filepath.as_posix()
    return f"{options.extra['repo_url']}/blob/main/src/{path}#L{found.lineno}-L{found.endlineno}"


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
