"""The command that compares runners reports what ran, and who is to blame for a failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import pytest

from runners.child import FAILED, LIMIT, OK, judge
from runners.features import FEATURES, N, Setting, plain_batch

EMBEDDED = ["--runner=FnApiRunner"]
[FEATURE] = [feature for feature in FEATURES if feature.name == "Resource hints"]


def lose_elements(pipeline, setting):
    return plain_batch(pipeline, setting) | "Lose" >> beam.Filter(lambda x: x != 7)


def fail(pipeline, setting):
    return plain_batch(pipeline, setting) | "Fail" >> beam.Map(lambda x: 1 / (x - 7))


def judged(tmp_path, **changes):
    return judge(replace(FEATURE, **changes), Setting(tmp_path, "http://127.0.0.1:9"), EMBEDDED)


def test_the_output_is_compared_with_a_plain_loop(tmp_path):
    assert judged(tmp_path) == (OK, "")


@pytest.mark.parametrize(
    ("build", "message"), [(lose_elements, "60 of 60 missing"), (fail, "ZeroDivisionError")]
)
def test_a_failure_is_ours_if_the_controls_pass(build, message, tmp_path):
    status, explanation = judged(tmp_path, build=build)
    assert status == FAILED
    assert message in explanation


def test_a_failure_is_the_limit_of_the_runner_if_a_control_fails_too(tmp_path):
    status, explanation = judged(tmp_path, build=fail, controls=(plain_batch, lose_elements))
    assert status == LIMIT
    assert "ZeroDivisionError" in explanation
    assert f"1 of {N} missing (7)" in explanation


def test_a_runner_whose_tools_are_missing_is_absent(tmp_path):
    """It is neither passed nor failed, and the message says what to install."""
    messages = {"prism": "go was not found", "flink": "java was not found", "spark": "java was"}
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "runners", "--only", *messages, "--json", str(results)]
    environment = {**os.environ, "PATH": "", "RUNNERS_CACHE": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    by_runner = json.loads(results.read_text())["runners"]
    for runner, message in messages.items():
        for result in by_runner[runner].values():
            assert result["status"] == "absent"
            assert message in result["message"]
        assert message in done.stdout
