"""Adds to each example when the tests ran it, and with which versions.

The data comes from the report that the documentation tests write (`make docs-test`, `make test`). Examples
are looked up by their text, so an example that was not run exactly as shown has no such line.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import datetime
from hashlib import sha256
from html import escape, unescape
from pathlib import Path
from typing import Any

_BLOCK = (
    r'<div class="language-(?P<{0}>python|shell|text)[^"]* highlight[^"]*"[^>]*>'
    r"(?P<{1}>(?:(?!</?div).)*)</div>"
)
_PROGRAM = re.compile(
    _BLOCK.format("language", "inside")
    + r'(?P<shown>(?:\s*<div class="language-text highlight(?: error)?">'
    + r'<span class="filename">(?:Output|Error)(?:(?!</?div).)*</div>)*)',
    re.DOTALL,
)
_TAG = re.compile(r"<[^>]+>")
_CODE = re.compile(r"<code[^>]*>(.*)</code>", re.DOTALL)
_NAMES = {
    "apache-beam": "Beam",
    "scikit-learn": "scikit-learn",
    "torch": "PyTorch",
    "numpy": "NumPy",
}
_CHECKED = {"pip", "git", "make"}
"""Commands that the tests check instead of run."""
_MARK = re.compile(r"<!-- last run -->")


def read_report(root: Path) -> dict[str, Any]:
    file = root / ".cache" / "docs-report.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Fill in the summary of the last test run on the page that asks for it."""
    root = Path(config.config_file_path).parent
    return _MARK.sub(lambda _: format_last_run(read_report(root)), markdown)


def on_page_content(html: str, config: Any, **_: Any) -> str:
    blocks = read_report(Path(config.config_file_path).parent).get("blocks", {})
    return (
        _PROGRAM.sub(lambda program: program[0] + _run_line(program, blocks), html)
        if blocks
        else html
    )


def _run_line(program: re.Match[str], blocks: dict[str, dict[str, Any]]) -> str:
    inside = _CODE.search(program["inside"])
    code = unescape(_TAG.sub("", inside[1])).rstrip() if inside else ""
    commands = [line.split()[0] for line in code.splitlines() if line.strip()]
    if program["language"] == "shell" and set(commands) <= _CHECKED:
        return ""
    key = sha256(f"{program['language']}\n{code}".encode()).hexdigest()[:16]
    return f'\n<p class="ran">{escape(format_run(blocks[key]))}</p>' if key in blocks else ""


def format_run(block: dict[str, Any]) -> str:
    """Return, for example, `Ran on 24 November 2026 in 0.6 s: Python 3.11.7, Beam 2.77.0`."""
    when = _format_date(block["when"])
    versions = ", ".join(
        f"{_NAMES.get(package, package)} {version}"
        for package, version in block["versions"].items()
    )
    return f"Ran on {when} in {block['seconds']:.1f} s" + (f": {versions}" if versions else "")


def _format_date(when: str) -> str:
    day = datetime.fromisoformat(when)
    return f"{day.day} {day:%B %Y}"


def format_last_run(report: dict[str, Any]) -> str:
    """Return a paragraph on the last complete test run, and a table of its pages."""
    last = report.get("last")
    if not last:
        return (
            "This copy of the site was built without the report of a complete test run (`make test` writes it), "
            "so it doesn't show when the examples ran."
        )
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for block in report["blocks"].values():
        page = block["block"].rpartition(":")[0]
        counts[page] += 1
        seconds[page] += block["seconds"]
    failed = f"{len(last['failed'])} blocks failed." if last["failed"] else "No block failed."
    rows = [f"| `{page}` | {counts[page]} | {seconds[page]:.0f} |" for page in sorted(counts)]
    return "\n".join(
        [
            f"The last complete test run was on {_format_date(last['when'])}: {last['tests']} tests in "
            f"{last['seconds'] / 60:.0f} minutes. It ran {sum(counts.values())} different code blocks "
            f"from {len(counts)} files. {failed}",
            "",
            "| file | code blocks | seconds |",
            "|---|--:|--:|",
            *rows,
        ]
    )
