"""Writes what ``make bench`` kept into the pages that show it: tables, plots, the promises of the first page."""

import json
from pathlib import Path
from statistics import median

from benchmarks.batch_sizes import CALL
from benchmarks.plots import bars, curves
from benchmarks.report import reached

ROOT = Path(__file__).parents[2]
NUMBERS = ROOT / "docs" / "assets" / "benchmarks.json"
BEGIN, END = "<!-- measured: {} -->", "<!-- end of what was measured -->"


def rendered(page, numbers, parts):
    """The text of a page with its parts as the numbers give them."""
    for name, make in parts.items():
        begin = BEGIN.format(name)
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(END)
        if not found or not closed:
            raise ValueError(f"The page has no {begin} … {END}")
        page = f"{before}{begin}\n\n{make(numbers)}\n\n{END}{after}"
    return page


def machine(numbers):
    """What it was measured on."""
    packages = ", ".join(f"{name} {version}" for name, version in numbers["packages"].items())
    return (
        f"Python {numbers['python']} on {numbers['system']} {numbers['machine']} with "
        f"{numbers['processors']} processors: {packages}."
    )


def table(numbers):
    """A row for each case: the shares of the ideal and the ratio, with their ranges and what was missed."""
    names = ("ours of the ideal", "Beam of the ideal", "ours ÷ Beam")
    lines = [f"| workload | elements | {' | '.join(names)} |", "|---|--:|--:|--:|--:|"]
    for case in _compared(numbers):
        cells = " | ".join(_ratio(case, name) for name in names)
        lines.append(f"| {_name(case)} | {case['elements']:,} | {cells} |")
    return "\n".join(lines)


def _ratio(case, name):
    figure = case["figures"][name]
    smallest, largest = _short(figure["smallest"]), _short(figure["largest"])
    return f"**{_short(figure['median'])}** ({smallest} to {largest}){_missed(case, name)}"


def _missed(case, name):
    goal = case["goals"].get(name)
    if goal is None or reached(case["figures"][name]["median"], goal):
        return ""
    return f", missed: {goal[0]} {goal[1]:,}"


def facts(numbers):
    """What else was measured, if it has a goal or if Beam's differs."""
    lines = ["| workload | | ours | Beam |", "|---|---|--:|--:|"]
    for case in _compared(numbers):
        for name, figure in case["figures"].items():
            what, _, who = name.rpartition(", ")
            beams = case["figures"].get(f"{what}, Beam")
            if who == "ours" and (name in case["goals"] or beams != figure):
                shown = f"{_short(figure['median'])}{_missed(case, name)}"
                shown_beams = _short(beams["median"]) if beams else ""
                lines.append(f"| {_name(case)} | {what} | {shown} | {shown_beams} |")
    return "\n".join(lines)


def others(numbers):
    """The ratios to other ways of doing the same."""
    lines = ["| workload | ratio | median | smallest to largest |", "|---|---|--:|--:|"]
    for case in _compared(numbers):
        for name, figure in case["figures"].items():
            if name.startswith("ours ÷") and name != "ours ÷ Beam":
                shown = f"{_short(figure['median'])}{_missed(case, name)}"
                spread = f"{_short(figure['smallest'])} to {_short(figure['largest'])}"
                lines.append(f"| {_name(case)} | {name} | {shown} | {spread} |")
    return "\n".join(lines)


def start(numbers):
    """Seconds until a new process has imported the library, and until its first result."""
    lines = ["| | bare | ours | Beam |", "|---|--:|--:|--:|"]
    for case in _of(numbers, "start"):
        medians = (median(case["seconds"][who]) for who in ("limit", "ours", "Beam"))
        lines.append(f"| {case['variant']} | {' | '.join(f'{s:.2f} s' for s in medians)} |")
    return "\n".join(lines)


def plot(numbers):
    """The share of the ideal that ours and Beam's reach."""
    return bars(_compared(numbers))


def sizes(numbers):
    """Throughput and time of a call, over the size of batches."""
    cases = _of(numbers, "sizes")
    a_second = {
        name: [case["elements"] / median(case["seconds"][who]) for case in cases]
        for name, who in {"pipeline": "ours", "bare loop": "limit"}.items()
    }
    calls = [case["figures"][f"{CALL}, limit"]["median"] for case in cases]
    panels = {"elements a second": a_second, CALL: {"a call": calls}}
    return curves([int(case["variant"]) for case in cases], panels)


def promises(numbers):
    """Four figures for the first page."""
    measured = {_name(case): case["figures"] for case in numbers["cases"]}

    def figure(case, name):
        return measured[case][name]["median"]

    w7 = "W7 12 threads, bundles of 4"
    ours, beams = (figure(w7, f"p99 latency in ms, {who}") for who in ("ours", "Beam"))
    kept = figure("W8 1 % bad, batches of 64", "good rows delivered, Beam")
    lines = [
        f"**{_times('W3 log-normal lengths', figure)} as fast** on texts of very different lengths",
        f"**{_times('W6 20 ms a request', figure)} as fast** with a remote model",
        f"**{ours:.0f} ms, not {beams:.0f}:** the slowest 1 % of answers, 12 threads on one model",
        f"**100 %, not {100 * kept:.0f} %** of the good rows delivered when 1 % is bad",
    ]
    return "\n".join(f"* {line}" for line in lines)


def _times(case, figure):
    return f"{figure(case, 'ours ÷ Beam'):.2g} times"


def _compared(numbers):
    """The cases in which ours, Beam's and the ideal do the same work."""
    return [case for case in numbers["cases"] if case["workload"].startswith("W")]


def _name(case):
    return f"{case['workload']} {case['variant']}"


def _of(numbers, workload):
    return [case for case in numbers["cases"] if case["workload"] == workload]


def _short(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


PAGES = {
    ROOT / "docs" / "index.md": {"promises": promises},
    ROOT / "docs" / "performance.md": {
        "machine": machine,
        "plot": plot,
        "table": table,
        "facts": facts,
        "others": others,
        "sizes": sizes,
        "start": start,
    },
}

if __name__ == "__main__":
    for path, parts in PAGES.items():
        page = path.read_text(encoding="utf-8")
        path.write_text(rendered(page, json.loads(NUMBERS.read_text()), parts), encoding="utf-8")
