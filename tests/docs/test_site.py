"""The site builds without a complaint, and every page of it is fit for every reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from docs import site_reader
from docs.blocks import ROOT
from docs.notebooks import notebooks
from docs.site import DESKTOP, PHONE, Look, browser, build, copied, look, searched, served

pytestmark = pytest.mark.xdist_group("site")

PAGES = sorted(
    str(page.relative_to(ROOT / "docs").with_suffix(""))
    for page in [*(ROOT / "docs").rglob("*.md"), *notebooks()]
    if "overrides" not in page.parts
)
LOOKS = [("light", DESKTOP), ("dark", DESKTOP), ("light", PHONE)]


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the site, built anew."""
    directory: Path = tmp_path_factory.mktemp("site")
    complaints = build(directory)
    if complaints:
        pytest.fail(f"mkdocs build --strict:\n{complaints}", pytrace=False)
    with served(directory) as address:
        yield address


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with browser() as chromium:
        yield chromium


def path(page: str) -> str:
    """Where the site shows a page."""
    return "" if page == "index" else f"{page.removesuffix('/index')}/"


@pytest.mark.parametrize("page", PAGES)
def test_page_is_fit_for_every_reader(chromium: Browser, address: str, page: str) -> None:
    """No error, no request to another host, no scrolling sideways on a phone, no barrier."""
    for scheme, size in LOOKS:
        seen = look(chromium, address, path(page), scheme, size)
        assert seen == Look(), f"docs/{page}.md, {scheme}, {size['width']} pixels wide: {seen}"


@pytest.mark.parametrize("page", PAGES)
def test_copy_buttons_give_what_ran(chromium: Browser, address: str, page: str) -> None:
    if page.startswith(("notebooks/", "reference/")):
        pytest.skip("next change")
    blocks, _ = site_reader.read(ROOT / "docs" / f"{page}.md")
    code = [block.code.strip() for block in blocks if block.language != "mermaid"]
    assert [text.strip() for text in copied(chromium, address, path(page))] == code


def test_search_finds_a_page_by_the_words_of_its_title(chromium: Browser, address: str) -> None:
    first = searched(chromium, address, "prediction results")
    assert "prediction-results" in first


def test_a_dead_anchor_fails_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# One\n\n[nowhere](#nowhere)\n", "utf-8")
    settings = (ROOT / "mkdocs.yml").read_text("utf-8").split("validation:")[1]
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"site_name: one\nvalidation:{settings}", "utf-8")
    assert "#nowhere" in build(tmp_path / "site", config)
