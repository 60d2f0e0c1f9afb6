"""Update the tables and plots in docs/ with the numbers that `make bench` saved."""

import json
from pathlib import Path
from statistics import median

from benchmarks.batch_sizes import CALL_MILLISECONDS
from benchmarks.plots import bars, curves
from benchmarks.report import meets_goal

ROOT = Path(__file__).parents[2]
NUMBERS = ROOT / "docs" / "assets" / "benchmarks.json"
BEGIN, END = "<!-- measured: {} -->", "<!-- /measured -->"


def render(page, numbers, parts):
    """Return the page with its generated parts updated."""
    for name, make in parts.items():
        begin = BEGIN.format(name)
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(END)
        if not found or not closed:
            raise ValueError(f"The page has no section {begin} … {END}.")
        page = f"{before}{begin}\n\n{make(numbers)}\n\n{END}{after}"
    return page


def machine(numbers):
    """Describe the machine and package versions."""
    packages = ", ".join(f"{name} {version}" for name, version in numbers["packages"].items())
    return (
        f"Python {numbers['python']} on {numbers['system']} {numbers['machine']} with "
        f"{numbers['processors']} processors: {packages}."
    )


def table(numbers):
    """Return a table of the ratios of each case, with ranges and missed goals."""
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
    if goal is None or meets_goal(case["figures"][name]["median"], goal):
        return ""
    return f", missed: {goal[0]} {goal[1]:,}"


def metrics(numbers):
    """Return a table of the metrics that have a goal or differ between the packages."""
    lines = ["| workload | | ours | Beam |", "|---|---|--:|--:|"]
    for case in _compared(numbers):
        for name, figure in case["figures"].items():
            metric, _, who = name.rpartition(", ")
            beams = case["figures"].get(f"{metric}, Beam")
            if who == "ours" and (name in case["goals"] or beams != figure):
                shown = f"{_short(figure['median'])}{_missed(case, name)}"
                shown_beams = _short(beams["median"]) if beams else ""
                lines.append(f"| {_name(case)} | {metric} | {shown} | {shown_beams} |")
    return "\n".join(lines)


def others(numbers):
    """Return a table of the ratios to other ways to use Beam."""
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
    """Return a plot of the share of the ideal that this library and Beam reach."""
    return bars(_compared(numbers))


def sizes(numbers):
    """Return a plot of throughput and time per call by batch size."""
    cases = _of(numbers, "sizes")
    throughput = {
        name: [case["elements"] / median(case["seconds"][who]) for case in cases]
        for name, who in {"pipeline": "ours", "bare loop": "limit"}.items()
    }
    calls = [case["figures"][f"{CALL_MILLISECONDS}, limit"]["median"] for case in cases]
    panels = {"elements per second": throughput, CALL_MILLISECONDS: {"a call": calls}}
    return curves([int(case["variant"]) for case in cases], panels)


def promises(numbers):
    """Return four figures for the home page."""
    measured = {_name(case): case["figures"] for case in numbers["cases"]}

    def figure(case, name):
        return measured[case][name]["median"]

    w7 = "W7 12 threads, bundles of 4"
    ours, beams = (figure(w7, f"p99 latency in ms, {who}") for who in ("ours", "Beam"))
    delivered = figure("W8 1 % failing, batches of 64", "valid rows delivered, Beam")
    lines = [
        f"**{_times('W3 log-normal lengths', figure)} as fast** on sequences of varying length",
        f"**{_times('W6 20 ms per request', figure)} as fast** with a remote model",
        f"**{ours:.0f} ms instead of {beams:.0f} ms** p99 latency with 12 threads on one model",
        f"**100 % instead of {100 * delivered:.0f} %** of valid rows delivered when 1 % of rows fail",
    ]
    return "\n".join(f"* {line}" for line in lines)


def _times(case, figure):
    return f"{figure(case, 'ours ÷ Beam'):.2g} times"


def _compared(numbers):
    """Return the cases that compare this library with Beam and the ideal."""
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
        "metrics": metrics,
        "others": others,
        "sizes": sizes,
        "start": start,
    },
}

if __name__ == "__main__":
    for path, parts in PAGES.items():
        page = path.read_text(encoding="utf-8")
        path.write_text(render(page, json.loads(NUMBERS.read_text()), parts), encoding="utf-8")
