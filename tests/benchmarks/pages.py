"""Update the tables and plots in the documentation with the numbers that `make bench` saved."""

import json
from pathlib import Path
from statistics import median

from benchmarks.batch_sizes import CALL_MILLISECONDS
from benchmarks.memory import MEMORY, SHARED
from benchmarks.plots import bars, curves, growth_curves
from benchmarks.registry import NAMES
from benchmarks.report import meets_goal
from benchmarks.start import FIRST_RESULT, IMPORT, IMPORT_BEAM, PEAK

ROOT = Path(__file__).parents[2]
NUMBERS = ROOT / "docs" / "assets" / "benchmarks.json"
BEGIN, END = "<!-- measured: {} -->", "<!-- /measured -->"

OURS, BEAM = "runinference", "Apache Beam"
SPEEDUP = "ours ÷ Beam"
WITHOUT = "without a handler"

METRICS = {
    "MB of peak memory above the floor": "peak memory added to an empty pipeline, MB",
    "tokens per real token": "tokens computed per token, with padding",
    "bytes per result": "encoded size of a result, bytes",
    "p99 latency in ms": "p99 latency of a bundle, ms",
    "valid rows delivered": "valid rows that get a prediction",
    "model rows per row": "rows passed to the model, per row",
}
SHARES = ("valid rows delivered",)


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
    absent = (
        f"{NAMES[workload]} ({', '.join(needed)})"
        for workload, needed in numbers.get("absent", {}).items()
    )
    missing = ", ".join(absent)
    return (
        f"{numbers['processors']} CPU cores, {numbers['system']} {numbers['machine']}, "
        f"Python {numbers['python']}, {packages}."
        + (f" Not measured, because packages were not installed: {missing}." if missing else "")
    )


def plot(numbers):
    """Return a plot of the throughput of both libraries, relative to the upper bound."""
    groups = {
        name_of(case): {
            name: case["figures"][f"{who} of the ideal"]["median"]
            for name, who in ((OURS, "ours"), (BEAM, "Beam"))
        }
        for case in _compared(numbers)
    }
    return bars(
        groups,
        "Throughput in percent of the upper bound (higher is better)",
        format_value=lambda share: f"{100 * share:.3g}%",
        bound="upper bound",
    )


def table(numbers):
    """Return a table of the throughput of both libraries, with the range of their ratio."""
    lines = [f"| workload | {OURS} | {BEAM} | speedup |", "|---|--:|--:|--:|"]
    shares = []
    for case in _workloads(numbers):
        reasons = case.get("not_measured", {})
        if "Beam" not in (*case["seconds"], *reasons):
            continue
        rates = " | ".join(
            f"not measured: {reasons[who]}" if who in reasons else f"{_rate(case, who)}/s"
            for who in ("ours", "Beam")
        )
        speedup = _speedup(case) if SPEEDUP in case["figures"] else ""
        lines.append(f"| {name_of(case)} | {rates} | {speedup} |")
        if n := case.get("elements_of", {}).get("Beam"):
            shares.append(f"{name_of(case)} ({n:,} of {case['elements']:,})")
    if shares:
        lines += [
            "",
            "To shorten the benchmarks, Beam's transform processes a share of the elements of these workloads, "
            f"and the time per element is compared: {'; '.join(shares)}.",
        ]
    return "\n".join(lines)


def slower(numbers):
    """Return a table of the cases in which Beam's own transform is faster."""
    lines = ["| workload | speedup |", "|---|--:|"]
    for case in _compared(numbers):
        if case["figures"][SPEEDUP]["median"] < 1:
            lines.append(f"| {name_of(case)} | {_speedup(case)} |")
    return "\n".join(lines)


def metrics(numbers):
    """Return a table of the metrics that differ between the packages."""
    lines = [f"| workload | metric | {OURS} | {BEAM} |", "|---|---|--:|--:|"]
    for case in _compared(numbers):
        for name, figure in case["figures"].items():
            metric, _, who = name.rpartition(", ")
            beams = case["figures"].get(f"{metric}, Beam")
            if who == "ours" and beams not in (None, figure):
                values = " | ".join(_value(metric, each["median"]) for each in (figure, beams))
                lines.append(f"| {name_of(case)} | {METRICS.get(metric, metric)} | {values} |")
    return "\n".join(lines)


def others(numbers):
    """Return a table of the ratios to other ways to use Beam."""
    lines = ["| workload | compared with | speedup |", "|---|---|--:|"]
    for case in _compared(numbers):
        for name, figure in case["figures"].items():
            _, is_ratio, other = name.partition("ours ÷ ")
            if is_ratio and name != SPEEDUP:
                other = other.replace("ours", OURS)
                lines.append(f"| {name_of(case)} | {other} | {_times(figure)} |")
    return "\n".join(lines)


def start(numbers):
    """Return plots of the CPU time of new processes, and a table of their peak memory."""
    cases = {case["variant"]: _medians(case) for case in _of(numbers, "start")}
    parts = []
    for metric, until in ((IMPORT, "the handler is imported"), (FIRST_RESULT, "the first result")):
        groups = {}
        for variant, of_case in cases.items():
            values = {
                OURS: of_case.get(f"{metric}, ours"),
                BEAM: of_case.get(f"{metric}, Beam"),
                WITHOUT: of_case.get(f"{metric}, limit", 0)
                + of_case.get(f"{IMPORT_BEAM}, ours", 0),
            }
            groups[variant] = {name: value for name, value in values.items() if value}
        if any(groups.values()):
            title = f"CPU seconds until {until}"
            parts.append(bars(groups, f"{title} (lower is better)", "{:.2f}".format))
    lines = [f"| framework | {OURS} | {BEAM} | framework alone |", "|---|--:|--:|--:|"]
    for variant, of_case in cases.items():
        peaks = [of_case.get(f"{PEAK}, {who}") for who in ("ours", "Beam", "limit")]
        if any(peaks):
            values = " | ".join(f"{peak:.0f} MB" if peak else "not measured" for peak in peaks)
            lines.append(f"| {variant}, peak memory of the process | {values} |")
    parts.append("\n".join(lines[2:] and lines))
    reasons = {case["variant"]: case.get("not_measured", {}) for case in _of(numbers, "start")}
    beams = [f"{variant} ({why['Beam']})" for variant, why in reasons.items() if "Beam" in why]
    if beams:
        parts.append(f"Beam's handlers that are not measured: {', '.join(beams)}.")
    return "\n\n".join(parts)


def growth(numbers):
    """Return a plot of the time with more elements, keys, and models."""
    cases = _of(numbers, "growth")
    if not cases:
        return "Not measured yet. `make bench ONLY=growth` measures it."
    panels = {}
    for case in cases:
        count, _, noun = case["variant"].partition(" ")
        curves_of = panels.setdefault(("seconds", noun), {OURS: {}, BEAM: {}})
        for name, who in ((OURS, "ours"), (BEAM, "Beam")):
            if who in case["seconds"]:
                curves_of[name][int(count.replace(",", ""))] = median(case["seconds"][who])
    return growth_curves(panels)


def memory(numbers):
    """Return a plot of the memory with more threads and processes, and a table of its values."""
    contenders = {"ours": OURS, "limit": "plain loop", SHARED: "large_model=True"}
    panels = {}
    lines = [f"| | {OURS} | plain loop | `large_model=True` |", "|---|--:|--:|--:|"]
    for case in _of(numbers, "memory"):
        count, _, noun = case["variant"].partition(" ")
        values = {who: _medians(case).get(f"{MEMORY}, {who}") for who in contenders}
        named = panels.setdefault(("MB of memory", noun), {})
        for who, value in values.items():
            if value:
                named.setdefault(contenders[who], {})[int(count)] = value
        shown = " | ".join(f"{value:.0f} MB" if value else "" for value in values.values())
        lines.append(f"| {noun}: {count} | {shown} |")
    return growth_curves(panels, linear=True) + "\n\n" + "\n".join(lines)


def sizes(numbers):
    """Return a plot of throughput and time per call by batch size."""
    cases = _of(numbers, "sizes")
    throughput = {
        name: [case["elements"] / median(case["seconds"][who]) for case in cases]
        for name, who in {"pipeline": "ours", "plain loop": "limit"}.items()
    }
    calls = [case["figures"][f"{CALL_MILLISECONDS}, limit"]["median"] for case in cases]
    panels = {"images per second": throughput, CALL_MILLISECONDS: {"a call": calls}}
    return curves([int(case["variant"]) for case in cases], panels)


def goals(numbers):
    """Return a table of the goals of the project and the measured figures, for contributors."""
    lines = ["| workload | figure | goal | measured |", "|---|---|--:|--:|"]
    for case in _workloads(numbers):
        for name, goal in case["goals"].items():
            figure = case["figures"].get(name)
            value = figure and figure["median"]
            if figure is None:
                shown = "**not measured**"
            else:
                shown = _short(value) if meets_goal(value, goal) else f"**{_short(value)}**"
            label = f"`{case['workload']}` {case['variant']}"
            lines.append(f"| {label} | {name} | {goal[0]} {goal[1]:,} | {shown} |")
    return "\n".join(lines)


def promises(numbers):
    """Return four figures with their conditions for the home page."""
    measured = {f"{case['workload']} {case['variant']}": case for case in _compared(numbers)}

    def figure(case, name):
        if name not in measured.get(case, {"figures": ()})["figures"]:
            command = f"make bench ONLY={case.split()[0]}"
            raise SystemExit(f"The home page needs {case}. To fix this, run {command}.")
        return measured[case]["figures"][name]["median"]

    def elements(case):
        return f"{measured[case]['elements']:,}"

    w3, w6 = "W3 log-normal lengths", "W6 20 ms per request"
    w7, w8 = "W7 12 threads, bundles of 4", "W8 1 % failing, batches of 64"
    latency, beam_latency = (figure(w7, f"p99 latency in ms, {who}") for who in ("ours", "Beam"))
    delivered = figure(w8, "valid rows delivered, Beam")
    buckets = figure(w3, "ours ÷ Beam with buckets")
    lines = [
        f"**{figure(w3, SPEEDUP):.2g} times the throughput** on sequences of different lengths. "
        "[Batches of similar lengths](batching.md#sequences-of-different-lengths) need little padding. "
        "*1,024 token sequences, a BERT model with 4 layers, against Beam in arrival order. "
        f"Against Beam's length buckets: {buckets:.2g} times.*",
        f"**{figure(w6, SPEEDUP):.2g} times the throughput** with a remote model. "
        "[Requests run concurrently](remote-models.md), within the limit that you set. "
        f"*{elements(w6)} rows, 20 ms per request of 8 rows, up to 16 concurrent requests.*",
        f"**{latency:.0f} ms instead of {beam_latency:.0f} ms** p99 latency with small bundles. "
        "[Threads share model calls](batching.md#dynamic-batching-across-threads). "
        "*12 threads, bundles of 4 elements, a small PyTorch model, without a runner.*",
        f"**100% instead of {100 * delivered:.0f}%** of valid rows get a result if 1% of rows fail. "
        "[Only the failing rows](error-handling-and-dead-letter-queues.md) become dead letters. "
        f"*{elements(w8)} rows in batches of 64, with exception handling. "
        "This takes more model calls than in Beam.*",
    ]
    return "\n".join(f"* {line}" for line in lines)


def name_of(case):
    """Return the name of a case for users."""
    return f"{NAMES[case['workload']]}, {case['variant']}".replace(" %", "%")


def _workloads(numbers):
    return [case for case in numbers["cases"] if case["workload"].startswith("W")]


def _compared(numbers):
    """Return the cases that compare this library with Beam and the upper bound."""
    return [case for case in _workloads(numbers) if "ours ÷ Beam" in case["figures"]]


def _medians(case):
    """Return the median of each figure of a case."""
    return {name: figure["median"] for name, figure in case["figures"].items()}


def _of(numbers, workload):
    return [case for case in numbers["cases"] if case["workload"] == workload]


def _rate(case, who):
    """Return the elements per second of a contender with three significant digits."""
    n = case.get("elements_of", {}).get(who, case["elements"])
    rate = n / median(case["seconds"][who])
    return f"{float(f'{rate:.3g}'):,.0f}"


def _speedup(case):
    return _times(case["figures"][SPEEDUP])


def _times(figure):
    """Format a ratio with its smallest and largest value."""
    smallest, largest = _short(figure["smallest"]), _short(figure["largest"])
    return f"**{_short(figure['median'])}x** ({smallest} to {largest})"


def _value(metric, value):
    return f"{100 * value:.0f}%" if metric in SHARES else _short(value)


def _short(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


#: The home page is last, because it needs certain workloads.
PAGES = {
    ROOT / "docs" / "performance.md": {
        "machine": machine,
        "plot": plot,
        "table": table,
        "slower": slower,
        "metrics": metrics,
        "others": others,
        "sizes": sizes,
        "start": start,
        "growth": growth,
        "memory": memory,
    },
    ROOT / "CONTRIBUTING.md": {"goals": goals},
    ROOT / "docs" / "index.md": {"promises": promises},
}

if __name__ == "__main__":
    for path, parts in PAGES.items():
        page = path.read_text(encoding="utf-8")
        path.write_text(render(page, json.loads(NUMBERS.read_text()), parts), encoding="utf-8")
