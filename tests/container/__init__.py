"""The files of examples/container, and what the pages do with them."""

from __future__ import annotations

from docs.blocks import ROOT

CONTAINER = ROOT / "examples" / "container"

#: What the pages run before `docker build`.
COMMANDS = (
    "pip wheel --no-deps --wheel-dir dist . examples/container/steps",
    "python examples/container/train.py models/digits.pickle",
)


def read_dockerfile() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, each with its arguments."""
    lines = (CONTAINER / "Dockerfile").read_text().splitlines()
    return [tuple(line.split(" ", 1)) for line in lines if line and not line.startswith("#")]
