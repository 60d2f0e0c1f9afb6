"""Under each program of the site: where and when the tests ran it, and with which versions.

It is told by the report that the tests of the documentation wrote (`make docs-test`, `make test`), and by nothing
else. A program is looked up by its text, so what was not run as it stands has no such line.
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
_MARK = re.compile(r"<!-- last run -->")


def report(root: Path) -> dict[str, Any]:
    file = root / ".cache" / "docs-report.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Fill in what the page about the tests says of their last run."""
    root = Path(config.config_file_path).parent
    return _MARK.sub(lambda _: last_run(report(root)), markdown)


def on_page_content(html: str, config: Any, **_: Any) -> str:
    blocks = report(Path(config.config_file_path).parent).get("blocks", {})
    return (
        _PROGRAM.sub(lambda program: program[0] + _line(program, blocks), html) if blocks else html
    )


def _line(program: re.Match[str], blocks: dict[str, dict[str, Any]]) -> str:
    inside = _CODE.search(program["inside"])
    code = unescape(_TAG.sub("", inside[1])).rstrip() if inside else ""
    key = sha256(f"{program['language']}\n{code}".encode()).hexdigest()[:16]
    return f'\n<p class="ran">{escape(told(blocks[key]))}</p>' if key in blocks else ""


def told(block: dict[str, Any]) -> str:
    """`Ran on 24 November 2026 in 0.6 s: Python 3.11.7, Beam 2.77.0`."""
    when = _date(block["when"])
    versions = ", ".join(
        f"{_NAMES.get(package, package)} {version}"
        for package, version in block["versions"].items()
    )
    return f"Ran on {when} in {block['seconds']:.1f} s" + (f": {versions}" if versions else "")


def _date(when: str) -> str:
    day = datetime.fromisoformat(when)
    return f"{day.day} {day:%B %Y}"


def last_run(report: dict[str, Any]) -> str:
    """The last whole run of the tests, as a paragraph and a table of its pages."""
    last = report.get("last")
    if not last:
        return (
            "This copy of the site was built without the report of a whole run (`make test` writes it), so it "
            "cannot say when its programs ran."
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
            f"The last whole run of the tests was on {_date(last['when'])}: {last['tests']} tests in "
            f"{last['seconds'] / 60:.0f} minutes. It ran {sum(counts.values())} different programs of "
            f"{len(counts)} files. {failed}",
            "",
            "| file | programs | seconds |",
            "|---|--:|--:|",
            *rows,
        ]
    )
