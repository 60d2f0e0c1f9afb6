"""Prose uses plain, standard English, and pages have the titles that the navigation shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mkdocs.utils.yaml import yaml_load

from docs.blocks import ROOT
from docs.page_selection import selected_pages
from docs.prose import check_file, find_files, find_phrases


def test_prose_has_no_stilted_phrases(pytestconfig: pytest.Config) -> None:
    selected = [ROOT / page for page in selected_pages(pytestconfig)]
    problems = [each for path in selected or find_files() for each in check_file(path)]
    assert not problems, "\n" + "\n".join(map(str, problems))


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("Batches form by\nthemselves.", "form by themselves"),
        ("A function of your own is as good.", "of your own"),
        ("One bad row shall not cost the rest.", "shall"),
        ("A model that takes longer is given up.", "given up"),
        ("A new file is there, and the old model speaks.", "speaks"),
        ("What contradicts itself is refused.", "refused"),
        ("At least so many elements.", "so many"),
        ("A start on a processor.", "a processor"),
        ("The handler is told its device.", "is told"),
        ("Each frame gets a copy of its own, and one\nof their own to keep.", "of its own"),
        ("Put the model beside `it`.", "beside"),
        ("The failed elements are set aside.", "aside"),
        ("A catalogue of models.", "catalogue"),
    ],
)
def test_finds_stilted_phrases(text: str, phrase: str) -> None:
    assert phrase in [found for _, found, _ in find_phrases(text)]


@pytest.mark.parametrize(
    "text",
    [
        "Aside from NumPy, the core has no dependencies.",
        "`DLQ` stands for dead-letter queue.",
        "The connection was refused.",
        "There are so many elements that memory runs out.",
        "The script runs by itself, in an empty directory.",
        "Besides Beam, install NumPy. Preprocess the images in-place.",
        "The timestamp of its own element stays. The model refuses to answer.",
        "See [the guide](beside.md), `shall` is code: <beside>.",
        "<!-- aside -->\n\n```python\n# lest\n```\n\n```text\nshall\n```\n",
        "    ```text\n    beside\n    ```\n",
        "The frame is read as it is written.",
    ],
)
def test_accepts_plain_sentences_and_ignores_code(text: str) -> None:
    assert not list(find_phrases(text))


def test_reports_the_line_in_pages_modules_and_notebooks(tmp_path: Path) -> None:
    page, module, notebook = (tmp_path / f"one.{kind}" for kind in ("md", "py", "ipynb"))
    page.write_text("# One\n\n```python\nbeside\n```\n\nTwo is\nbeside it.\n")
    module.write_text(
        'x = "beside"\n\n\ndef one():\n    """One.\n\n    Two beside.\n    """\n\n\n# In\n# place of.\n'
    )
    cells = [
        {"cell_type": kind, "id": kind, "source": ["One\n", "beside"]}
        for kind in ("code", "markdown")
    ]
    notebook.write_text(json.dumps({"cells": cells}, indent=1))
    assert [each.line for each in check_file(page)] == [8]
    assert [each.line for each in check_file(module)] == [7, 11]
    (problem,) = check_file(notebook)
    assert '"id": "markdown"' in notebook.read_text().splitlines()[problem.line - 1]
    assert "“beside”\n    Write: next to" in str(problem)


def titles(nav: list[Any]) -> Iterator[tuple[str, str]]:
    """Yield the title and the source of each page of the navigation."""
    for entry in nav:
        ((title, place),) = entry.items()
        if isinstance(place, str):
            yield title, place
        else:
            yield from titles(place)


def read_title(place: str) -> str:
    """Return the first heading of a page."""
    if place.endswith(".ipynb"):
        cells = json.loads((ROOT / "docs" / place).read_text("utf-8"))["cells"]
        text = "".join(cells[0]["source"])
    else:
        roots = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
        text = (ROOT / roots.get(place, f"docs/{place}")).read_text("utf-8")
    found = re.search(r"^(?:# (.+)|::: runinference\.(.+))$", text, re.MULTILINE)
    return (found[1] or found[2]).strip() if found else ""


def test_the_title_of_each_page_is_its_title_in_the_navigation() -> None:
    with (ROOT / "mkdocs.yml").open(encoding="utf-8") as file:
        pages = {place: title for title, place in titles(yaml_load(file)["nav"])}
    del pages["index.md"]  # its heading says what the library does
    different = [
        f"{place}: {read_title(place)!r}, not {title!r}"
        for place, title in pages.items()
        if read_title(place) != title
    ]
    assert not different, "\n" + "\n".join(different)
