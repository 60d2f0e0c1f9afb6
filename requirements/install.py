"""Install the pinned requirements and this project into the environment that runs this file.

    .venv/bin/python requirements/install.py demo|full|peers

Uses uv, which takes seconds where pip takes minutes. The user's pip settings (index, certificates) are passed
to uv.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
UV_VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
}


def run_pip(*arguments: str) -> str:
    """Run pip in this environment, and return its output."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def uv_environment(settings: str) -> dict[str, str]:
    """Return uv's environment variables for these settings, given as the output of `pip config list`.

    Pip's environment variables override its configuration files. Variables that are already set for uv are
    left out.
    """
    found: dict[str, str] = {}
    lines = re.findall(r"^(?:global|install|:env:)\.([\w-]+)='(.*)'$", settings, re.MULTILINE)
    for name, value in lines:
        if name in UV_VARIABLES:
            found[UV_VARIABLES[name]] = " ".join(value.replace(r"\n", " ").split())
    return {name: value for name, value in found.items() if name not in os.environ}


def main(name: str) -> None:
    run_pip("install", "--quiet", "--requirement", str(HERE / "uv.txt"))
    env = os.environ | uv_environment(run_pip("config", "list"))
    install = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
    # On a terminal, uv shows the progress of downloads. Elsewhere, it would only list every package.
    install += [] if sys.stderr.isatty() else ["--quiet"]
    for packages in (["-r", str(HERE / f"{name}.txt")], ["--no-deps", "-e", str(HERE.parent)]):
        done = subprocess.run([*install, *packages], env=env, check=False)
        if done.returncode:
            sys.exit(
                "The packages could not be installed. Check that pip can reach your package index."
            )


if __name__ == "__main__":
    main(sys.argv[1])
