"""Run features on one runner, in a process that the caller can stop, and append an outcome to a file for each."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.transforms.window import FixedWindows

from runinference.samples.servers import serving
from runners.features import FEATURES, PLAIN, Feature, N, Outcome, Setting, SquareServer

OK, LIMIT, FAILED = "ok", "limit", "FAILED"
#: A window for all elements. A stream can't be grouped in the global window.
ONE_WINDOW = FixedWindows(10**9)


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    features = {feature.name: feature for feature in [PLAIN, *FEATURES]}
    with serving(SquareServer()) as url:
        for name in request["features"]:
            folder = Path(request["folder"]) / uuid.uuid4().hex
            setting = Setting(folder, url, request["lead_secs"])
            start = time.monotonic()
            status, message = judge(features[name], setting, request["options"])
            result = {"feature": name, "status": status, "message": message}
            with open(request["results"], "a") as file:
                file.write(json.dumps({**result, "secs": time.monotonic() - start}) + "\n")
    # Some runners leave threads behind.
    os._exit(0)


def judge(feature: Feature, setting: Setting, options: list[str]) -> tuple[str, str]:
    """Run a feature, and its controls if it fails. Return the status and an explanation."""
    outcome = run(feature.build, setting.child("feature"), options)
    try:
        feature.verify(outcome, setting.child("feature"))
    except AssertionError as error:
        failure = str(error)
    else:
        return OK, ""
    for n, build in enumerate(feature.controls):
        control = run(build, setting.child(f"control-{n}"), options)
        try:
            control.verify_equal(list(range(N)))
            if feature.verify_control is not None:
                feature.verify_control(control)
        except AssertionError as error:
            return LIMIT, f"{failure} (a pipeline without RunInference: {error})"
    return FAILED, failure


def run(
    build: Callable[[beam.Pipeline, Setting], beam.PCollection],
    setting: Setting,
    options: list[str],
) -> Outcome:
    """Run a pipeline, and return its output."""
    setting.folder.mkdir(parents=True, exist_ok=True)
    path = setting.folder / "output.json"
    try:
        pipeline = beam.Pipeline(options=PipelineOptions(options))
        records = build(pipeline, setting)
        pipeline.options.view_as(StandardOptions).streaming = not records.is_bounded
        _ = (
            records
            | "Key" >> beam.Map(lambda record: (None, record))
            | "Window" >> beam.WindowInto(ONE_WINDOW)
            | "Group" >> beam.GroupByKey()
            | "Write" >> beam.MapTuple(lambda _, records: write(str(path), list(records)))
        )
        result = pipeline.run()
        result.wait_until_finish()
    except Exception as error:
        traceback.print_exc()
        return Outcome(None, dict, describe(error))
    output = json.loads(path.read_text()) if path.exists() else None
    return Outcome(output, partial(read_counters, result))


def write(path: str, output: list[Any]) -> None:
    """Write the output in one step, so that a retry can't leave a part of it."""
    part = Path(f"{path}.{uuid.uuid4().hex}")
    part.write_text(json.dumps(output))
    part.rename(path)


def describe(error: Exception) -> str:
    """Return the type and the text of an error."""
    text = error.details() if isinstance(error, grpc.Call) else str(error)
    return f"{type(error).__name__}: {text}"


def read_counters(result: Any) -> dict[str, int]:
    """Return the counters of a run by name. Some runners report attempted values only."""
    found: dict[str, int] = {}
    for counter in result.metrics().query()["counters"]:
        name = counter.key.metric.name
        found[name] = found.get(name, 0) + (counter.committed or counter.attempted or 0)
    return found


if __name__ == "__main__":
    main()
