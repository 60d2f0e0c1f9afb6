"""The built site, served on localhost and looked at in a browser."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, sync_playwright

from docs.blocks import ROOT
from docs.browser import FLAGS, find_or_install

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 375, "height": 740}
NARROW_RULES = ("scrollable-region-focusable", "target-size", "aria-hidden-focus")
"""The rules of axe whose answer depends on the width; the others are slow, and asked once."""

WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


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
    """What one look at a page found."""

    errors: list[str] = field(default_factory=list)
    abroad: list[str] = field(default_factory=list)
    wider_by: int = 0
    barriers: list[str] = field(default_factory=list)


def look(chromium: Browser, address: str, page: str, scheme: str, size: dict[str, int]) -> Look:
    """Open a page in one colour scheme, at one size, and note what is wrong with it."""
    seen = Look()
    context = chromium.new_context(viewport=size, color_scheme=scheme)
    try:
        tab = context.new_page()
        tab.on("console", lambda said: said.type == "error" and seen.errors.append(said.text))
        tab.on("pageerror", lambda error: seen.errors.append(str(error)))
        tab.on(
            "request",
            lambda request: (
                request.url.startswith((address, "data:", "blob:"))
                or seen.abroad.append(request.url)
            ),
        )
        tab.goto(address + page, wait_until="load")
        tab.wait_for_function("!document.querySelector('pre.mermaid')")
        tab.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        seen.wider_by = tab.evaluate(WIDER)
        seen.barriers = _barriers(tab, NARROW_RULES if size is PHONE else ())
    finally:
        context.close()
    return seen


CLICK_ALL = """async () => {
    const held = [];
    for (const button of document.querySelectorAll(".md-code__button[data-md-type=copy]")) {
        await navigator.clipboard.writeText("");
        button.click();
        let text = "";
        for (let tries = 0; tries < 100 && !text; tries++) {
            await new Promise((wake) => setTimeout(wake, 10));
            text = await navigator.clipboard.readText();
        }
        held.push(text);
    }
    return held;
}"""


def copied(chromium: Browser, address: str, page: str) -> list[str]:
    """What the clipboard holds after each copy button of a page was clicked."""
    permissions = ["clipboard-read", "clipboard-write"]
    context = chromium.new_context(viewport=DESKTOP, permissions=permissions)
    try:
        tab = context.new_page()
        tab.goto(address + page, wait_until="load")
        return tab.evaluate(CLICK_ALL)
    finally:
        context.close()


def searched(chromium: Browser, address: str, words: str) -> str:
    """Where the first result of the site's search leads."""
    tab = chromium.new_page(viewport=DESKTOP)
    try:
        tab.goto(address, wait_until="load")
        field = tab.locator("[data-md-component=search-query]")
        field.click()
        field.press_sequentially(words, delay=30)  # the theme listens to keys
        return tab.locator(".md-search-result__link").first.get_attribute("href") or ""
    finally:
        tab.close()


def _barriers(tab: Any, rules: tuple[str, ...]) -> list[str]:
    """What axe finds serious or critical, asked for these rules, or for all of them."""
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    found = Axe().run(tab, options=options).response["violations"]
    return [
        f"{each['id']}: {each['help']}: {node['html'][:160]} {node.get('failureSummary', '')}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"][:5]
    ]
