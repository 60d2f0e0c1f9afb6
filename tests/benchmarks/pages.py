"""Writes the table and the plot of the performance page, from the numbers that ``make bench`` kept."""

import json
from pathlib import Path

from benchmarks.report import reached

ROOT = Path(__file__).parents[2]
NUMBERS = ROOT / "docs" / "assets" / "benchmarks.json"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- measured: {} -->", "<!-- end of what was measured -->"

_LEFT, _WIDTH, _ROW, _BAR = 250, 640, 34, 11


def rendered(page: str, numbers: dict) -> str:
    """The page with its table, its plot and its machine as the numbers give them."""
    for name, make in (("machine", machine), ("table", table), ("plot", plot)):
        begin = BEGIN.format(name)
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(END)
        if not found or not closed:
            raise ValueError(f"{PAGE.name} has no {begin} … {END}")
        page = f"{before}{begin}\n\n{make(numbers)}\n\n{END}{after}"
    return page


def machine(numbers: dict) -> str:
    """What it was measured on."""
    packages = ", ".join(f"{name} {version}" for name, version in numbers["packages"].items())
    return (
        f"Python {numbers['python']} on {numbers['system']} {numbers['machine']} with "
        f"{numbers['processors']} processors: {packages}."
    )


def table(numbers: dict) -> str:
    """The figures that have a goal, and the ratios of the others."""
    lines = [
        "| workload | elements | figure | median | smallest to largest | goal |",
        "|---|--:|---|--:|--:|--:|",
    ]
    for case in numbers["cases"]:
        shown = [
            name for name in case["figures"] if name in case["goals"] or name == "Beam of the ideal"
        ]
        for name in shown:
            figure, goal = case["figures"][name], case["goals"].get(name)
            said = "" if goal is None else f"{goal[0]} {goal[1]:,}"
            if goal is not None and not reached(figure["median"], goal):
                said += " (missed)"
            lines.append(
                f"| {case['workload']} {case['variant']} | {case['elements']:,} | {name} "
                f"| {_short(figure['median'])} | {_short(figure['smallest'])} to "
                f"{_short(figure['largest'])} | {said} |"
            )
    return "\n".join(lines)


def plot(numbers: dict) -> str:
    """Bars: the share of the ideal that ours and Beam's reach. Takes its colours from the page."""
    cases = [case for case in numbers["cases"] if "ours of the ideal" in case["figures"]]
    most = max(1.0, *(_share(case, who) for case in cases for who in ("ours", "Beam")))
    scale = (_WIDTH - _LEFT - 50) / most
    height = _ROW * len(cases) + 30
    parts = [
        f'<svg class="benchmark" viewBox="0 0 {_WIDTH} {height}" role="img" '
        'aria-label="Share of the ideal time: ours and Beam\'s, for each workload" '
        'font-size="12" fill="currentColor" style="max-width: 100%; height: auto">'
    ]
    for row, case in enumerate(cases):
        top = row * _ROW + 4
        name = f"{case['workload']} {case['variant']}"
        parts.append(
            f'<text x="{_LEFT - 8}" y="{top + 14}" text-anchor="end">{name.replace("%", "&#37;")}</text>'
        )
        for number, (who, opacity) in enumerate((("ours", 0.95), ("Beam", 0.4))):
            share = _share(case, who)
            y = top + number * (_BAR + 1)
            parts.append(
                f'<rect x="{_LEFT}" y="{y}" width="{share * scale:.0f}" height="{_BAR}" '
                f'opacity="{opacity}"/><text x="{_LEFT + share * scale + 5:.0f}" y="{y + 10}">'
                f"{share:.2f} {who}</text>"
            )
    x = _LEFT + scale
    parts.append(
        f'<line x1="{x:.0f}" y1="0" x2="{x:.0f}" y2="{height - 26}" stroke="currentColor" '
        f'stroke-dasharray="3 3"/><text x="{x:.0f}" y="{height - 8}" text-anchor="middle">ideal</text></svg>'
    )
    return "\n".join(parts)


def _share(case: dict, who: str) -> float:
    return case["figures"][f"{who} of the ideal"]["median"]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(rendered(page, json.loads(NUMBERS.read_text())), encoding="utf-8")
