"""Start the servers of a runner on this machine, and stop them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import httpx

from runners.artifacts import java

#: What Java 17 needs for Flink and Spark.
OPENS = [
    f"--add-opens=java.base/{package}=ALL-UNNAMED"
    for package in (
        "java.lang",
        "java.lang.invoke",
        "java.lang.reflect",
        "java.io",
        "java.net",
        "java.nio",
        "java.util",
        "java.util.concurrent",
        "java.util.concurrent.atomic",
        "sun.nio.ch",
        "sun.nio.cs",
        "sun.security.action",
        "sun.util.calendar",
    )
]
START_SECS = 90

FLINK_CONFIG = """
jobmanager.rpc.address: 127.0.0.1
jobmanager.rpc.port: {rpc_port}
jobmanager.bind-host: 127.0.0.1
jobmanager.memory.process.size: 1024m
taskmanager.bind-host: 127.0.0.1
taskmanager.host: 127.0.0.1
taskmanager.memory.process.size: 1024m
taskmanager.numberOfTaskSlots: 2
rest.address: 127.0.0.1
rest.bind-address: 127.0.0.1
rest.port: {rest_port}
heartbeat.interval: 1000
heartbeat.timeout: 8000
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 100
restart-strategy.fixed-delay.delay: 1s
io.tmp.dirs: {folder}/tmp
state.checkpoints.dir: file://{folder}/checkpoints
blob.storage.directory: {folder}/blobs
"""


def free_ports(n: int) -> list[int]:
    """Return ports that are free now."""
    sockets = [socket.socket() for _ in range(n)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def process(command: list[str], log: Path, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in its own process group, and kill the group in the end."""
    with log.open("ab") as file:
        started = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, **options
        )
    try:
        yield started
    finally:
        stop(started)


def stop(started: subprocess.Popen[bytes]) -> None:
    """Ask a process group to stop, and kill what is left of it."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(started.pid, signum)
        except ProcessLookupError:
            break
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            continue
    started.wait()


@contextmanager
def job_server(main_class: str, class_path: str, folder: Path, *flags: str) -> Iterator[str]:
    """Run a job server, and return its address."""
    job, artifacts, expansion = free_ports(3)
    arguments = [
        "--job-host=127.0.0.1",
        f"--job-port={job}",
        f"--artifact-port={artifacts}",
        f"--expansion-port={expansion}",
        f"--artifacts-dir={folder}",
        *flags,
    ]
    command = [java(), "-Xmx1g", *OPENS, "-cp", class_path, main_class, *arguments]
    with process(command, folder / "job_server.log") as server:
        address = f"127.0.0.1:{job}"
        channel = grpc.insecure_channel(address)
        try:
            grpc.channel_ready_future(channel).result(timeout=START_SECS)
        except grpc.FutureTimeoutError:
            raise RuntimeError(
                f"{main_class} did not start in {START_SECS} s (exit status {server.poll()}); "
                f"its output is in {folder}/job_server.log"
            ) from None
        finally:
            channel.close()
        yield address


def flink_job_server(class_path: str, folder: Path, master: str) -> object:
    flags = [f"--flink-master={master}"]
    return job_server(
        "org.apache.beam.runners.flink.FlinkJobServerDriver", class_path, folder, *flags
    )


def spark_job_server(class_path: str, folder: Path) -> object:
    flags = ["--spark-master-url=local[2]"]
    return job_server(
        "org.apache.beam.runners.spark.SparkJobServerDriver", class_path, folder, *flags
    )


class FlinkCluster:
    """A job manager and two task managers, each in its own process.

    Attributes:
        address: The address of the REST server of the job manager.
    """

    def __init__(self, jars: Path, folder: Path) -> None:
        rpc_port, rest_port = free_ports(2)
        self.address = f"127.0.0.1:{rest_port}"
        self._class_path = f"{jars}/*"
        self._folder = folder
        for name in ("tmp", "checkpoints", "blobs", "conf", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        text = FLINK_CONFIG.format(rpc_port=rpc_port, rest_port=rest_port, folder=folder)
        (folder / "conf" / "config.yaml").write_text(text)
        self._processes: list[subprocess.Popen[bytes]] = []
        self.task_managers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> FlinkCluster:
        entry = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
        self._start("job_manager", entry, "-Xmx600m")
        for _ in range(2):
            self.start_task_manager()
        self.wait_for_slots(4)
        return self

    def __exit__(self, *error: object) -> None:
        for each in self._processes:
            stop(each)

    def start_task_manager(self) -> None:
        """Start a task manager with two slots."""
        memory = [
            f"-Dtaskmanager.memory.{name}"
            for name in (
                "framework.heap.size=128m",
                "task.heap.size=256m",
                "managed.size=128m",
                "network.min=64m",
                "network.max=64m",
                "framework.off-heap.size=64m",
                "task.off-heap.size=64m",
                "jvm-metaspace.size=192m",
                "jvm-overhead.min=128m",
                "jvm-overhead.max=128m",
            )
        ]
        flags = [flag for setting in memory for flag in ("-D", setting[2:])]
        main_class = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
        flags += ["-D", "taskmanager.cpu.cores=2.0"]
        manager = self._start(
            f"task_manager_{len(self._processes)}", main_class, "-Xmx384m", *flags
        )
        self.task_managers.append(manager)

    def _start(self, name: str, main_class: str, heap: str, *flags: str) -> subprocess.Popen[bytes]:
        config = ["--configDir", str(self._folder / "conf"), *flags]
        command = [java(), heap, *OPENS, "-cp", self._class_path, main_class, *config]
        with (self._folder / "logs" / f"{name}.log").open("ab") as log:
            started = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._processes.append(started)
        return started

    def count_checkpoints(self, status: str) -> int:
        """Return the number of checkpoints of all jobs: completed, failed, in_progress, or restored."""
        jobs = self._get("/jobs")["jobs"]
        counts = [self._get(f"/jobs/{job['id']}/checkpoints").get("counts") or {} for job in jobs]
        return sum(each.get(status, 0) for each in counts)

    def _get(self, path: str) -> dict[str, Any]:
        return httpx.get(f"http://{self.address}{path}", timeout=30).json()

    def wait_for_slots(self, n: int) -> None:
        """Wait until the cluster has at least n free or used slots."""
        deadline = time.monotonic() + START_SECS
        found = None
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError, ValueError):
                found = self._get("/overview").get("slots-total")
            if found is not None and found >= n:
                return
            time.sleep(0.2)
        raise RuntimeError(
            f"The Flink cluster has {found} slots instead of {n} after {START_SECS} s; the output of its "
            f"processes is in {self._folder}/logs"
        )


def worker_script(folder: Path) -> Path:
    """Write the script that starts a Python worker for the environment PROCESS, and return its path."""
    tests = Path(__file__).parents[1]
    path = folder / "worker.sh"
    path.write_text(
        "#!/bin/sh\n"
        f'export PYTHONPATH="{tests}" OMP_NUM_THREADS=1\n'
        f'exec "{sys.executable}" -m runners.worker "$@"\n'
    )
    path.chmod(0o755)
    return path
