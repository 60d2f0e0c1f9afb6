"""The site builds without warnings, and every page works for every reader."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from html import unescape
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Browser

from docs import clipboard, report
from docs.blocks import ROOT
from docs.collect import find_sources, read_all
from docs.compare import check_run
from docs.notebooks import find_notebooks
from docs.page_selection import selected_pages
from docs.run import Interpreter
from docs.run_cache import RunCache
from docs.site import (
    DESKTOP,
    PHONE,
    CopiedBlock,
    PageAudit,
    build_site,
    find_broken_links,
    open_tab,
    record_events,
    search,
    serve,
    start_browser,
    visit_page,
)

DOCS = ROOT / "docs"
SEARCH_INDEX = "search/search_index.json"


def all_pages() -> list[str]:
    roots = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]  # docs/overrides/roots.py adds them
    pages = [*DOCS.rglob("*.md"), *find_notebooks(), *roots]
    return sorted(str(page.relative_to(ROOT)) for page in pages if "overrides" not in page.parts)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "page" in metafunc.fixturenames:
        selected = selected_pages(metafunc.config)
        pages = [page for page in all_pages() if not selected or page in selected]
        one_worker = pytest.mark.xdist_group  # both tests of a page share one visit
        metafunc.parametrize("page", [pytest.param(page, marks=one_worker(page)) for page in pages])


@pytest.fixture(scope="session")
def built() -> Path:
    """Build the site once for all workers. The first worker builds it, and the others wait."""
    home = Path(os.environ["RUNINFERENCE_DOCS_HOME"])
    directory, messages_file = home / "site", home / "site.txt"
    with (home / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not messages_file.exists():
            messages_file.write_text(build_site(directory), "utf-8")
    if messages := messages_file.read_text("utf-8"):
        pytest.fail(f"mkdocs build --strict:\n{messages}", pytrace=False)
    return directory


@pytest.fixture(scope="session")
def address(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the site with an empty search index, because each page indexes all pages when it loads."""
    index = json.loads((built / SEARCH_INDEX).read_text("utf-8"))
    empty = tmp_path_factory.mktemp("search") / "empty.json"
    empty.write_text(json.dumps(index | {"docs": []}), "utf-8")
    with serve(built, {f"/{SEARCH_INDEX}": empty}) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser. While it runs, so does the event loop of Playwright, in the thread of the tests."""
    with start_browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def visit(chromium: Browser, address: str) -> Callable[[str], tuple[PageAudit, list[CopiedBlock]]]:
    """Return a function that opens a page unless it has been opened."""
    return cache(lambda page: visit_page(chromium, address, site_path(page)))


def site_path(page: str) -> str:
    """Return the path of a page on the site."""
    name = page.removeprefix("docs/").rpartition(".")[0]
    name = name if page.startswith("docs/") else name.lower()
    return name.removesuffix("index") if name.endswith("index") else f"{name}/"


def test_page_has_no_errors_overflow_or_accessibility_violations(
    visit: Callable[[str], tuple[PageAudit, list[CopiedBlock]]], page: str
) -> None:
    """Check console errors, requests to other hosts, width on a phone, and accessibility."""
    audit, _ = visit(page)
    assert audit == PageAudit(), f"{page}: {audit}"


def test_copied_code_runs_and_prints_the_output_that_the_browser_shows(
    visit: Callable[[str], tuple[PageAudit, list[CopiedBlock]]],
    page: str,
    interpreter: Interpreter,
    env: dict[str, str],
    runs: RunCache,
    record_property: Callable[[str, object], None],
) -> None:
    """Click every copy button, and run each text by itself in an empty directory.

    A text that already ran in this session is not run again: see `docs.run_cache`.
    """
    _, copied = visit(page)
    file = ROOT / page
    if page.endswith(".ipynb"):
        cells = [cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]
        assert [each.clipboard for each in copied] == [cell.source.rstrip() for cell in cells]
        return
    is_tested = file in find_sources()
    if is_tested and any(problem.path == file for problem in read_all([file])[2]):
        pytest.skip("test_pages.py reports the problems of this page")
    problems = (
        []
        if "\n::: " in f"\n{file.read_text('utf-8')}"
        else clipboard.compare_with_source(file, copied)
    )
    programs, copy_problems = clipboard.read_programs(file, copied)
    problems += copy_problems
    results = [
        (program, runs.run(program, interpreter, env))
        for program in programs
        if not program.block.skip
    ]
    for program, each in results:
        problems += check_run(program, each)
    if problems:
        pytest.fail("\n" + "\n".join(map(str, problems)), pytrace=False)
    record_property(
        "blocks", [report.describe_run(program.block, each) for program, each in results]
    )


SEARCHES = {
    "ReadFromCsv": "tabular-data/",
    "NamedTuple": "tabular-data/",
    "BigQuery": "tabular-data/",
    "Parquet": "tabular-data/",
    "Dataflow": "runners/",
    "Flink": "runners/",
    "GPU": "gpus/",
    "out of memory": "troubleshooting/",
    "multi-model": "multi-model-pipelines/",
    "ensemble": "multi-model-pipelines/",
    "tf.Example": "tensorflow-and-keras/",
    "install": "quickstart/",
    "batch size": "batching/",
    "max_batch_size": "batching/",
    "padding": "batching/",
    "dead letter": "error-handling-and-dead-letter-queues/",
    "DLQ": "error-handling-and-dead-letter-queues/",
    "timeout": "error-handling-and-dead-letter-queues/",
    "with_exception_handling": "error-handling-and-dead-letter-queues/",
    "model per key": "per-key-models/",
    "keyed": "keyed-model-handlers/",
    "KeyedModelHandler": "keyed-model-handlers/",
    "PredictionResult": "prediction-results/",
    "refresh the model": "model-refresh/",
    "WatchFilePattern": "model-refresh/",
    "memory": "memory-and-model-sharing/",
    "large_model": "memory-and-model-sharing/",
    "too many requests": "remote-models/",
    "rate limit": "remote-models/",
    "openai": "llm-endpoints/",
    "embeddings": "llm-endpoints/",
    "retry": "remote-models/",
    "state_dict": "pre-trained-models/",
    "saved model": "pre-trained-models/",
    "a/b test": "multi-model-pipelines/",
    "migrate from beam": "coming-from-apache-beam/",
    "stack expects each tensor to be equal size": "troubleshooting/",
    "architecture": "architecture/",
}


def test_search_finds_pages_by_the_words_that_users_type(chromium: Browser, built: Path) -> None:
    missed, audit = [], PageAudit()
    with (
        serve(built) as address,
        open_tab(chromium, address) as tab,
        record_events(tab, address, audit),
    ):
        tab.goto(address, wait_until="load")
        for words, page in SEARCHES.items():
            found = search(tab, words)
            if page not in found:
                missed.append(f"{words}: {page} is not in {found}")
    assert not missed, "\n".join(missed)
    assert audit == PageAudit()


def test_links_and_anchors_are_valid(built: Path) -> None:
    """Check all links, including those in notebooks and the API reference, which mkdocs ignores."""
    assert not find_broken_links(built)


def test_each_page_has_a_plain_markdown_version_in_llms_txt(built: Path) -> None:
    listed = re.findall(
        r"^- \[.+\]\((\S*)\): (.*)$", (built / "llms.txt").read_text(), re.MULTILINE
    )
    assert sorted(place for place, _ in listed) == sorted(
        site_path(page) + "index.md" for page in all_pages()
    )
    for place, summary in listed:
        text = (built / place).read_text("utf-8")
        assert summary, f"llms.txt has no summary of {place}"
        assert "\n::: " not in f"\n{text}"
        assert not re.search(r"^<!-- (?:varies|skip|draws|shows):", text, re.MULTILINE) or (
            place == "contributing/index.md"
        )
        assert len(text) > 200, f"{place} is nearly empty"


def read_metadata(html: str) -> dict[str, str]:
    """Return the `<meta>` elements of a page by name, and the addresses of some of its links."""
    meta = re.findall(r'<meta (?:name|property)="([^"]+)" content="([^"]*)"', html)
    links = re.findall(r'<link rel="(canonical)" href="([^"]*)"', html)
    edit = re.findall(r'<a href="([^"]*)"[^>]* rel="(edit)"', html)
    return dict(meta) | dict(links) | {name: href for href, name in edit}


def test_each_page_describes_itself_to_search_engines_and_previews(built: Path) -> None:
    descriptions: dict[str, str] = {}
    for page in all_pages():
        html = (built / site_path(page) / "index.html").read_text("utf-8")
        found = read_metadata(html)
        description = unescape(found["description"])
        assert found["og:description"] == found["description"]
        assert found["og:title"], page
        assert found["og:url"] == found["canonical"]
        assert found["canonical"].endswith(f"/{site_path(page)}"), page
        assert len(description) > 20, f"{page}: {description}"
        assert not re.search(r"[`*<>]|\]\(", description), f"{page}: {description}"
        other = descriptions.setdefault(description, page)
        assert other == page, f"{page} and {other} have the same first sentence"


def test_edit_links_and_source_links_point_to_files_of_the_repository(built: Path) -> None:
    for page in all_pages():
        html = (built / site_path(page) / "index.html").read_text("utf-8")
        path = read_metadata(html)["edit"].partition("/edit/main/")[2]
        text = (ROOT / page).read_text("utf-8")
        if module := re.match(r"::: ([\w.]+)", text):
            assert path.startswith("src/" + module[1].rpartition(".")[0].replace(".", "/")), page
            assert (ROOT / path).exists(), page
        else:
            assert path == page
        for source, line in re.findall(r'href="[^"]*/blob/main/([^"#]+)#L(\d+)', html):
            code = (ROOT / source).read_text("utf-8").splitlines()[int(line) - 1]
            assert re.match(r"\s*(?:class|def|async def|@)", code), f"{source}:{line}: {code}"


def test_the_sitemap_lists_every_page(built: Path) -> None:
    addresses = re.findall(r"<loc>([^<]+)</loc>", (built / "sitemap.xml").read_text("utf-8"))
    home = min(addresses, key=len)
    assert sorted(addresses) == sorted(home + site_path(page) for page in all_pages())


def test_a_page_links_its_plain_version_as_an_alternate(chromium: Browser, address: str) -> None:
    with open_tab(chromium, address) as tab:
        tab.goto(f"{address}batching/", wait_until="load")
        href = tab.get_attribute("link[rel~=alternate][type='text/markdown']", "href")
        assert tab.request.get(f"{address}batching/{href}").text().startswith("# ")


def test_finds_broken_links_in_the_built_site(tmp_path: Path) -> None:
    (tmp_path / "other.html").write_text('<p id="there"></p>', "utf-8")
    page = '<a href="other.html#there"></a><a href="other.html#gone"></a><img src="gone.png">'
    (tmp_path / "index.html").write_text(page, "utf-8")
    assert find_broken_links(tmp_path) == ["index.html: gone.png", "index.html: other.html#gone"]


def test_the_color_scheme_follows_the_system(chromium: Browser, address: str) -> None:
    for scheme, name in {"light": "default", "dark": "slate"}.items():
        with open_tab(chromium, address, scheme=scheme) as tab:
            tab.goto(address, wait_until="load")
            assert tab.evaluate("document.body.dataset.mdColorScheme") == name


def test_the_home_page_shows_the_install_command_and_an_example_on_the_first_screen(
    chromium: Browser, address: str
) -> None:
    bottom = "(box) => box.getBoundingClientRect().bottom"
    for size in ({"width": 1440, "height": 900}, PHONE):
        with open_tab(chromium, address, size=size) as tab:
            tab.goto(address, wait_until="load")
            tab.evaluate("document.fonts.ready")
            shell = tab.locator(".language-shell").first
            example = tab.locator(".language-python pre").first
            assert shell.is_visible()
            assert shell.evaluate(bottom) < example.evaluate(bottom) < size["height"]


ACTIVE_ELEMENT = """() => {
    const element = document.activeElement;
    const style = getComputedStyle(element);
    const hasOutline = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
    const name = element.className || element.tagName;
    return [name, element.dataset.mdType || "", hasOutline, element.textContent.trim()];
}"""


def test_navigation_search_and_copy_buttons_work_with_the_keyboard(
    chromium: Browser, address: str
) -> None:
    allowed = ["clipboard-read", "clipboard-write"]
    with open_tab(chromium, address, permissions=allowed) as tab:
        tab.goto(f"{address}quickstart/", wait_until="load")
        reached, copied = [], ""
        for _ in range(200):
            tab.keyboard.press("Tab")
            element = tab.evaluate(ACTIVE_ELEMENT)
            reached.append(element)
            if element[1] == "copy":
                tab.keyboard.press("Enter")
                tab.wait_for_function("navigator.clipboard.readText().then((text) => text)")
                copied = tab.evaluate("navigator.clipboard.readText()")
                break
    names = " ".join(element[0] for element in reached)
    assert copied, f"no copy button has been reached: {names}"
    assert "md-skip" in names
    assert "md-nav__link" in names
    assert "md-search__input" in names
    invisible = [each for each in reached if not each[2] and "md-search__input" not in each[0]]
    assert not invisible, "these elements have the focus without a visible outline"


def test_a_folded_example_can_be_unfolded(chromium: Browser, address: str) -> None:
    with open_tab(chromium, address) as tab:
        tab.goto(f"{address}multi-model-pipelines/", wait_until="load")
        block = tab.locator(".folds").filter(has_text="def train_detector")
        button, line = block.locator(".unfold"), block.get_by_text("def train_detector").first
        assert not line.is_visible()
        button.focus()
        tab.keyboard.press("Enter")
        assert line.is_visible()
        assert button.get_attribute("aria-expanded") == "true"
        tab.keyboard.press("Enter")
        assert not line.is_visible()


def test_tables_do_not_scroll_sideways_on_a_phone(chromium: Browser, address: str) -> None:
    scrolls = """[...document.querySelectorAll('.md-typeset__scrollwrap:has([data-columns])')]
        .map((box) => box.scrollWidth - box.clientWidth)"""
    label = "getComputedStyle(document.querySelector('[data-label]'), '::before').content"
    with open_tab(chromium, address, size=PHONE) as tab:
        for page in (
            "coming-from-apache-beam/",
            "hugging-face/",
            "memory-and-model-sharing/",
            "metrics-and-monitoring/",
        ):
            tab.goto(address + page, wait_until="load")
            found = tab.evaluate(scrolls)
            assert found, page
            assert not any(found), page
            assert tab.evaluate(label) != "none", page
        tab.set_viewport_size(DESKTOP)
        assert tab.evaluate(label) == "none"


def test_a_notebook_shows_its_images_and_can_be_downloaded(
    chromium: Browser, address: str, built: Path
) -> None:
    for notebook in find_notebooks():
        page = site_path(str(notebook.relative_to(ROOT)))
        outputs = [
            output
            for cell in nbformat.read(notebook, 4).cells
            for output in cell.get("outputs", [])
        ]
        images = sum("image/png" in output.get("data", {}) for output in outputs)
        with open_tab(chromium, address) as tab:
            tab.goto(address + page, wait_until="load")
            widths = tab.evaluate(
                "[...document.querySelectorAll('.jp-OutputArea img')].map((i) => i.naturalWidth)"
            )
            assert len(widths) == images
            assert all(width > 100 for width in widths)
            with tab.expect_download() as download:
                tab.click("a[download]")
            assert Path(download.value.path()).read_bytes() == notebook.read_bytes()


BAD_PAGE = """<!doctype html><html lang="en"><title>A page</title><body>
<main><h1>A page</h1><p style="width: 600px">wide</p><img src="http://127.0.0.1:9/image.png">
<div class="highlight"><pre style="background: white"><code><span class="k" style="color: #ddd">if</span>
</code></pre></div></main><script>undefinedFunction()</script>"""


def test_an_audit_finds_each_kind_of_problem(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(BAD_PAGE, "utf-8")
    with serve(tmp_path) as address:
        audit, _ = visit_page(chromium, address, "")
    assert any("undefinedFunction is not defined" in error for error in audit.errors)
    assert audit.external_requests == ["http://127.0.0.1:9/image.png"]
    assert any("wide" in each for each in audit.overflows)
    violations = " ".join(audit.accessibility_violations)
    assert "image-alt" in violations
    assert "contrast of k|" in violations


def test_a_broken_anchor_fails_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# One\n\n[nowhere](#nowhere)\n", "utf-8")
    settings = (ROOT / "mkdocs.yml").read_text("utf-8").split("validation:")[1]
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"site_name: one\nvalidation:{settings}", "utf-8")
    assert "#nowhere" in build_site(tmp_path / "site", config)
