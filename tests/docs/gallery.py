"""The example gallery: each file in examples/ has a page in docs/examples/ that shows its source.

`python -m docs.gallery` copies the sources into the pages, and lists in the table of the index what each
example needs. `make docs-update` runs it first.
"""

from __future__ import annotations

import re
from pathlib import Path

from docs import site_reader
from docs.blocks import ROOT, Block, display_path
from docs.overrides import load_override
from docs.update import rewrite

PAGES = ROOT / "docs" / "examples"
INDEX = PAGES / "index.md"


def find_examples(root: Path = ROOT) -> list[Path]:
    return sorted((root / "examples").glob("*.py"))


def gallery_page(example: Path) -> Path:
    """Return the page of an example."""
    return example.parents[1] / "docs" / "examples" / f"{example.stem.replace('_', '-')}.md"


def find_source_block(page: Path) -> Block | None:
    """Return the block that shows the source: the only Python block of the page."""
    blocks, _ = site_reader.read(page)
    python = [block for block in blocks if block.language == "python"]
    return python[0] if len(python) == 1 else None


def check_example(example: Path) -> list[str]:
    """Return what is missing or outdated in the gallery for an example."""
    page, name = gallery_page(example), example.name
    if not page.exists():
        return [f"{name} has no page. Write {display_path(page)}, like the other pages there."]
    text, block = page.read_text("utf-8"), find_source_block(page)
    problems = []
    if block is None:
        problems.append(f"{display_path(page)} needs exactly one python block, which shows {name}.")
    elif block.code.strip() != example.read_text("utf-8").strip():
        problems.append(
            f"{display_path(page)} shows an older {name}. To update it, run `make docs-update`."
        )
    if f"python examples/{name}" not in text:
        problems.append(
            f"{display_path(page)} needs a shell block that runs `python examples/{name}`."
        )
    index = (page.parent / "index.md").read_text("utf-8")
    if not re.search(rf"\({re.escape(page.name)}\)", index):
        problems.append(f"docs/examples/index.md has no link to {page.name}.")
    elif list_requirements(index, example) != index:
        problems.append(
            f"docs/examples/index.md lists other requirements of {name}. "
            "To update it, run `make docs-update`."
        )
    return problems


def list_requirements(index: str, example: Path) -> str:
    """Return the index with the extras and packages of an example in the last column of its row."""
    needed = load_override("needs").find_requirements([example.read_text("utf-8")])
    row = re.compile(
        rf"^(\|.*\({re.escape(gallery_page(example).name)}\).*\|)[^|\n]*\|$", re.MULTILINE
    )
    return row.sub(lambda match: f"{match[1]} {needed.names or 'none'} |", index)


def update_page(example: Path) -> None:
    """Copy the source of an example into its page."""
    page = gallery_page(example)
    block = find_source_block(page) if page.exists() else None
    source = example.read_text("utf-8").strip()
    if block and block.code.strip() != source:
        print(f"{display_path(page)}: updated the source")
        rewrite(page, [(block, source)])


if __name__ == "__main__":
    for each in find_examples():
        update_page(each)
        INDEX.write_text(list_requirements(INDEX.read_text("utf-8"), each), "utf-8")
