"""Update the tables on the page of runners with the saved results of `make test-runners` and `make test-kills`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.pages import render
from runners.child import OK
from runners.columns import COLUMNS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "assets" / "runners.json"
KILLS = ROOT / "docs" / "assets" / "runner-kills.json"
CHECKPOINTS = ROOT / "docs" / "assets" / "runner-checkpoints.json"
#: The name of a job, which Beam chooses at random.
JOB = re.compile(r"Pipeline \S+ failed in state FAILED: ")
SCALE = ROOT / "docs" / "assets" / "runner-scale.json"


def main() -> None:
    page = ROOT / "docs" / "runners.md"
    files = {"features": RESULTS, "kills": KILLS, "scale": SCALE, "checkpoints": CHECKPOINTS}
    numbers = {name: json.loads(path.read_text()) for name, path in files.items()}
    parts = {
        "features": feature_table,
        "limits": limits,
        "checkpoints": checkpoint_table,
        "kills": kill_table,
        "scale": scale_table,
    }
    page.write_text(render(page.read_text(), numbers, parts))


def table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def feature_table(numbers: dict[str, Any]) -> str:
    """One row for each feature, one column for each runner."""
    results = numbers["features"]["runners"]
    columns = [column for column in COLUMNS if column.name in results]
    features = results[columns[0].name]
    rows = [
        [name, *(results[column.name][name]["status"] for column in columns)] for name in features
    ]
    return table(["", *(column.title for column in columns)], rows)


def limits(numbers: dict[str, Any]) -> str:
    """What happens for each cell that isn't ok, in the library and in a pipeline without it."""
    rows = []
    for column in COLUMNS:
        for name, result in numbers["features"]["runners"].get(column.name, {}).items():
            if result["status"] == OK:
                continue
            ours, _, plain = result["message"].partition(" (a pipeline without RunInference: ")
            plain = JOB.sub("", plain.removesuffix(")"))
            rows.append([column.title, name, ours.partition(". ")[0], plain or "ok"])
    return table(["runner", "feature", "with `RunInference`", "without it"], rows)


def kill_table(numbers: dict[str, Any]) -> str:
    """One row for each scenario, over all of its runs."""
    rows = []
    for runs in numbers["kills"].values():
        worker, manager = zip(*(run["recovery_secs"] for run in runs), strict=True)
        rows.append(
            [
                runs[0]["title"],
                len(runs),
                sum(run["elements"] for run in runs),
                sum(run["kills"] for run in runs),
                sum(run["lost"] for run in runs),
                sum(run["duplicates"] for run in runs),
                sum(run["wrong"] for run in runs),
                spread(map(round, worker)),
                spread(map(round, manager)),
                spread(run["loads"] for run in runs),
                spread(run["checkpoints_restored"] for run in runs),
                max(run["processes_left"] for run in runs),
                max(len(run["files_left"]) for run in runs),
            ]
        )
    header = [
        "pipeline",
        "runs",
        "elements",
        "kills",
        "lost",
        "duplicates",
        "wrong",
        "recovery after a worker kill, s",
        "after a task manager kill, s",
        "model loads",
        "checkpoints restored",
        "processes left",
        "files left",
    ]
    return table(header, rows)


def checkpoint_table(numbers: dict[str, Any]) -> str:
    """One row for each run, with the lost elements without and with the option."""
    lost, n = numbers["checkpoints"]["lost"], numbers["checkpoints"]["elements"]
    rows = [
        [f"{name} `--finish_bundle_before_checkpointing`", n, ", ".join(map(str, runs))]
        for name, runs in lost.items()
    ]
    return table(["", "elements", "lost elements in each run"], rows)


def scale_table(numbers: dict[str, Any]) -> str:
    """One row for each workload and runner, with the rate as a multiple of the embedded runner's."""
    rows = []
    for workload, runners in numbers["scale"].items():
        base = runners["embedded"]["per_sec"]
        for each in runners.values():
            rows.append(
                [
                    workload,
                    each["title"],
                    f"{each['per_sec']:,.0f}",
                    f"{each['per_sec'] / base:.2f}",
                    f"{each['call_secs'] / each['infer_secs']:.2f}",
                    f"{each['before_secs']:.1f}",
                    f"{each['after_secs']:.1f}",
                ]
            )
    header = [
        "workload",
        "runner",
        "elements/s",
        "x embedded",
        "calls at the same time",
        "before the first call, s",
        "after the last call, s",
    ]
    return table(header, rows)


def spread(values: Any) -> str:
    found = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


if __name__ == "__main__":
    main()
