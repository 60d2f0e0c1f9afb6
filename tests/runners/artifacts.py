"""Fetch runners into a cache: Prism with Go, job servers with Maven, and Flink from the Python package index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

CACHE = Path(os.environ.get("RUNNERS_CACHE", Path(__file__).parents[2] / ".cache" / "runners"))
#: The last version whose job servers have all parts in Maven Central.
JOB_SERVER_VERSION = "2.62.0"
FLINK_VERSION = "1.19.1"
#: The time limit of a command that fetches something.
FETCH_SECS = 900

#: What Spark's job server needs and doesn't declare.
SPARK = [f"org.apache.spark:spark-{part}_2.12:3.5.0" for part in ("core", "sql", "streaming")]
LOGGING = "org.slf4j:slf4j-simple:1.7.30"

POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>runners</groupId>
  <artifactId>runners</artifactId>
  <version>1</version>
  <dependencies>
{dependencies}
  </dependencies>
</project>
"""
DEPENDENCY = """    <dependency>
      <groupId>{}</groupId>
      <artifactId>{}</artifactId>
      <version>{}</version>
    </dependency>"""


Say = Callable[[str], None]


class MissingError(Exception):
    """A runner can't run here. The message says what to install."""


def prism(say: Say) -> Path:
    """Return the path of Prism, and build it if needed."""
    beam = version("apache-beam")
    path = CACHE / f"prism-{beam}"
    if not path.exists():
        go = find("go", "Prism needs Go 1.23 or later: see https://go.dev/doc/install")
        say(f"Building Prism {beam}, about 2 minutes of CPU the first time")
        with tempfile.TemporaryDirectory() as folder:
            package = f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam}"
            flags = {"GOBIN": folder, "GOFLAGS": "-mod=mod -buildvcs=false"}
            run("Prism can't be built", [go, "install", package], env={**os.environ, **flags})
            CACHE.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(folder) / "prism", path)
    return path


def flink_job_server(say: Say) -> str:
    """Return the class path of Flink's job server."""
    return class_path("beam-runners-flink-1.19", [LOGGING], "about 150 MB", say)


def spark_job_server(say: Say) -> str:
    """Return the class path of Spark's job server."""
    return class_path("beam-runners-spark-3", SPARK, "about 300 MB", say)


def class_path(artifact: str, others: list[str], size: str, say: Say) -> str:
    """Return the class path of an artifact of Beam and of others, and fetch it with Maven if needed."""
    java()
    folder = CACHE / f"{artifact}-{JOB_SERVER_VERSION}"
    path = folder / "class_path.txt"
    if not path.exists() or not all(map(os.path.exists, path.read_text().split(":"))):
        maven = find("mvn", f"{artifact} needs Maven: for example, apt-get install maven")
        say(f"Fetching {artifact} {JOB_SERVER_VERSION}, {size} the first time")
        folder.mkdir(parents=True, exist_ok=True)
        all_of_them = [f"org.apache.beam:{artifact}:{JOB_SERVER_VERSION}", *others]
        dependencies = "\n".join(DEPENDENCY.format(*each.split(":")) for each in all_of_them)
        (folder / "pom.xml").write_text(POM.format(dependencies=dependencies))
        goal = ["dependency:build-classpath", f"-Dmdep.outputFile={path}"]
        run(f"{artifact} can't be fetched", [maven, "--batch-mode", "--quiet", *goal], cwd=folder)
    return path.read_text().strip()


def flink(say: Say) -> Path:
    """Return the directory with Flink's jars, and fetch it if needed."""
    java()
    path = CACHE / f"flink-{FLINK_VERSION}"
    if not path.exists():
        say(f"Fetching Flink {FLINK_VERSION}, 230 MB")
        package = f"apache-flink-libraries=={FLINK_VERSION}"
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            options = ["--no-deps", "--no-build-isolation", "--quiet", "--dest", folder]
            pip = [sys.executable, "-m", "pip", "download", *options, package]
            run("Flink can't be fetched", pip)
            [archive] = Path(folder).glob("*.tar.gz")
            with tarfile.open(archive) as files:
                jars = [member for member in files if "/deps/lib/" in member.name]
                files.extractall(folder, jars, filter="data")
            archive.unlink()
            shutil.move(Path(folder) / f"apache-flink-libraries-{FLINK_VERSION}/deps/lib", path)
    return path


def java() -> str:
    """Return the path of Java."""
    return find(
        "java", "Flink and Spark need Java 11 or 17: for example, apt-get install openjdk-17-jre"
    )


def find(command: str, how: str) -> str:
    """Return the path of a command."""
    path = shutil.which(command)
    if path is None:
        raise MissingError(f"{command} was not found. {how}")
    return path


def run(failure: str, command: list[str], **options: object) -> None:
    """Run a command, and raise an error with the end of its output if it fails."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=FETCH_SECS,
            **options,
        )
    except subprocess.TimeoutExpired:
        raise MissingError(f"{failure}: it took more than {FETCH_SECS} s") from None
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        raise MissingError(f"{failure}: {' '.join(lines[-3:])[:500]}")
