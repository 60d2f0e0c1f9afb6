"""The site builds without a complaint, and every page of it is fit for every reader."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Browser

from docs import clipboard, report
from docs.blocks import ROOT
from docs.chosen import chosen
from docs.compare import faults_of
from docs.notebooks import notebooks
from docs.run import Interpreter
from docs.site import (
    DESKTOP,
    PHONE,
    Look,
    browser,
    build,
    copied,
    dead_links,
    look,
    opened,
    searched,
    served,
)
from docs.store import Store

DOCS = ROOT / "docs"


def all_pages() -> list[str]:
    roots = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]  # pages too: docs/overrides/roots.py
    pages = [*DOCS.rglob("*.md"), *notebooks(), *roots]
    return sorted(str(page.relative_to(ROOT)) for page in pages if "overrides" not in page.parts)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "page" in metafunc.fixturenames:
        asked = chosen(metafunc.config)
        metafunc.parametrize("page", [page for page in all_pages() if not asked or page in asked])


@pytest.fixture(scope="session")
def built() -> Path:
    """The site, built once for all workers: the first one builds, the others wait for it."""
    home = Path(os.environ["RUNINFERENCE_DOCS_HOME"])
    directory, said = home / "site", home / "site.txt"
    with (home / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            said.write_text(build(directory), "utf-8")
    if complaints := said.read_text("utf-8"):
        pytest.fail(f"mkdocs build --strict:\n{complaints}", pytrace=False)
    return directory


@pytest.fixture(scope="session")
def address(built: Path) -> Iterator[str]:
    with served(built) as address:
        yield address


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with browser() as chromium:
        yield chromium


def path(page: str) -> str:
    """Where the site shows a page."""
    name = page.removeprefix("docs/").rpartition(".")[0]
    name = name if page.startswith("docs/") else name.lower()
    return name.removesuffix("index") if name.endswith("index") else f"{name}/"


def test_page_is_fit_for_every_reader(chromium: Browser, address: str, page: str) -> None:
    """No error, no request to another host, no scrolling sideways on a phone, no barrier."""
    seen = look(chromium, address, path(page))
    assert seen == Look(), f"{page}: {seen}"


def test_what_the_clipboard_held_runs_and_prints_what_the_browser_shows(
    chromium: Browser,
    address: str,
    page: str,
    interpreter: Interpreter,
    env: dict[str, str],
    runs: Store,
    record_property: Callable[[str, object], None],
) -> None:
    """Every copy button is clicked; the text runs by itself, in an empty directory.

    A text that ran in this session already, to the byte, is not run again: see `docs.store`.
    """
    seen = copied(chromium, address, path(page))
    file = ROOT / page
    if page.endswith(".ipynb"):
        cells = [cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]
        assert [each.clipboard for each in seen] == [cell.source.rstrip() for cell in cells]
        return
    faults = [] if "\n::: " in f"\n{file.read_text('utf-8')}" else clipboard.differing(file, seen)
    programs, wrong = clipboard.programs(file, seen)
    faults += wrong
    ran = [
        (program, runs.run(program, interpreter, env))
        for program in programs
        if not program.block.skip
    ]
    for program, each in ran:
        faults += faults_of(program, each)
    if faults:
        pytest.fail("\n" + "\n".join(map(str, faults)), pytrace=False)
    record_property("blocks", [report.told(program.block, each) for program, each in ran])


SEARCHES = {
    "install": "quickstart/",
    "batch size": "batching/",
    "max_batch_size": "batching/",
    "padding": "batching/",
    "dead letter": "errors-and-dead-letters/",
    "with_exception_handling": "errors-and-dead-letters/",
    "model per key": "model-per-key/",
    "keyed": "keyed-handlers/",
    "KeyedModelHandler": "keyed-handlers/",
    "PredictionResult": "prediction-results/",
    "refresh the model": "model-refresh/",
    "WatchFilePattern": "model-refresh/",
    "memory": "sharing-and-memory/",
    "large_model": "sharing-and-memory/",
    "too many requests": "remote-models/",
    "openai": "llm-endpoints/",
    "retry": "remote-models/",
    "state_dict": "pre-trained-models/",
    "saved model": "pre-trained-models/",
    "a/b test": "multi-model/",
    "migrate from beam": "coming-from-beam/",
    "stack expects each tensor to be equal size": "troubleshooting/",
    "architecture": "architecture/",
}


def test_search_finds_the_page_by_the_words_a_user_would_type(
    chromium: Browser, address: str
) -> None:
    missed = []
    with opened(chromium, address) as tab:
        tab.goto(address, wait_until="load")
        for words, page in SEARCHES.items():
            found = searched(tab, words)
            if page not in found:
                missed.append(f"{words}: {page} is not among {found}")
    assert not missed, "\n".join(missed)


def test_links_and_anchors_lead_somewhere(built: Path) -> None:
    """Those of notebooks and of the API reference as well, which mkdocs does not look at."""
    assert not dead_links(built)


def test_each_page_is_also_plain_markdown_and_llms_txt_lists_them(built: Path) -> None:
    listed = re.findall(
        r"^- \[.+\]\((\S*)\): (.*)$", (built / "llms.txt").read_text(), re.MULTILINE
    )
    assert sorted(place for place, _ in listed) == sorted(
        path(page) + "index.md" for page in all_pages()
    )
    for place, says in listed:
        text = (built / place).read_text("utf-8")
        assert says, f"llms.txt says nothing of {place}"
        assert "\n::: " not in f"\n{text}"
        assert not re.search(r"^<!-- (?:varies|skip|draws|shows):", text, re.MULTILINE) or (
            place == "contributing/index.md"
        )
        assert len(text) > 200, f"{place} says next to nothing"


def test_a_page_names_its_plain_text_as_an_alternate(chromium: Browser, address: str) -> None:
    with opened(chromium, address) as tab:
        tab.goto(f"{address}batching/", wait_until="load")
        href = tab.get_attribute("link[rel~=alternate][type='text/markdown']", "href")
        assert tab.request.get(f"{address}batching/{href}").text().startswith("# ")


def test_a_dead_link_in_the_built_site_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.html").write_text('<p id="there"></p>', "utf-8")
    page = '<a href="other.html#there"></a><a href="other.html#gone"></a><img src="gone.png">'
    (tmp_path / "index.html").write_text(page, "utf-8")
    assert dead_links(tmp_path) == ["index.html: gone.png", "index.html: other.html#gone"]


def test_the_readers_own_colour_scheme_is_used(chromium: Browser, address: str) -> None:
    for scheme, name in {"light": "default", "dark": "slate"}.items():
        with opened(chromium, address, scheme=scheme) as tab:
            tab.goto(address, wait_until="load")
            assert tab.evaluate("document.body.dataset.mdColorScheme") == name


REACHED = """() => {
    const at = document.activeElement;
    const style = getComputedStyle(at);
    const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
    return [at.className || at.tagName, at.dataset.mdType || "", seen, at.textContent.trim()];
}"""


def test_the_keyboard_reaches_navigation_search_and_copy_buttons(
    chromium: Browser, address: str
) -> None:
    allowed = ["clipboard-read", "clipboard-write"]
    with opened(chromium, address, permissions=allowed) as tab:
        tab.goto(f"{address}quickstart/", wait_until="load")
        reached, held = [], ""
        for _ in range(200):
            tab.keyboard.press("Tab")
            at = tab.evaluate(REACHED)
            reached.append(at)
            if at[1] == "copy":
                tab.keyboard.press("Enter")
                tab.wait_for_function("navigator.clipboard.readText().then((text) => text)")
                held = tab.evaluate("navigator.clipboard.readText()")
                break
    names = " ".join(at[0] for at in reached)
    assert held, f"no copy button is reached: {names}"
    assert "md-skip" in names
    assert "md-nav__link" in names
    assert "md-search__input" in names
    unseen = [at for at in reached if not at[2] and "md-search__input" not in at[0]]
    assert not unseen, "reached, but nothing shows where the reader is"


def test_a_reader_can_unfold_the_whole_program(chromium: Browser, address: str) -> None:
    with opened(chromium, address) as tab:
        tab.goto(f"{address}multi-model/", wait_until="load")
        block = tab.locator(".folds").first
        button, line = block.locator(".unfold"), block.get_by_text("def train_detector").first
        assert not line.is_visible()
        button.focus()
        tab.keyboard.press("Enter")
        assert line.is_visible()
        assert button.get_attribute("aria-expanded") == "true"
        tab.keyboard.press("Enter")
        assert not line.is_visible()


def test_on_a_phone_the_rows_of_a_table_are_read_without_scrolling_sideways(
    chromium: Browser, address: str
) -> None:
    scrolls = """[...document.querySelectorAll('.md-typeset__scrollwrap:has([data-columns])')]
        .map((box) => box.scrollWidth - box.clientWidth)"""
    label = "getComputedStyle(document.querySelector('[data-label]'), '::before').content"
    with opened(chromium, address, size=PHONE) as tab:
        for page in ("coming-from-beam/", "hugging-face/", "sharing-and-memory/", "metrics/"):
            tab.goto(address + page, wait_until="load")
            found = tab.evaluate(scrolls)
            assert found, page
            assert not any(found), page
            assert tab.evaluate(label) != "none", page
        tab.set_viewport_size(DESKTOP)
        assert tab.evaluate(label) == "none"


def test_a_notebook_shows_its_pictures_and_can_be_downloaded(
    chromium: Browser, address: str, built: Path
) -> None:
    for notebook in notebooks():
        page = path(str(notebook.relative_to(ROOT)))
        outputs = [
            output
            for cell in nbformat.read(notebook, 4).cells
            for output in cell.get("outputs", [])
        ]
        pictures = sum("image/png" in output.get("data", {}) for output in outputs)
        with opened(chromium, address) as tab:
            tab.goto(address + page, wait_until="load")
            widths = tab.evaluate(
                "[...document.querySelectorAll('.jp-OutputArea img')].map((i) => i.naturalWidth)"
            )
            assert len(widths) == pictures
            assert all(width > 100 for width in widths)
            with tab.expect_download() as download:
                tab.click("a[download]")
            assert Path(download.value.path()).read_bytes() == notebook.read_bytes()


FAULTY = """<!doctype html><html lang="en"><title>A page</title><body>
<main><h1>A page</h1><p style="width: 600px">wide</p><img src="http://127.0.0.1:9/abroad.png">
<div class="highlight"><pre style="background: white"><code><span class="k" style="color: #ddd">if</span>
</code></pre></div></main><script>undefinedFunction()</script>"""


def test_a_look_finds_what_it_looks_for(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(FAULTY, "utf-8")
    with served(tmp_path) as address:
        seen = look(chromium, address, "")
    assert any("undefinedFunction is not defined" in error for error in seen.errors)
    assert seen.abroad == ["http://127.0.0.1:9/abroad.png"]
    assert any("wide" in each for each in seen.too_wide)
    told = " ".join(seen.barriers)
    assert "image-alt" in told
    assert "contrast of k|" in told


def test_a_dead_anchor_fails_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# One\n\n[nowhere](#nowhere)\n", "utf-8")
    settings = (ROOT / "mkdocs.yml").read_text("utf-8").split("validation:")[1]
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"site_name: one\nvalidation:{settings}", "utf-8")
    assert "#nowhere" in build(tmp_path / "site", config)
