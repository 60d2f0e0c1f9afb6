"""The runners of the table, and the pipeline options that choose them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from runners import artifacts, servers
from runners.artifacts import Say

WORKERS_2 = ["--runner=FnApiRunner", "--direct_num_workers=2"]
FLINK = ["--runner=FlinkRunner", "--parallelism=2", "--shutdown_sources_after_idle_ms=1000"]


@dataclass(frozen=True)
class Column:
    """A runner.

    Attributes:
        name: The name on the command line.
        title: The name in the table.
        fetch: Fetches what it needs, with access to the network.
        start: Starts its servers, and yields the pipeline options.
        lead_secs: The time from the start of a pipeline to its first element.
        time_limit_secs: The time limit of a pipeline.
    """

    name: str
    title: str
    fetch: Callable[[Say], object]
    start: Callable[[Path], AbstractContextManager[list[str]]]
    lead_secs: float = 2
    time_limit_secs: float = 180


def embedded(*options: str) -> Callable[[Path], AbstractContextManager[list[str]]]:
    @contextmanager
    def start(folder: Path) -> Iterator[list[str]]:
        yield list(options)

    return start


@contextmanager
def prism(folder: Path) -> Iterator[list[str]]:
    path = artifacts.prism(print)
    yield ["--runner=PrismRunner", f"--prism_location={path}", "--environment_type=LOOPBACK"]


@contextmanager
def flink_loopback(folder: Path) -> Iterator[list[str]]:
    class_path = artifacts.flink_job_server(print)
    with servers.flink_job_server(class_path, folder, "[local]") as address:
        yield [*FLINK, f"--job_endpoint={address}", "--environment_type=LOOPBACK"]


@contextmanager
def flink_process(folder: Path) -> Iterator[list[str]]:
    class_path = artifacts.flink_job_server(print)
    with servers.flink_job_server(class_path, folder, "[local]") as address:
        yield [*FLINK, f"--job_endpoint={address}", *process_options(folder)]


@contextmanager
def flink_cluster(folder: Path) -> Iterator[list[str]]:
    jars = artifacts.flink(print)
    class_path = artifacts.flink_job_server(print)
    with (
        servers.FlinkCluster(jars, folder) as cluster,
        servers.flink_job_server(class_path, folder, cluster.address) as address,
    ):
        yield [*FLINK, f"--job_endpoint={address}", *process_options(folder)]


@contextmanager
def spark(folder: Path) -> Iterator[list[str]]:
    class_path = artifacts.spark_job_server(print)
    with servers.spark_job_server(class_path, folder) as address:
        # SparkRunner and not PortableRunner, so that the library knows the runner.
        yield ["--runner=SparkRunner", f"--job_endpoint={address}", "--environment_type=LOOPBACK"]


def process_options(folder: Path) -> list[str]:
    """Return the options for workers in processes of their own."""
    script = servers.worker_script(folder)
    return ["--environment_type=PROCESS", f'--environment_config={{"command": "{script}"}}']


def nothing(say: Say) -> None:
    """Fetch nothing."""


def fetch_flink_cluster(say: Say) -> None:
    artifacts.flink_job_server(say)
    artifacts.flink(say)


COLUMNS = [
    Column("embedded", "Embedded", nothing, embedded("--runner=FnApiRunner")),
    Column(
        "threads",
        "Embedded, 2 threads",
        nothing,
        embedded(*WORKERS_2, "--direct_running_mode=multi_threading"),
    ),
    Column(
        "processes",
        "Embedded, 2 processes",
        nothing,
        embedded(*WORKERS_2, "--direct_running_mode=multi_processing"),
        lead_secs=5,
    ),
    Column("prism", "Prism", artifacts.prism, prism),
    Column("flink", "Flink, LOOPBACK", artifacts.flink_job_server, flink_loopback, lead_secs=8),
    Column("flink-process", "Flink, PROCESS", artifacts.flink_job_server, flink_process, 15),
    Column("flink-cluster", "Flink cluster", fetch_flink_cluster, flink_cluster, 25),
    Column("spark", "Spark, batch", artifacts.spark_job_server, spark, lead_secs=5),
]
