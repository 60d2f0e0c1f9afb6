"""Train a model, and run the Java program with an expansion service and job server."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import grpc
import pandas as pd
from apache_beam.utils.subprocess_server import pick_port
from sklearn.linear_model import LinearRegression

SERVERS = "apache_beam.runners.portability"


def start(stack: ExitStack, module: str, *flags: str) -> str:
    """Start a server until the stack is closed, and return its address."""
    (port,) = pick_port(None)
    command = [sys.executable, "-m", f"{SERVERS}.{module}", f"--port={port}", *flags]
    server = stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
    stack.callback(server.terminate)
    address = f"localhost:{port}"
    grpc.channel_ready_future(grpc.insecure_channel(address)).result(timeout=60)
    return address


def main() -> int:
    table = pd.DataFrame(
        {"age": [40.0, 65.0, 50.0, 30.0], "bmi": [21.5, 30.0, 25.0, 28.0]}
    )
    model = LinearRegression().fit(table, 2 * table["age"] + table["bmi"])
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model.pickle"
        path.write_bytes(pickle.dumps(model))
        flags = [
            "--fully_qualified_name_glob=runinference.*",
            "--serve_loopback_worker",
        ]
        expansion_service = start(stack, "expansion_service_main", *flags)
        job_server = start(stack, "local_job_service_main")
        maven = ["mvn", "--quiet", "--batch-mode", "compile", "exec:java"]
        arguments = f"-Dexec.args={path} {expansion_service} {job_server}"
        return subprocess.run(
            [*maven, arguments], cwd=Path(__file__).parent, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
