"""Run a program of a page as its reader would: as a file, in an empty directory, by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from docs import shell
from docs.blocks import Program
from runinference.samples import cache as sample_files

LIMIT = 120.0
_SERVER = Path(__file__).with_name("fork_server.py")
_DRAWS = Path(__file__).with_name("drawing")


@dataclass(frozen=True)
class Ran:
    """What a run printed, and how it ended."""

    stdout: str
    stderr: str
    code: int
    seconds: float
    picture: str | None = None
    when: str = ""

    @property
    def failed(self) -> bool:
        return self.code != 0

    @property
    def timed_out(self) -> bool:
        return self.code == 124


class Interpreter(Protocol):
    """Something that runs a file of Python, and may draw the pipeline that it runs."""

    def run(self, file: Path, limit: float, draw: str | None = None) -> Ran: ...


@dataclass(frozen=True)
class Fresh:
    """A new interpreter for every program, exactly as a reader's; one that draws is told so by its environment."""

    env: dict[str, str]

    def run(self, file: Path, limit: float, draw: str | None = None) -> Ran:
        command = [sys.executable, file.name]
        if not draw:
            return execute(command, file.parent, self.env, limit)
        drawn = file.parent.with_name("drawn.mmd")
        path = os.pathsep.join([str(_DRAWS), self.env.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        env = {**self.env, "PYTHONPATH": path, "DRAW": draw, "DRAW_INTO": str(drawn)}
        ran = execute(command, file.parent, env, limit)
        return replace(ran, picture=drawn.read_text("utf-8") if drawn.exists() else "")


@dataclass(frozen=True)
class Forked:
    """A process that has imported Beam and NumPy already, and forks for every program."""

    server: subprocess.Popen[str]

    def run(self, file: Path, limit: float, draw: str | None = None) -> Ran:
        request = {"file": str(file), "limit": limit, "draw": draw}
        assert self.server.stdin
        assert self.server.stdout
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        answer = json.loads(self.server.stdout.readline())
        streams = [file.with_suffix(f".{name}") for name in ("out", "err")]
        out, err = (stream.read_text("utf-8", "replace") for stream in streams)
        drawn = file.with_suffix(".mmd")
        picture = (drawn.read_text("utf-8") if drawn.exists() else "") if draw else None
        return Ran(out, err, answer["code"], answer["seconds"], picture)


@contextmanager
def forking(env: dict[str, str]) -> Iterator[Forked]:
    """The fork server, for as long as the block lasts."""
    command = [sys.executable, str(_SERVER)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as server:
        yield Forked(server)
        assert server.stdin
        server.stdin.close()


def run(program: Program, interpreter: Interpreter, env: dict[str, str]) -> Ran:
    """Run one program in a new directory, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="docs-") as above:
        empty = Path(above) / "empty"
        empty.mkdir()
        if program.block.language == "shell":
            command = shell.command(program.block, Path(above))
            return execute(command, empty, shell.environment(env, Path(above)), LIMIT)
        file = empty / "program.py"  # not the page's name: `sklearn.py` would hide a package
        file.write_text(program.block.text, "utf-8")
        draw = program.picture.draws if program.picture else None
        return interpreter.run(file, LIMIT, draw)


def execute(command: list[str], cwd: Path, env: dict[str, str], limit: float) -> Ran:
    """Run a command in a session of its own, so that a timeout ends all of it."""
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
    return Ran(out, err, code, time.perf_counter() - began)


def environment(home: Path) -> dict[str, str]:
    """What a program sees of this machine: the tools, one thread a process, a home of its own.

    Beam's default runner first tries to download the Prism binary into the home, and falls back to
    the embedded runner where it cannot. The pages must print the same with and without a network,
    so a file lies where Prism's directory would be, and the attempt fails at once.

    Of this user's cache it has the sample models alone, which no two of the tests need train.
    """
    (home / ".apache_beam").touch()
    samples = sample_files.cache()
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
    }
