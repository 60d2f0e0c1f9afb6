"""Finds or downloads a Redis server for the tests of caches, and starts it.

    python -m redis_server

Uses an installed ``redis-server``, or else the packages of Debian or Ubuntu, which are unpacked in ``.cache``.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).parents[1] / ".cache" / "redis"
PACKAGES = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1", "libatomic1")
HINT = "The tests of caches in Redis are skipped. To run them, install redis-server, for example with apt-get."


def find() -> str | None:
    """Return the path of an installed or downloaded server. The variable `REDIS_SERVER` overrides the search."""
    downloaded = FOLDER / "usr" / "bin" / "redis-server"
    installed = os.environ.get("REDIS_SERVER") or shutil.which("redis-server")
    return installed or (str(downloaded) if downloaded.exists() else None)


def find_or_download() -> str | None:
    """Return the path of a server, after downloading it if necessary."""
    if path := find():
        return path
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        return None
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        if not _download(folder) and os.geteuid() == 0:
            _run(folder, "apt-get", "update", "-q")
            _download(folder)
        FOLDER.mkdir(parents=True, exist_ok=True)
        for package in Path(folder).glob("*.deb"):
            _run(folder, "dpkg", "--extract", str(package), str(FOLDER))
    return find()


def _download(folder: str) -> bool:
    found = [_run(folder, "apt-get", "download", "-q", package) for package in PACKAGES]
    return all(found[:2])  # the libraries have other names in other versions, or are installed


def _run(folder: str, *command: str) -> bool:
    print(f"running: {' '.join(command)}", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(command, cwd=folder, stdout=sys.stderr, check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@contextmanager
def serving(*options: str, port: int | None = None) -> Iterator[str]:
    """Run a server without persistence while the block runs, and yield its URL.

    Args:
        *options: Additional options, such as ``"--requirepass"`` and a password.
        port: The port; by default a free one.
    """
    path = find()
    if path is None:
        raise FileNotFoundError(HINT)
    port = port or _find_free_port()
    with tempfile.TemporaryDirectory() as folder:
        process = _start([path, "--port", str(port), "--save", "", "--dir", folder, *options])
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _start(command: Sequence[str]) -> subprocess.Popen:
    libraries = ":".join(map(str, FOLDER.glob("usr/lib/*-linux-gnu")))
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries} if libraries else None
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ready to accept connections" in line:
            return process
    raise RuntimeError(f"The Redis server did not start: {''.join(lines)}")


def _find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    print(find_or_download() or HINT)
