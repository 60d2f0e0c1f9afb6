"""The built site, served on localhost and looked at in a browser."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright

from docs.blocks import ROOT
from docs.browser import FLAGS, find_or_install

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 375, "height": 740}
COLOUR_RULES = ["color-contrast", "link-in-text-block"]
NARROW_RULES = ["scrollable-region-focusable", "target-size", "aria-hidden-focus"]
"""The rules of axe whose answer depends on the colours, and on the width; the others are asked once."""

WIDER = """() => {
    const root = document.documentElement;
    if (root.scrollWidth <= root.clientWidth) return [];
    const told = (box) => `${box.tagName}.${box.className}: ${box.textContent.trim().slice(0, 60)}`;
    const apart = "pre, .md-typeset__scrollwrap, .md-sidebar, .md-search, .tabbed-labels";
    const wide = [...document.querySelectorAll("body *")].filter(
        (box) => box.getBoundingClientRect().right > root.clientWidth + 1 && !box.closest(apart)
    );
    return [`${root.scrollWidth} pixels wide`, ...wide.slice(-3).map(told)];
}"""


def build(into: Path, config: Path = ROOT / "mkdocs.yml") -> str:
    """Build the site, strictly; what mkdocs complains of, or nothing.

    Never with `--quiet`, which hides the warnings from `--strict` as well.
    """
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    command += ["--config-file", str(config), "--site-dir", str(into)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    return done.stdout + done.stderr if done.returncode else ""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """The address of the site."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    thread.join()


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=find_or_install(), args=list(FLAGS), chromium_sandbox=False
        )
        yield chromium
        chromium.close()


@dataclass
class Look:
    """What one look at a page found to be wrong."""

    errors: list[str] = field(default_factory=list)
    abroad: list[str] = field(default_factory=list)
    too_wide: list[str] = field(default_factory=list)
    barriers: list[str] = field(default_factory=list)


@dataclass
class Copied:
    """A block as the browser shows it, and what its button put into the clipboard."""

    language: str
    title: str
    shown: str
    clipboard: str | None


@contextmanager
def opened(
    chromium: Browser, address: str, page: str = "", scheme: str = "light", **options: Any
) -> Iterator[Page]:
    """A page of the site in a tab of its own."""
    context = chromium.new_context(
        viewport=options.pop("size", DESKTOP), color_scheme=scheme, **options
    )
    try:
        tab = context.new_page()
        yield tab
    finally:
        context.close()


@contextmanager
def visited(chromium: Browser) -> Iterator[Page]:
    """A tab for one page among many: what the site's pages have in common is fetched and compiled once."""
    if not chromium.contexts:
        allowed = ["clipboard-read", "clipboard-write"]
        chromium.new_context(viewport=DESKTOP, color_scheme="light", permissions=allowed)
    tab = chromium.contexts[0].new_page()
    try:
        yield tab
    finally:
        tab.close()


def look(chromium: Browser, address: str, page: str) -> Look:
    """Open a page once, and note what is wrong with it: on a desktop and a phone, light and dark.

    The colour scheme is switched as the theme does it; that the reader's own choice decides at first
    has a test of its own.
    """
    seen = Look()
    with visited(chromium) as tab:
        listen(tab, address, seen)
        tab.goto(address + page, wait_until="load")
        tab.wait_for_function("!document.querySelector('pre.mermaid')")
        tab.evaluate(_QUIET)
        for scheme in ("slate", "default"):
            tab.evaluate(_PAINT, scheme)
            seen.barriers += tab.evaluate(CODE_CONTRAST)
        tab.evaluate(_ONE_COLOUR_OF_CODE)
        tab.evaluate(_axe())
        seen.barriers += barriers(tab)
        tab.evaluate(_PAINT, "slate")
        seen.barriers += barriers(tab, COLOUR_RULES)
        tab.set_viewport_size(PHONE)
        tab.evaluate(_NEXT_FRAME)
        seen.too_wide += tab.evaluate(WIDER)
        seen.barriers += barriers(tab, NARROW_RULES)
    return seen


def listen(tab: Page, address: str, seen: Look) -> None:
    """Note the errors of the console, and the requests that leave the host."""
    tab.on("console", lambda said: said.type == "error" and seen.errors.append(said.text))
    tab.on("pageerror", lambda error: seen.errors.append(str(error)))
    here = (address, "data:", "blob:")
    tab.on(
        "request",
        lambda request: request.url.startswith(here) or seen.abroad.append(request.url),
    )


_QUIET = """() => {
    document.querySelectorAll("details").forEach((each) => (each.open = true));
    const style = document.createElement("style");
    style.textContent = "* { transition: none !important; animation: none !important; }";
    document.head.append(style);
}"""

_PAINT = "(scheme) => { document.body.dataset.mdColorScheme = scheme; }"

#: Axe walks each word of each program in every run, most of a page's elements: `CODE_CONTRAST` looked at them.
_ONE_COLOUR_OF_CODE = """() => {
    const programs = document.querySelectorAll(".highlight pre > code");
    programs.forEach((code) => { code.textContent = code.textContent; });
}"""

#: The page hears of its new width before it is drawn.
_NEXT_FRAME = "() => new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)))"

CLICK_ALL = """async () => {
    const found = [];
    for (const block of document.querySelectorAll(".md-content .highlight:not(.no-copy)")) {
        const code = block.querySelector("pre > code");
        const button = block.querySelector(".md-code__button[data-md-type=copy]");
        const title = block.querySelector(".filename");
        let held = null;
        if (button) {
            await navigator.clipboard.writeText("");
            button.click();
            held = "";
            for (let tries = 0; tries < 200 && !held; tries++) {
                await new Promise((wake) => setTimeout(wake, 5));
                held = await navigator.clipboard.readText();
            }
        }
        const named = [...block.classList].find((name) => name.startsWith("language-")) || "";
        found.push({
            language: named.replace("language-", ""),
            title: title ? title.textContent : "",
            shown: code.textContent,
            clipboard: held,
        });
    }
    return found;
}"""


def copied(chromium: Browser, address: str, page: str) -> list[Copied]:
    """Each block of a page, and what the real clipboard held after a click on its copy button."""
    with visited(chromium) as tab:
        tab.goto(address + page, wait_until="load")
        return [Copied(**each) for each in tab.evaluate(CLICK_ALL)]


def searched(tab: Page, words: str, results: int = 3) -> list[str]:
    """The pages that the site's search finds first; the tab is at any page of it."""
    tab.keyboard.press("Escape")
    field = tab.locator("[data-md-component=search-query]")
    field.click()
    field.fill(words[:-1])
    field.press("End")
    tab.evaluate("document.querySelector('.md-search-result__list').replaceChildren()")
    field.press_sequentially(words[-1])  # the theme listens to keys
    found = tab.locator(".md-search-result__list > li")
    try:
        found.first.wait_for(state="attached", timeout=10_000)
    except TimeoutError:
        return []
    hrefs = found.evaluate_all("(all) => all.map((each) => each.querySelector('a').href)")
    return [urlsplit(href).path.lstrip("/") for href in hrefs[:results]]


CODE_CONTRAST = """() => {
    const channels = (colour) => {
        const parts = colour.match(/[\\d.]+/g).map(Number);
        return parts.length > 3 ? parts : [...parts, 1];
    };
    const over = (front, back) => front.slice(0, 3).map((c, i) => c * front[3] + back[i] * (1 - front[3]));
    const light = (rgb) => {
        const [r, g, b] = rgb.map((c) => ((c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (box) => {
        const own = channels(getComputedStyle(box).backgroundColor);
        return own[3] === 1 || !box.parentElement ? own.slice(0, 3) : over(own, behind(box.parentElement));
    };
    const seen = new Set();
    const wrong = [];
    for (const word of document.querySelectorAll(".highlight pre > code span[class]")) {
        const name = `${word.className}|${word.closest(".hll") ? "marked" : ""}`;
        if (seen.has(name) || !word.textContent.trim()) continue;
        seen.add(name);
        const back = behind(word);
        const front = over(channels(getComputedStyle(word).color), back);
        const [low, high] = [light(front), light(back)].sort((a, b) => a - b);
        const ratio = (high + 0.05) / (low + 0.05);
        if (ratio < 4.5) wrong.push(`contrast of ${name} in code: ${ratio.toFixed(2)}: ${word.textContent}`);
    }
    return wrong;
}"""
"""One word of each colour is enough, where axe would look at every word of every program."""


@cache
def _axe() -> str:
    import axe_playwright_python

    file = next(Path(axe_playwright_python.__file__).parent.rglob("axe.min.js"))
    return file.read_text("utf-8")


def barriers(tab: Page, rules: list[str] | None = None) -> list[str]:
    """What axe finds serious or critical, asked for these rules, or for all but those of a narrow page."""
    later = {"rules": {rule: {"enabled": False} for rule in NARROW_RULES}}
    options = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else later)}
    found = tab.evaluate("(options) => axe.run(options)", options)["violations"]
    return [
        f"{each['id']}: {each['help']}: {node['html'][:160]} {node.get('failureSummary', '')}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"][:5]
    ]


@dataclass
class Html:
    """The links of one built page, and the places that a link can lead to."""

    links: list[str]
    ids: set[str]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found = Html([], set())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.found.links.append(value)
            elif name in ("id", "name") and value:
                self.found.ids.add(value)


def dead_links(site: Path) -> list[str]:
    """The links of a built site that lead nowhere in it: files, pages, places on a page."""
    pages = {}
    for file in site.rglob("*.html"):
        parser = _Parser()
        parser.feed(file.read_text("utf-8"))
        pages[file] = parser.found
    dead = []
    for file, page in pages.items():
        if file.name == "404.html":  # its links begin at the root of the host
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
                dead.append(f"{file.relative_to(site)}: {link}")
    return sorted(set(dead))
