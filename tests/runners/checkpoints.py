"""Count the elements of a stream that Flink loses at checkpoints, in pipelines without the library.

If no elements are lost without `--finish_bundle_before_checkpointing`, Beam has probably fixed the loss, and the
warning in `runinference.transforms.runner_checks` can be removed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import apache_beam as beam

from runners import artifacts, servers
from runners.child import run
from runners.features import Setting, stream
from runners.isolation import isolate, missing_runners

N_ELEMENTS = 60
OPTIONS = {
    "without": ["--checkpointing_interval=1000", "--shutdown_sources_after_idle_ms=15000"],
}
OPTIONS["with"] = [*OPTIONS["without"], "--finish_bundle_before_checkpointing"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m runners.checkpoints", description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=5, help="the number of pipelines with each option"
    )
    parser.add_argument("--json", type=Path, default=Path(".cache/runner-checkpoints.json"))
    args = parser.parse_args()
    missing = missing_runners()
    if missing is None:
        return isolate("runners.checkpoints", {"flink": artifacts.flink_job_server}, print)
    if missing:
        print(f"Flink is absent: {missing['flink']}")
        return 1
    lost: dict[str, list[int]] = {name: [] for name in OPTIONS}
    folder = Path(tempfile.mkdtemp(prefix="checkpoints-"))
    class_path = artifacts.flink_job_server(print)
    with servers.flink_job_server(class_path, folder, "[local]") as address:
        for n in range(args.runs):
            for name, flags in OPTIONS.items():
                setting = Setting(folder / f"{name}-{n}", "", lead_secs=4)
                options = ["--runner=FlinkRunner", "--parallelism=2", "--streaming", *flags]
                options += [f"--job_endpoint={address}", "--environment_type=LOOPBACK"]
                lost[name].append(N_ELEMENTS - len(set(run(build, setting, options).output or ())))
                print(f"{name} the option: {lost[name][-1]} of {N_ELEMENTS} lost", flush=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"elements": N_ELEMENTS, "lost": lost}, indent=1) + "\n")
    if not any(lost["without"]):
        print("Nothing was lost without the option. If this stays so, remove the warning about it.")
    return 1 if any(lost["with"]) else 0


def build(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    return stream(pipeline, setting, N_ELEMENTS) | beam.Map(lambda x: x)


if __name__ == "__main__":
    sys.exit(main())
