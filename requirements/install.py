"""Install pinned requirements, and the project itself, into the environment that runs this file.

    .venv/bin/python requirements/install.py demo|full

uv does it, because it takes seconds where pip takes minutes; what the user told pip (which index, which
certificates) is passed on to it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MEANS_THE_SAME = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
}


def pip(*arguments: str) -> str:
    """What pip of this environment answers."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def uv_environment(settings: str) -> dict[str, str]:
    """The variables of uv that mean what these settings, as `pip config list` prints them, mean.

    A variable that the user set for uv itself wins; so does one of pip over its configuration file.
    """
    found: dict[str, str] = {}
    lines = re.findall(r"^(?:global|install|:env:)\.([\w-]+)='(.*)'$", settings, re.MULTILINE)
    for name, value in lines:
        if name in MEANS_THE_SAME:
            found[MEANS_THE_SAME[name]] = " ".join(value.replace(r"\n", " ").split())
    return {name: value for name, value in found.items() if name not in os.environ}


def main(which: str) -> None:
    pip("install", "--quiet", "--requirement", str(HERE / "uv.txt"))
    env = os.environ | uv_environment(pip("config", "list"))
    install = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
    # On a terminal uv draws how far its downloads are; elsewhere it would only list every package.
    install += [] if sys.stderr.isatty() else ["--quiet"]
    for what in (["-r", str(HERE / f"{which}.txt")], ["--no-deps", "-e", str(HERE.parent)]):
        done = subprocess.run([*install, *what], env=env, check=False)
        if done.returncode:
            sys.exit("The packages could not be installed. Can pip reach your package index?")


if __name__ == "__main__":
    main(sys.argv[1])
