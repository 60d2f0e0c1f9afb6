"""The benchmarks run, whole and right, at a tiny size; nothing is said about their speed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize(
    ("workload", "variants"),
    [
        ("W1", {"default settings": 2_000, "batches of 1,024": 2_000}),
        ("W4", {"batches of 64": 512, "batches of 256": 512}),
    ],
)
def test_a_workload_runs_and_writes_its_numbers(workload, variants, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks"),
            *("--workload", workload, "--rounds", "1", "--scale", "0.001"),
            *("--json", tmp_path / "bench.json"),
        ],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "bench.json").read_text())
    assert {case["variant"]: case["elements"] for case in numbers["cases"]} == variants
    for case in numbers["cases"]:
        assert case["workload"] == workload
        assert set(case["seconds"]) == {"limit", "floor", "ours", "peer"}
        assert all(len(rounds) == 1 for rounds in case["seconds"].values())
        assert set(case["goals"]) <= set(case["figures"])
        assert case["variant"] in done.stdout
    if workload == "W4":
        assert all(case["facts"]["ours"]["bytes a result"] <= 4_300 for case in numbers["cases"])
