"""Runs a program from a page as its reader would: as a file, by itself, in an empty directory."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from docs import shell
from docs.blocks import Program
from runinference.samples.cache import cache_directory

TIMEOUT_S = 120.0

#: Packages that many pages import. TensorFlow is not among them: it starts threads, which do not survive a fork.
PRELOADED = ("sklearn.linear_model", "sklearn.datasets", "torch", "transformers.pipelines")
_SERVER = Path(__file__).with_name("fork_server.py")
_DIAGRAM_STARTUP = Path(__file__).with_name("diagram_startup")


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        stdout: Standard output.
        stderr: Standard error.
        code: Exit code; 124 after a timeout.
        seconds: Duration of the run.
        diagram: The pipeline as a Mermaid flowchart, if it was requested.
        when: Time of the run in UTC, in ISO format.
    """

    stdout: str
    stderr: str
    code: int
    seconds: float
    diagram: str | None = None
    when: str = ""

    @property
    def failed(self) -> bool:
        return self.code != 0

    @property
    def timed_out(self) -> bool:
        return self.code == 124


class Interpreter(Protocol):
    """Runs a Python file, and draws its pipeline if `draw` gives a direction."""

    def run(self, file: Path, limit: float, draw: str | None = None) -> RunResult: ...


@dataclass(frozen=True)
class FreshInterpreter:
    """Starts a new interpreter for every program, as a reader would."""

    env: dict[str, str]

    def run(self, file: Path, limit: float, draw: str | None = None) -> RunResult:
        command = [sys.executable, file.name]
        if not draw:
            return execute(command, file.parent, self.env, limit)
        drawn = file.parent.with_name("drawn.mmd")
        path = os.pathsep.join([str(_DIAGRAM_STARTUP), self.env.get("PYTHONPATH", "")]).rstrip(
            os.pathsep
        )
        env = {**self.env, "PYTHONPATH": path, "DRAW": draw, "DRAW_INTO": str(drawn)}
        result = execute(command, file.parent, env, limit)
        return replace(result, diagram=drawn.read_text("utf-8") if drawn.exists() else "")


@dataclass(frozen=True)
class ForkServer:
    """Runs every program in a fork of a process that has already imported what most pages import."""

    server: subprocess.Popen[str]

    def run(self, file: Path, limit: float, draw: str | None = None) -> RunResult:
        request = {"file": str(file), "limit": limit, "draw": draw}
        assert self.server.stdin
        assert self.server.stdout
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        response = json.loads(self.server.stdout.readline())
        streams = [file.with_suffix(f".{name}") for name in ("out", "err")]
        out, err = (stream.read_text("utf-8", "replace") for stream in streams)
        drawn = file.with_suffix(".mmd")
        diagram = (drawn.read_text("utf-8") if drawn.exists() else "") if draw else None
        return RunResult(out, err, response["code"], response["seconds"], diagram)


@contextmanager
def start_fork_server(env: dict[str, str], packages: Sequence[str] = ()) -> Iterator[ForkServer]:
    """Run the fork server until the end of the `with` block. It imports Beam, NumPy and these packages."""
    command = [sys.executable, str(_SERVER), *packages]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as server:
        yield ForkServer(server)
        assert server.stdin
        server.stdin.close()


def run(program: Program, interpreter: Interpreter, env: dict[str, str]) -> RunResult:
    """Run one program in a new, temporary directory."""
    with tempfile.TemporaryDirectory(prefix="docs-") as parent:
        empty = Path(parent) / "empty"
        empty.mkdir()
        if program.block.language == "shell":
            command = shell.prepare_command(program.block, Path(parent))
            return execute(command, empty, shell.environment(env, Path(parent)), TIMEOUT_S)
        file = empty / "program.py"  # a name that hides no package
        file.write_text(program.block.text, "utf-8")
        draw = program.diagram.draws if program.diagram else None
        return interpreter.run(file, TIMEOUT_S, draw)


def execute(command: list[str], cwd: Path, env: dict[str, str], limit: float) -> RunResult:
    """Run a command in a new session, so that a timeout ends all of its processes."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=limit)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        code = 124
    return RunResult(out, err, code, time.perf_counter() - began)


def environment(home: Path, prism: Path | None = None) -> dict[str, str]:
    """Return the environment of programs: this machine's tools, one thread per process, and `home`.

    Beam's default runner first tries to download the Prism binary into the home directory, and falls back
    to the embedded runner. Pages must print the same with and without a network. So by default, a file takes
    the place of Prism's directory, and the download fails at once. If the path of the binary is given, Beam finds
    it where it would have saved it.

    The cache contains only this user's sample models, so that each is trained once.
    """
    if prism is None:
        (home / ".apache_beam").touch()
    else:
        _install_prism(home, prism)
    samples = cache_directory()
    samples.mkdir(parents=True, exist_ok=True)
    (home / "cache").mkdir(exist_ok=True)
    with suppress(FileExistsError):
        (home / "cache" / samples.name).symlink_to(samples)
    keep = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE")
    env = {name: os.environ[name] for name in keep if name in os.environ}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', os.defpath)}"
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return env | {
        **dict.fromkeys(threads, "1"),
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "PYTHONWARNINGS": "ignore",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _install_prism(home: Path, prism: Path) -> None:
    """Put the Prism binary where Beam looks for it before it downloads Prism."""
    if not prism.is_file():
        raise FileNotFoundError(f"Prism is not at {prism}. To fix this, set PRISM to its path.")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"apache_beam-v{version('apache-beam')}-prism-{platform.system().lower()}-{machine}.zip"
    directory = home / ".apache_beam" / "cache" / "prism" / "bin"
    directory.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        (directory / name).symlink_to(prism.resolve())
