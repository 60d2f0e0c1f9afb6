"""Runs that are remembered by what ran, so that no text is run twice.

The tests of the pages run the blocks of the Markdown; the tests of the site run what the clipboard held after
a click. Where both are the same text, to the byte, in the same surroundings, one run proves both.

The memory lasts for a session of tests. At the desk it may outlast it (`--cached`, as `make docs-test` asks):
a block is run again only when its text, the library, the pinned requirements or the machinery of the tests
have changed.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import cache
from hashlib import sha256
from pathlib import Path

from docs.blocks import ROOT, Block, Program
from docs.run import Interpreter, Ran, run

DESK = ROOT / ".cache" / "docs-runs"
_MACHINERY = ("run", "fork_server", "picture", "drawing/sitecustomize", "shell", "stand_in")


@dataclass(frozen=True)
class Store:
    """Where runs are remembered, and what they all depended on."""

    directory: Path
    surroundings: str

    def run(self, program: Program, interpreter: Interpreter, env: dict[str, str]) -> Ran:
        """What a run of this text printed: remembered, or run now."""
        file = self._file(program)
        if file.exists():
            return Ran(**json.loads(file.read_text("utf-8")))
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        ran = replace(run(program, interpreter, env), when=when)
        self.directory.mkdir(parents=True, exist_ok=True)
        for each in {file, self._file(replace(program, picture=None))}:
            written = each.with_name(f"{each.name}.{id(ran)}")
            written.write_text(json.dumps(asdict(ran)), "utf-8")
            written.replace(each)  # at once: another process may look
        return ran

    def forget(self, program: Program) -> None:
        """A run that was not what the page shows is no proof of anything: run it anew."""
        for each in (program, replace(program, picture=None)):
            self._file(each).unlink(missing_ok=True)

    def _file(self, program: Program) -> Path:
        drawn = program.picture.draws if program.picture else None
        block = program.block
        asked: tuple[str | None, ...] = (self.surroundings, block.language, block.text, drawn)
        if block.language == "shell":
            asked += (_digest(sorted((ROOT / "examples").rglob("*.py"))),)  # they lie beside it
        return self.directory / f"{sha256(json.dumps(asked).encode()).hexdigest()}.json"


def key(block: Block) -> str:
    """The name of a text in the report of the tests, which the site looks up."""
    return sha256(f"{block.language}\n{block.text}".encode()).hexdigest()[:16]


def surroundings(interpreter: str) -> str:
    """What all blocks depend on: the library, the pins, what runs them, and Python itself."""
    files = [
        *sorted((ROOT / "src").rglob("*.py")),
        ROOT / "requirements" / "full.txt",
        *(Path(__file__).parent / f"{name}.py" for name in _MACHINERY),
    ]
    return f"{interpreter} {platform.python_version()} {platform.machine()} {_digest(tuple(files))}"


def _digest(files: Iterable[Path]) -> str:
    return _digest_of(tuple(files))


@cache
def _digest_of(files: tuple[Path, ...]) -> str:
    told = sha256()
    for file in files:
        told.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return told.hexdigest()


def tidy_desk() -> None:
    """Throw the memory of the desk away once it is large; it is made anew."""
    if DESK.exists() and sum(1 for _ in DESK.iterdir()) > 5000:
        shutil.rmtree(DESK)
