"""The benchmarks run at a tiny scale and produce correct results. Their speed is not tested."""

import json
import re
import time
from dataclasses import replace

import apache_beam as beam
import pytest

from benchmarks import pages
from benchmarks.__main__ import Schedule, main
from benchmarks.harness import SAMPLED, Case, Measurement, Outcome, Sink, measure, run_pipeline
from benchmarks.plots import bars, curves, growth_curves
from benchmarks.registry import FRAMEWORKS, MODULES, NAMES, cases
from runinference import PredictionResult

VARIANTS = {
    "W1": 2,
    "W1c": 2,
    "W2": 2,
    "W3": 1,
    "W4": 2,
    "W5": 1,
    "W6": 1,
    "W7": 6,
    "W7d": 1,
    "W8": 3,
    "W9": 1,
    "W10": 1,
    "W11": 2,
    "W12": 1,
    "W13": 4,
    "growth": 9,
    "memory": 6,
    "start": 6,
    "sizes": 4,
}
MAX_CASES = {"W13": 4, "start": 1, "W1": 1, "W2": 1, "sizes": 1, "growth": 1, "memory": 1}


def test_every_workload_has_a_name_and_a_number_of_variants():
    assert VARIANTS.keys() == MODULES.keys() == NAMES.keys() == FRAMEWORKS.keys()


@pytest.mark.parametrize("workload", VARIANTS)
def test_workload_produces_correct_results(workload):
    n_cases = 0
    for case in cases(workload, scale=0.0001):
        n_cases += 1
        assert {"limit", "ours"} <= case.runs.keys()
        for name in ["ours"] if workload == "start" else case.runs:
            if not (name.startswith("Beam") and (name != "Beam" or workload in ("W4", "W9"))):
                case.check(name, case.runs[name]())
        if n_cases == MAX_CASES.get(workload, 2):  # the other variants differ only in parameters
            break
    assert n_cases == min(MAX_CASES.get(workload, 2), VARIANTS[workload])


def test_measuring_a_workload_keeps_the_numbers_of_other_workloads(tmp_path, capsys):
    path = tmp_path / "bench.json"
    others = {"workload": "W9", "variant": "measured before", "figures": {}}
    path.write_text(json.dumps({"cases": [others]}))
    main(["--only", "W5", "--rounds", "1", "--scale", "0.001", "--json", str(path)])
    ours, kept = json.loads(path.read_text())["cases"]
    assert kept == others
    assert ours["workload"] == "W5"
    assert ours["elements"] == 2_000
    assert ours["seconds"].keys() == {"limit", "floor", "ours", "Beam"}
    assert ours["not_measured"] == {}
    assert ours["goals"].keys() <= ours["figures"].keys()
    assert "W5 100 keys" in capsys.readouterr().out


def test_absent_framework_is_reported_instead_of_earlier_numbers(tmp_path, capsys, monkeypatch):
    path = tmp_path / "bench.json"
    earlier = {"workload": "W9", "variant": "measured before", "figures": {}}
    path.write_text(json.dumps({"cases": [earlier]}))
    monkeypatch.setitem(FRAMEWORKS, "W9", ["no_such_framework"])
    main(["--only", "W9", "--json", str(path)])
    numbers = json.loads(path.read_text())
    assert numbers["absent"] == {"W9": ["no_such_framework"]}
    assert numbers["cases"] == []
    assert "absent, because no_such_framework is not installed" in capsys.readouterr().out


def test_figure_is_the_median_of_the_ratios_of_all_rounds():
    now = 0.0

    def takes(*seconds):
        left = iter(seconds)

        def run():
            nonlocal now
            now += next(left)
            return Outcome(1, metrics={"bytes": 5})

        return run

    runs = {
        "limit": takes(100, 1, 1, 1),
        "floor": takes(100, 2, 2, 2),
        "ours": takes(100, 3, 4, 5),
        "Beam": takes(100, 6, 6, 6),
    }
    case = Case("W", "variant", 1, runs, lambda name, outcome: None, {}, compared=["bytes"])
    figures = measure(case, rounds=3, clock=lambda: now).figures()
    assert figures["ours of the ideal"].rounds == [1, 0.75, 0.6]
    assert figures["ours of the ideal"].median == 0.75
    assert figures["ours ÷ Beam"].rounds == [2, 1.5, 1.2]
    assert figures["bytes, ours"].rounds == [5, 5, 5]
    assert figures["bytes, Beam ÷ ours"].rounds == [1, 1, 1]


def test_figures_compare_the_time_per_element():
    runs = dict.fromkeys(("limit", "ours", "Beam"), Outcome)
    case = Case("W", "variant", 100, runs, lambda name, outcome: None, {}, elements={"Beam": 20})
    figures = Measurement(case, {"limit": [1], "ours": [2], "Beam": [3]}).figures()
    assert figures["ours ÷ Beam"].rounds == [7.5]
    assert figures["ours of the ideal"].rounds == [0.5]


def test_short_cases_run_more_rounds():
    case = Case("W", "short", 1, dict.fromkeys(("limit", "ours"), Outcome), lambda *_: None, {})
    measured = measure(case, rounds=2, clock=time.perf_counter, seconds=60)
    assert len(measured.seconds["ours"]) == 6


def test_time_left_follows_the_speed_of_earlier_workloads(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    cases = [{"workload": f"W{number}", "took": 60.0} for number in (1, 2, 2, 3)]
    schedule = Schedule(["W1", "W2", "W3"], cases)
    schedule.start("W1")
    assert schedule.time_left() == "about 4 min left"
    now = 120.0  # twice as long
    schedule.start("W2")
    now = 180.0
    assert schedule.time_left() == "about 5 min left"


@pytest.mark.parametrize("path", pages.PAGES, ids=lambda path: path.name)
def test_page_shows_the_measured_numbers(path):
    page = path.read_text(encoding="utf-8")
    numbers = json.loads(pages.NUMBERS.read_text(encoding="utf-8"))
    assert page == pages.render(page, numbers, pages.PAGES[path])


def test_pages_for_users_show_names_instead_of_codes():
    numbers = json.loads(pages.NUMBERS.read_text(encoding="utf-8"))
    for make in (pages.plot, pages.table, pages.slower, pages.metrics, pages.others):
        assert not re.search(r"\bW\d|ideal|\bours\b", make(numbers)), make.__name__


def test_slower_cases_are_listed_with_their_ratio():
    figures = {"ours ÷ Beam": {"median": 0.5, "smallest": 0.4, "largest": 1.2}}
    case = {"workload": "W1", "variant": "batches of 8", "figures": figures}
    faster = {"ours ÷ Beam": {"median": 2, "smallest": 1, "largest": 3}}
    numbers = {"cases": [case, {**case, "variant": "batches of 9", "figures": faster}]}
    listed = pages.slower(numbers)
    assert "| Single rows, batches of 8 | **0.5x** (0.4 to 1.2) |" in listed
    assert "batches of 9" not in listed


def test_bars_have_a_legend_and_percentages():
    percent = "{:.0%}".format
    groups = {"rows": {"this": 1.25, "other": 0.5}}
    svg = bars(groups, "in % (higher is better)", percent, "upper bound")
    assert re.findall(r">([^<>]+)</text>", svg) == [
        "in &#37; (higher is better)",
        *("this", "other", "rows", "125&#37;", "50&#37;", "upper bound"),
    ]


def test_bars_skip_missing_values_and_have_no_bound_by_default():
    svg = bars({"rows": {"this": 2.0, "other": 1.0}, "images": {"other": 4.0}}, "seconds")
    assert re.findall(r">([^<>]+)</text>", svg) == [
        *("seconds", "this", "other", "rows", "2", "1", "images", "4"),
    ]
    assert "stroke-dasharray" not in svg


def test_linear_curves_start_at_zero():
    svg = growth_curves({("MB", "threads"): {"this": {1: 100, 2: 200, 4: 400}}}, linear=True)
    assert 'aria-label="MB by threads"' in svg
    *_, points = re.findall(r'<polyline points="([^"]+)"', svg)
    (x1, y1), (x2, y2), (x4, y4) = [map(float, point.split(",")) for point in points.split()]
    assert (x4 - x2) == pytest.approx(2 * (x2 - x1), abs=1)
    assert (y2 - y4) == pytest.approx(2 * (y1 - y2), abs=0.2)


def test_curves_are_within_their_axes():
    svg = curves([1, 2, 4], {"per second": {"one": [3, 70, 99], "other": [1, 2, 3]}})
    assert ">120<" not in svg  # ticks: 0, 50, 100
    assert [f">{tick}<" in svg for tick in (0, 50, 100)] == [True] * 3
    heights = [float(y) for y in re.findall(r"[\d.]+,([\d.]+)", svg)]
    assert heights == sorted(heights[:3], reverse=True) + sorted(heights[3:], reverse=True)


@pytest.mark.parametrize(
    "results",
    [
        [],
        [(1, 10), (2, 20)],
        [(1, 10), (2, 20), (3, 30), (3, 30)],
        [(1, 10), (2, 20), (2, 20)],
        [(1, 10), (2, 30), (3, 20)],
        [(1, 10), (2, 20), (3, 31)],
    ],
    ids=["none", "lost", "additional", "duplicate", "swapped", "wrong"],
)
def test_incorrect_results_raise_an_error(results):
    outcome = Outcome()
    for number, value in results:
        outcome.add(number, value)
    with pytest.raises(AssertionError, match="is correct|results came out"):
        outcome.check([1, 2, 3], [10, 20, 30])


def test_sink_counts_all_results_and_keeps_some_of_them():
    n = 20 * SAMPLED
    rows = list(range(1, n + 1))
    double = beam.Map(lambda row: PredictionResult(row, 2 * row))
    outcome = run_pipeline(lambda: rows, double, Sink(float))
    outcome.check(rows, [2 * row for row in rows])
    assert outcome.sample[1] == (1 + SAMPLED, 2 + 2 * SAMPLED)
    assert len(outcome.sample) == 20


def test_incorrect_outcome_of_a_workload_raises_an_error():
    case = next(iter(cases("W5", scale=0.0001)))
    outcome = case.runs["limit"]()
    case.check("limit", outcome)
    with pytest.raises(AssertionError):
        case.check("ours", replace(outcome, products=outcome.products + 1))
    with pytest.raises(AssertionError):
        case.check("ours", Outcome())


def test_growth_is_plotted_by_number_of_elements():
    cases = [
        {
            "workload": "growth",
            "variant": f"{n:,} elements",
            "seconds": {"ours": [n / 10_000], "Beam": [n / 1_000]},
        }
        for n in (10_000, 1_000_000)
    ]
    svg = pages.growth({"cases": cases})
    assert 'aria-label="seconds by elements"' in svg
    _, _, (x1, y1, x2, y2), (_, y3, _, y4) = [  # the first two are in the legend
        map(float, re.split("[ ,]", points)) for points in re.findall(r'points="([^"]+)"', svg)
    ]
    assert x1 < x2
    assert y1 - y2 == pytest.approx(y3 - y4)  # linear growth: lines of the same slope
    assert y3 < y1
    assert "Not measured yet" in pages.growth({"cases": []})
    del cases[1]["seconds"]["Beam"]
    assert pages.growth({"cases": cases}).count("<polyline") == 4


def test_table_names_what_was_not_measured_and_shares_of_elements():
    case = {"workload": "W9", "variant": "100 trees", "elements": 1_000, "figures": {}}
    slow = {"seconds": {"ours": [2.0]}, "not_measured": {"Beam": "took more than 90 s"}}
    assert "| XGBoost, 100 trees | 500/s | not measured: took more than 90 s |  |" in pages.table(
        {"cases": [{**case, **slow}]}
    )
    share = {"seconds": {"ours": [2.0], "Beam": [4.0]}, "elements_of": {"Beam": 100}}
    table = pages.table({"cases": [{**case, **share}]})
    assert "| 500/s | 25/s |" in table
    assert "XGBoost, 100 trees (100 of 1,000)." in table
    goal = {"goals": {"ours ÷ Beam": ["≥", 25]}}
    assert "≥ 25 | **not measured** |" in pages.goals({"cases": [{**case, **slow, **goal}]})


def test_startup_shows_the_memory_if_it_was_measured():
    case = {"workload": "start", "variant": "import", "figures": {}}
    case["seconds"] = {who: [1.0] for who in ("limit", "ours", "Beam")}
    assert "MB" not in pages.start({"cases": [case]})
    case["figures"] = {
        f"MB of peak memory, {who}": {"median": 123.4} for who in ("limit", "ours", "Beam")
    }
    assert "peak memory of the process | 123 MB | 123 MB | 123 MB |" in pages.start(
        {"cases": [case]}
    )


def test_startup_is_compared_with_the_imports_of_beam_and_the_framework():
    seconds = {
        "CPU seconds until import, limit": 1.0,
        "CPU seconds until import, ours": 2.5,
        "CPU seconds to import Beam, ours": 1.25,
    }
    figures = {name: {"median": value} for name, value in seconds.items()}
    case = {"workload": "start", "variant": "ONNX", "figures": figures}
    shown = pages.start({"cases": [{**case, "not_measured": {"Beam": "no module"}}]})
    assert 'aria-label="CPU seconds until the handler is imported' in shown
    assert ">2.50</text>" in shown
    assert ">2.25</text>" in shown
    assert "not measured: ONNX (no module)." in shown


def test_memory_is_plotted_by_threads_and_processes():
    figures = {
        f"MB of memory, {who}": {"median": value}
        for who, value in {"ours": 240.1, "limit": 115.2}.items()
    }
    cases = [
        {"workload": "memory", "variant": f"{n} {noun}", "figures": figures}
        for noun in ("threads", "processes")
        for n in (1, 2)
    ]
    shown = pages.memory({"cases": cases})
    assert 'aria-label="MB of memory by threads, MB of memory by processes"' in shown
    assert "| processes: 2 | 240 MB | 115 MB |  |" in shown


def test_pages_name_absent_workloads():
    numbers = json.loads(pages.NUMBERS.read_text(encoding="utf-8"))
    assert "Not measured" not in pages.machine({**numbers, "absent": {}})
    assert "XGBoost (xgboost)." in pages.machine({**numbers, "absent": {"W9": ["xgboost"]}})
    others = [case for case in numbers["cases"] if case["workload"] != "W6"]
    with pytest.raises(SystemExit, match="make bench ONLY=W6"):
        pages.promises({**numbers, "cases": others})
