"""The gallery: each program of examples/ has a page in docs/examples/, which shows its source.

python -m docs.gallery puts the sources into the pages: `make docs-update` begins with it.
"""

from __future__ import annotations

import re
from pathlib import Path

from docs import site_reader
from docs.blocks import ROOT, Block, shown
from docs.update import rewrite

PAGES = ROOT / "docs" / "examples"
INDEX = PAGES / "index.md"


def examples(root: Path = ROOT) -> list[Path]:
    return sorted((root / "examples").glob("*.py"))


def page_of(example: Path) -> Path:
    """Where the gallery shows a program."""
    return example.parents[1] / "docs" / "examples" / f"{example.stem.replace('_', '-')}.md"


def source_on(page: Path) -> Block | None:
    """The block of a page that shows the program: its only one of Python."""
    blocks, _ = site_reader.read(page)
    python = [block for block in blocks if block.language == "python"]
    return python[0] if len(python) == 1 else None


def faults_of(example: Path) -> list[str]:
    """What the gallery lacks of a program."""
    page, name = page_of(example), example.name
    if not page.exists():
        return [f"{name} has no page: write {shown(page)}, in the manner of its neighbours."]
    text, block = page.read_text("utf-8"), source_on(page)
    faults = []
    if block is None:
        faults.append(f"{shown(page)} needs one python block, to show {name}.")
    elif block.code.strip() != example.read_text("utf-8").strip():
        faults.append(f"{shown(page)} shows another {name}: `make docs-update` renews it.")
    if f"python examples/{name}" not in text:
        faults.append(f"{shown(page)} needs a shell block that runs `python examples/{name}`.")
    index = (page.parent / "index.md").read_text("utf-8")
    if not re.search(rf"\({re.escape(page.name)}\)", index):
        faults.append(f"docs/examples/index.md has no line for {page.name}.")
    return faults


def renew(example: Path) -> None:
    """Put the source of a program into its page."""
    page = page_of(example)
    block = source_on(page) if page.exists() else None
    source = example.read_text("utf-8").strip()
    if block and block.code.strip() != source:
        print(f"{shown(page)}: renewed the program")
        rewrite(page, [(block, source)])


if __name__ == "__main__":
    for each in examples():
        renew(each)
