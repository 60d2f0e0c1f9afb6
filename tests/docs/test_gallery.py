"""Each example has a page in the gallery that shows its current source."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.blocks import ROOT
from docs.gallery import (
    PAGES,
    check_example,
    find_examples,
    gallery_page,
    list_requirements,
    update_page,
)

PROGRAM = 'print("one")\n'
PAGE = """# One

```shell
python examples/one_two.py
```

```python
{}
```
"""


@pytest.mark.parametrize("example", find_examples(), ids=lambda example: example.name)
def test_every_example_has_a_current_page(example: Path) -> None:
    assert not check_example(example)


def test_every_page_has_an_example() -> None:
    pages = {page for page in PAGES.glob("*.md") if page.name != "index.md"}
    assert pages == {gallery_page(example) for example in find_examples()}


def test_the_navigation_lists_every_page_of_the_gallery() -> None:
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in PAGES.glob("*.md"):
        assert f"examples/{page.name}" in settings


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Create a project with one example, its page and the index."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "docs" / "examples").mkdir(parents=True)
    example = tmp_path / "examples" / "one_two.py"
    example.write_text(PROGRAM)
    gallery_page(example).write_text(PAGE.format('print("one")'))
    (tmp_path / "docs" / "examples" / "index.md").write_text("[One](one-two.md)")
    return example


def test_a_correct_page_has_no_problems(project: Path) -> None:
    assert not check_example(project)


def test_reports_a_missing_page(project: Path) -> None:
    gallery_page(project).unlink()
    (problem,) = check_example(project)
    assert "one_two.py has no page" in problem


def test_reports_and_updates_an_outdated_source(project: Path) -> None:
    project.write_text('print("two")\n')
    (problem,) = check_example(project)
    assert "shows an older one_two.py" in problem
    update_page(project)
    assert not check_example(project)
    assert gallery_page(project).read_text() == PAGE.format('print("two")')


def test_reports_and_lists_the_requirements_in_the_table_of_the_index(project: Path) -> None:
    index = gallery_page(project).parent / "index.md"
    index.write_text(
        "| [One](one-two.md) | text | `sklearn` |\n| [Two](two.md) | text | `torch` |\n"
    )
    (problem,) = check_example(project)
    assert "lists other requirements of one_two.py" in problem
    project.write_text("import torchvision, spacy, transformers\n")
    assert list_requirements(index.read_text(), project) == (
        "| [One](one-two.md) | text | `torch`, `transformers`, `spacy` |\n| [Two](two.md) | text | `torch` |\n"
    )


def test_reports_a_page_without_command_and_index_entry(project: Path) -> None:
    gallery_page(project).write_text("```python\nprint('one')\n```\n")
    (project.parents[1] / "docs" / "examples" / "index.md").write_text("Nothing.")
    different, no_command, no_link = check_example(project)
    assert "shows an older" in different
    assert "shell block" in no_command
    assert "no link to one-two.md" in no_link
