"""Each program of examples/ has its page, which shows the program as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.blocks import ROOT
from docs.gallery import PAGES, examples, faults_of, page_of, renew

PROGRAM = 'print("one")\n'
PAGE = """# One

```shell
python examples/one_two.py
```

```python
{}
```
"""


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_every_example_has_its_page(example: Path) -> None:
    assert not faults_of(example)


def test_every_page_has_its_example() -> None:
    pages = {page for page in PAGES.glob("*.md") if page.name != "index.md"}
    assert pages == {page_of(example) for example in examples()}


def test_the_navigation_lists_the_gallery() -> None:
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in PAGES.glob("*.md"):
        assert f"examples/{page.name}" in settings


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of one example, with its page and the index."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "docs" / "examples").mkdir(parents=True)
    example = tmp_path / "examples" / "one_two.py"
    example.write_text(PROGRAM)
    page_of(example).write_text(PAGE.format('print("one")'))
    (tmp_path / "docs" / "examples" / "index.md").write_text("[One](one-two.md)")
    return example


def test_a_page_that_is_as_it_should_be_has_no_faults(project: Path) -> None:
    assert not faults_of(project)


def test_a_missing_page_is_told(project: Path) -> None:
    page_of(project).unlink()
    (fault,) = faults_of(project)
    assert "one_two.py has no page" in fault


def test_a_stale_source_is_told_and_renewed(project: Path) -> None:
    project.write_text('print("two")\n')
    (fault,) = faults_of(project)
    assert "shows another one_two.py" in fault
    renew(project)
    assert not faults_of(project)
    assert page_of(project).read_text() == PAGE.format('print("two")')


def test_a_page_without_command_line_and_index_is_told(project: Path) -> None:
    page_of(project).write_text("```python\nprint('one')\n```\n")
    (project.parents[1] / "docs" / "examples" / "index.md").write_text("Nothing.")
    different, no_command, no_line = faults_of(project)
    assert "shows another" in different
    assert "shell block" in no_command
    assert "no line for one-two.md" in no_line
