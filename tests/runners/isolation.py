"""Run a command again where the network has only the loopback interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress

from runners.artifacts import MissingError, Say

#: Set in the isolated process: why runners are missing, as JSON.
MISSING = "RUNNERS_MISSING"


def missing_runners() -> dict[str, str] | None:
    """Return the names of the runners that can't run, with the reason, or None before `isolate`."""
    text = os.environ.get(MISSING)
    return None if text is None else json.loads(text)


def isolate(module: str, fetch: Mapping[str, Callable[[Say], object]], say: Say) -> int:
    """Fetch runners, and run a module again in a network namespace. Return its exit status.

    Args:
        module: The name of the module.
        fetch: For each runner, a function that fetches it.
        say: Prints a line.
    """
    missing = {}
    for name, get in fetch.items():
        try:
            get(say)
        except MissingError as error:
            missing[name] = str(error)
    command = [sys.executable, "-m", module, *sys.argv[1:]]
    environment = {**os.environ, MISSING: json.dumps(missing)}
    up = "ip link set lo up"
    for flags in (["--net"], ["--net", "--map-root-user"]):
        unshare = ["unshare", *flags, "sh", "-c"]
        with suppress(FileNotFoundError):
            if not subprocess.run([*unshare, up], check=False, capture_output=True).returncode:
                command = [*unshare, f'{up} && exec "$@"', "sh", *command]
                return subprocess.run(command, env=environment, check=False).returncode
    say(
        "Warning: the servers of Flink and Spark listen on all network interfaces while the tests run, because "
        "this machine can't create a network namespace (unshare --net)."
    )
    return subprocess.run(command, env=environment, check=False).returncode
