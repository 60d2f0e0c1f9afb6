"""Builds the site, serves it on localhost, and examines it in a browser."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright

from docs.blocks import ROOT
from docs.browser import FLAGS, find_or_install

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 375, "height": 740}
COLOR_RULES = ["color-contrast", "link-in-text-block"]
NARROW_RULES = ["scrollable-region-focusable", "target-size", "aria-hidden-focus"]
"""The axe rules that depend on the color scheme and on the width. All others are checked once."""

FIND_OVERFLOW = """() => {
    const root = document.documentElement;
    if (root.scrollWidth <= root.clientWidth) return [];
    const describe = (box) => `${box.tagName}.${box.className}: ${box.textContent.trim().slice(0, 60)}`;
    const scrollable = "pre, .md-typeset__scrollwrap, .md-sidebar, .md-search, .tabbed-labels";
    const wide = [...document.querySelectorAll("body *")].filter(
        (box) => box.getBoundingClientRect().right > root.clientWidth + 1 && !box.closest(scrollable)
    );
    return [`${root.scrollWidth} pixels wide`, ...wide.slice(-3).map(describe)];
}"""


FIND_COVERED_CODE = """() => [...document.querySelectorAll(".md-content nav.md-code__nav")].flatMap((nav) => {
    const buttons = nav.getBoundingClientRect();
    const text = document.createRange();
    text.selectNodeContents(nav.parentElement.querySelector("code"));
    const isCovered = [...text.getClientRects()].some(
        (box) => box.width && box.right > buttons.left && box.left < buttons.right
            && box.bottom > buttons.top + 1 && box.top < buttons.bottom - 1
    );
    return isCovered && buttons.width ? [`buttons cover code: ${text.toString().slice(0, 60)}`] : [];
})"""


def build_site(into: Path, config: Path = ROOT / "mkdocs.yml") -> str:
    """Build the site in strict mode, and return the messages of mkdocs if the build fails.

    Never use `--quiet`: it also hides the warnings from `--strict`.
    """
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    command += ["--config-file", str(config), "--site-dir", str(into)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    return done.stdout + done.stderr if done.returncode else ""


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, replaced: Mapping[str, Path], **kwargs: Any) -> None:
        self.replaced = replaced
        super().__init__(*args, **kwargs)

    def translate_path(self, path: str) -> str:
        file = self.replaced.get(path)
        return str(file) if file else super().translate_path(path)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def serve(directory: Path, replaced: Mapping[str, Path] = MappingProxyType({})) -> Iterator[str]:
    """Serve a directory on localhost, with other files at the paths in `replaced`, and return its URL."""
    handler = partial(_Handler, directory=str(directory), replaced=replaced)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    thread.join()


@contextmanager
def start_browser() -> Iterator[Browser]:
    """Start a headless Chromium."""
    path = find_or_install()  # may use Playwright itself, which can't be nested
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=path, args=list(FLAGS), chromium_sandbox=False
        )
        yield chromium
        chromium.close()


@dataclass
class PageAudit:
    """Problems of a page in the browser.

    Attributes:
        errors: JavaScript and console errors.
        external_requests: URLs of other hosts that the page requests.
        overflows: Elements that are wider than a phone's screen, and code below buttons.
        accessibility_violations: Serious or critical violations that axe reports, and low contrast in code.
    """

    errors: list[str] = field(default_factory=list)
    external_requests: list[str] = field(default_factory=list)
    overflows: list[str] = field(default_factory=list)
    accessibility_violations: list[str] = field(default_factory=list)


@dataclass
class CopiedBlock:
    """A block as the browser shows it, and the text that its copy button put into the clipboard."""

    language: str
    title: str
    shown: str
    clipboard: str | None


@contextmanager
def open_tab(
    chromium: Browser, address: str, page: str = "", scheme: str = "light", **options: Any
) -> Iterator[Page]:
    """Open a tab in a new browser context."""
    context = chromium.new_context(
        viewport=options.pop("size", DESKTOP), color_scheme=scheme, **options
    )
    try:
        tab = context.new_page()
        yield tab
    finally:
        context.close()


@contextmanager
def shared_tab(chromium: Browser) -> Iterator[Page]:
    """Use the tab of the shared browser context, which caches the files that all pages use.

    A new tab for each page would take a second more, because Chromium starts several processes for it.
    """
    if not chromium.contexts:
        allowed = ["clipboard-read", "clipboard-write"]
        context = chromium.new_context(color_scheme="light", permissions=allowed)
        context.new_page()
    [tab] = chromium.contexts[0].pages
    tab.set_viewport_size(DESKTOP)
    try:
        yield tab
    finally:
        tab.goto("about:blank")


def visit_page(chromium: Browser, address: str, page: str) -> tuple[PageAudit, list[CopiedBlock]]:
    """Open a page once, click its copy buttons, and audit it."""
    audit = PageAudit()
    with shared_tab(chromium) as tab, record_events(tab, address, audit):
        tab.goto(address + page, wait_until="load")
        copied = copy_blocks(tab)
        audit_page(tab, audit)
    return audit, copied


def audit_page(tab: Page, audit: PageAudit) -> None:
    """Check the page in a tab on a desktop and a phone, in light and dark mode, and add the problems.

    The color scheme is switched as the theme switches it. Another test checks that the initial scheme
    follows the reader's system.
    """
    tab.wait_for_function("!document.querySelector('pre.mermaid')")
    tab.evaluate(_STOP_ANIMATIONS)
    for scheme in ("slate", "default"):
        tab.evaluate(_SET_COLOR_SCHEME, scheme)
        audit.accessibility_violations += tab.evaluate(FIND_LOW_CONTRAST)
    tab.evaluate(_REMOVE_HIGHLIGHTING)
    tab.evaluate(_axe_source())
    audit.accessibility_violations += run_axe(tab)
    tab.evaluate(_SET_COLOR_SCHEME, "slate")
    audit.accessibility_violations += run_axe(tab, COLOR_RULES)
    tab.set_viewport_size(PHONE)
    tab.evaluate(_WAIT_FOR_FRAME)
    audit.overflows += tab.evaluate(FIND_OVERFLOW) + tab.evaluate(FIND_COVERED_CODE)
    audit.accessibility_violations += run_axe(tab, NARROW_RULES)


@contextmanager
def record_events(tab: Page, address: str, audit: PageAudit) -> Iterator[None]:
    """Record console errors and requests to other hosts."""
    here = (address, "data:", "blob:")

    def on_console(message: Any) -> None:
        if message.type == "error":
            audit.errors.append(message.text)

    def on_page_error(error: Any) -> None:
        audit.errors.append(str(error))

    def on_request(request: Any) -> None:
        if not request.url.startswith(here):
            audit.external_requests.append(request.url)

    listeners = {"console": on_console, "pageerror": on_page_error, "request": on_request}
    for event, listener in listeners.items():
        tab.on(event, listener)
    try:
        yield
    finally:
        for event, listener in listeners.items():
            tab.remove_listener(event, listener)


_STOP_ANIMATIONS = """() => {
    document.querySelectorAll("details").forEach((each) => (each.open = true));
    const style = document.createElement("style");
    style.textContent = "* { transition: none !important; animation: none !important; }";
    document.head.append(style);
}"""

_SET_COLOR_SCHEME = "(scheme) => { document.body.dataset.mdColorScheme = scheme; }"

#: Axe would check each word of each program in every run. `FIND_LOW_CONTRAST` has already checked them.
_REMOVE_HIGHLIGHTING = """() => {
    const programs = document.querySelectorAll(".highlight pre > code");
    programs.forEach((code) => { code.textContent = code.textContent; });
}"""

#: Resize events are handled before the next frame is drawn.
_WAIT_FOR_FRAME = "() => new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)))"

HAS_COPY_BUTTONS = """() => {
    const programs = document.querySelectorAll(".md-content .language-python, .md-content .language-shell");
    return [...programs].every((block) => block.querySelector(".md-code__button[data-md-type=copy]"));
}"""
"""Whether the theme has added its copy buttons, which it does after the page has loaded."""

FIND_BLOCKS = ".md-content .highlight:not(.no-copy)"

CLICK_COPY_BUTTON = """async (block) => {
    const button = block.querySelector(".md-code__button[data-md-type=copy]");
    const title = block.querySelector(".filename");
    let text = null;
    if (button) {
        await navigator.clipboard.writeText("");
        button.click();
        text = "";
        for (let tries = 0; tries < 200 && !text; tries++) {
            await new Promise((wake) => setTimeout(wake, 5));
            text = await navigator.clipboard.readText();
        }
    }
    const language = [...block.classList].find((name) => name.startsWith("language-")) || "";
    return {
        language: language.replace("language-", ""),
        title: title ? title.textContent : "",
        shown: block.querySelector("pre > code").textContent,
        clipboard: text,
    };
}"""


def copy_blocks(tab: Page) -> list[CopiedBlock]:
    """Click each copy button of a page, and return the blocks with the text of the real clipboard.

    Each click is a call of its own. Playwright runs a call as a user gesture, and Chromium lets a script copy
    during the five seconds after a gesture only.
    """
    with suppress(TimeoutError):  # a missing button is reported with its block
        tab.wait_for_function(HAS_COPY_BUTTONS, timeout=10_000)
    blocks = tab.query_selector_all(FIND_BLOCKS)
    return [CopiedBlock(**block.evaluate(CLICK_COPY_BUTTON)) for block in blocks]


def search(tab: Page, words: str, results: int = 3) -> list[str]:
    """Search the site from any of its pages, and return the paths of the first results."""
    tab.keyboard.press("Escape")
    field = tab.locator("[data-md-component=search-query]")
    field.click()
    field.fill(words[:-1])
    field.press("End")
    tab.evaluate("document.querySelector('.md-search-result__list').replaceChildren()")
    field.press_sequentially(words[-1])  # the theme reacts to key events
    found = tab.locator(".md-search-result__list > li")
    try:
        found.first.wait_for(state="attached", timeout=10_000)
    except TimeoutError:
        return []
    hrefs = found.evaluate_all("(all) => all.map((each) => each.querySelector('a').href)")
    return [urlsplit(href).path.lstrip("/") for href in hrefs[:results]]


FIND_LOW_CONTRAST = """() => {
    const channels = (color) => {
        const parts = color.match(/[\\d.]+/g).map(Number);
        return parts.length > 3 ? parts : [...parts, 1];
    };
    const over = (front, back) => front.slice(0, 3).map((c, i) => c * front[3] + back[i] * (1 - front[3]));
    const luminance = (rgb) => {
        const [r, g, b] = rgb.map((c) => ((c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const background = (box) => {
        const color = channels(getComputedStyle(box).backgroundColor);
        if (color[3] === 1 || !box.parentElement) return color.slice(0, 3);
        return over(color, background(box.parentElement));
    };
    const seen = new Set();
    const wrong = [];
    for (const word of document.querySelectorAll(".highlight pre > code span[class]")) {
        const name = `${word.className}|${word.closest(".hll") ? "marked" : ""}`;
        if (seen.has(name) || !word.textContent.trim()) continue;
        seen.add(name);
        const back = background(word);
        const front = over(channels(getComputedStyle(word).color), back);
        const [low, high] = [luminance(front), luminance(back)].sort((a, b) => a - b);
        const ratio = (high + 0.05) / (low + 0.05);
        if (ratio < 4.5) wrong.push(`contrast of ${name} in code: ${ratio.toFixed(2)}: ${word.textContent}`);
    }
    return wrong;
}"""
"""Checks one word of each color, where axe would check every word of every program."""


@cache
def _axe_source() -> str:
    import axe_playwright_python

    file = next(Path(axe_playwright_python.__file__).parent.rglob("axe.min.js"))
    return file.read_text("utf-8")


def run_axe(tab: Page, rules: list[str] | None = None) -> list[str]:
    """Return the serious violations and duplicate landmarks. The default is all rules but `NARROW_RULES`."""
    default_rules = {"rules": {rule: {"enabled": False} for rule in NARROW_RULES}}
    options = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else default_rules)}
    found = tab.evaluate("(options) => axe.run(options)", options)["violations"]
    return [
        f"{each['id']}: {each['help']}: {node['html'][:160]} {node.get('failureSummary', '')}"
        for each in found
        if each["impact"] in ("serious", "critical") or each["id"] == "landmark-unique"
        for node in each["nodes"][:5]
    ]


@dataclass
class PageLinks:
    """The links of a built page, and the anchors that links can point to."""

    links: list[str]
    ids: set[str]


class _LinkParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found = PageLinks([], set())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.found.links.append(value)
            elif name in ("id", "name") and value:
                self.found.ids.add(value)


def find_broken_links(site: Path) -> list[str]:
    """Return the links of a built site whose file, page, or anchor doesn't exist."""
    pages = {}
    for file in site.rglob("*.html"):
        parser = _LinkParser()
        parser.feed(file.read_text("utf-8"))
        pages[file] = parser.found
    broken = []
    for file, page in pages.items():
        if file.name == "404.html":  # its links are relative to the root of the host
            continue
        for link in page.links:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = (file.parent / unquote(address.path)).resolve() if address.path else file
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(address.fragment)
            if not target.exists() or (
                anchor and target in pages and anchor not in pages[target].ids
            ):
                broken.append(f"{file.relative_to(site)}: {link}")
    return sorted(set(broken))
