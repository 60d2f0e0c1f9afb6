"""Run all features on all runners, print a table, and save it as JSON."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from runners import artifacts, servers
from runners.child import FAILED, LIMIT, OK
from runners.columns import COLUMNS, Column
from runners.features import FEATURES, PLAIN
from runners.isolation import isolate, missing_runners

ABSENT = "absent"


def main() -> int:
    args = parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    columns = [column for column in COLUMNS if not args.only or column.name in args.only]
    missing = missing_runners()
    if missing is None:
        return isolate("runners", {column.name: column.fetch for column in columns}, console.print)
    features = [feature.name for feature in FEATURES if matches(feature.name, args.features)]
    results = {}
    for column in columns:
        if column.name in missing:
            results[column.name] = absent(features, missing[column.name])
        else:
            results[column.name] = run_column(column, features, console)
        write(args.json, results)
    console.print(make_table(columns, features, results))
    explain(columns, results, console)
    console.print(f"Results: {args.json}", soft_wrap=True)
    return (
        1 if any(r["status"] == FAILED for each in results.values() for r in each.values()) else 0
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runners", description=__doc__)
    names = [column.name for column in COLUMNS]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=names,
        metavar="RUNNER",
        help=f"the runners; default: all of {', '.join(names)}",
    )
    parser.add_argument(
        "--features", nargs="+", metavar="TEXT", help="features whose names contain one of these"
    )
    parser.add_argument(
        "--json", type=Path, default=Path(".cache/runners.json"), help="file for the results"
    )
    return parser.parse_args()


def matches(name: str, texts: list[str] | None) -> bool:
    return not texts or any(text.lower() in name.lower() for text in texts)


def absent(features: list[str], reason: str) -> dict[str, dict[str, Any]]:
    return {name: {"status": ABSENT, "message": reason} for name in features}


def run_column(column: Column, features: list[str], console: Console) -> dict[str, dict[str, Any]]:
    """Run features on a runner, and return their results by name."""
    folder = Path(tempfile.mkdtemp(prefix=f"runners-{column.name}-"))
    results = {}
    start = time.monotonic()
    try:
        with column.start(folder) as options:
            for result in run_features(column, options, [PLAIN.name, *features], folder):
                name = result.pop("feature")
                if name != PLAIN.name:
                    results[name] = result
                elif result["status"] != OK:
                    reason = f"{name} fails on it: {result['message']}"
                    console.print(f"{column.title} is absent: {reason}", soft_wrap=True)
                    return absent(features, reason)
                if result["status"] == FAILED:
                    console.print(f"{column.title}: FAILED: {result['message']}", soft_wrap=True)
    except RuntimeError as error:
        console.print(f"{column.title} is absent: {error}", soft_wrap=True)
        return absent(features, str(error))
    counts = Counter(result["status"] for result in results.values())
    summary = ", ".join(f"{n} {status}" for status, n in counts.items())
    console.print(f"{column.title}: {summary}, {time.monotonic() - start:.0f} s")
    if counts[FAILED]:
        console.print(f"Logs: {folder}", soft_wrap=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return results


def run_features(
    column: Column, options: list[str], features: list[str], folder: Path
) -> Iterator[dict[str, Any]]:
    """Yield the result of each feature. A process that runs out of time is replaced by a new one."""
    results, request = folder / "results.jsonl", folder / "request.json"
    results.touch()
    command = [sys.executable, "-m", "runners.child", str(request)]
    n_read = 0
    while features:
        request.write_text(
            json.dumps(
                {
                    "features": features,
                    "folder": str(folder),
                    "options": options,
                    "lead_secs": column.lead_secs,
                    "results": str(results),
                }
            )
        )
        with servers.process(command, folder / "pipelines.log") as child:
            began = time.monotonic()
            # A feature has two pipelines: its own, and perhaps a control.
            while features and time.monotonic() - began < 2 * column.time_limit_secs:
                ended = child.poll() is not None
                lines = results.read_text().splitlines()
                for line in lines[n_read:]:
                    yield json.loads(line)
                    features = features[1:]
                    began = time.monotonic()
                n_read = len(lines)
                if ended:
                    break
                time.sleep(0.1)
        if features:
            message = (
                f"the process ended with exit status {child.returncode}"
                if ended
                else f"no result within {2 * column.time_limit_secs:.0f} s"
            )
            yield {"feature": features[0], "status": FAILED, "message": message}
            features = features[1:]


def write(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    versions = {
        "Beam": version("apache-beam"),
        "Flink": artifacts.FLINK_VERSION,
        "job servers": artifacts.JOB_SERVER_VERSION,
    }
    path.write_text(json.dumps({"versions": versions, "runners": results}, indent=1) + "\n")


def make_table(columns: list[Column], features: list[str], results: dict[str, Any]) -> Table:
    table = Table("Feature", *(column.title for column in columns))
    styles = {OK: "green", LIMIT: "yellow", FAILED: "bold red", ABSENT: "dim"}
    for name in features:
        statuses = [results[column.name][name]["status"] for column in columns]
        table.add_row(name, *(f"[{styles[status]}]{status}[/]" for status in statuses))
    return table


def explain(columns: list[Column], results: dict[str, Any], console: Console) -> None:
    """Print why each cell of the table isn't ok."""
    for column in columns:
        by_message: dict[tuple[str, str], list[str]] = {}
        for name, result in results[column.name].items():
            if result["status"] != OK:
                by_message.setdefault((result["status"], result["message"]), []).append(name)
        for (status, message), names in by_message.items():
            console.print(
                f"{column.title}: {status}: {', '.join(names)}: {message}",
                markup=False,
                soft_wrap=True,
            )


if __name__ == "__main__":
    sys.exit(main())
