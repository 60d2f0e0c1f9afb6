"""Saves the results of runs, so that the same text never runs twice.

The tests of the pages run the blocks of the Markdown; the tests of the site run the text from the clipboard.
If both texts are identical, one run covers both.

By default, results are kept for one test session. With `--cached`, as in `make docs-test`, they are kept between
sessions: a block runs again only if its text, the library, the pinned requirements, or the runner has changed.
"""

from __future__ import annotations

import json
import platform
import shutil
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import cache
from hashlib import sha256
from pathlib import Path

from docs.blocks import ROOT, Block, Program
from docs.run import Interpreter, RunResult, run

SAVED_RUNS = ROOT / ".cache" / "docs-runs"
_RUNNER_MODULES = (
    "run",
    "fork_server",
    "diagram",
    "diagram_startup/sitecustomize",
    "shell",
    "stub_command",
)


@dataclass(frozen=True)
class RunCache:
    """Results of runs in a directory.

    Attributes:
        directory: Where the results are stored.
        environment_key: Identifies everything else that a result depends on.
    """

    directory: Path
    environment_key: str

    def run(self, program: Program, interpreter: Interpreter, env: dict[str, str]) -> RunResult:
        """Return the saved result of this program, or run it."""
        file = self._file(program)
        if file.exists():
            return RunResult(**json.loads(file.read_text("utf-8")))
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        result = replace(run(program, interpreter, env), when=when)
        self.directory.mkdir(parents=True, exist_ok=True)
        for each in {file, self._file(replace(program, diagram=None))}:
            temporary = each.with_name(f"{each.name}.{id(result)}")
            temporary.write_text(json.dumps(asdict(result)), "utf-8")
            temporary.replace(each)  # atomic, because other processes read the directory
        return result

    def discard(self, program: Program) -> None:
        """Remove a result that didn't match the page, so that the program runs again."""
        for each in (program, replace(program, diagram=None)):
            self._file(each).unlink(missing_ok=True)

    def _file(self, program: Program) -> Path:
        direction = program.diagram.draws if program.diagram else None
        block = program.block
        inputs: tuple[str | None, ...] = (
            self.environment_key,
            block.language,
            block.text,
            direction,
        )
        if block.language == "shell":  # it runs beside a copy of the examples
            inputs += (digest_files(tuple(sorted((ROOT / "examples").rglob("*.py")))),)
        return self.directory / f"{sha256(json.dumps(inputs).encode()).hexdigest()}.json"


def report_key(block: Block) -> str:
    """Return the key of a block in the test report, by which the site finds it."""
    return sha256(f"{block.language}\n{block.text}".encode()).hexdigest()[:16]


def environment_key(interpreter: str) -> str:
    """Return a key for everything that all blocks depend on: the library, the pins, the runner, and Python."""
    files = [
        *sorted((ROOT / "src").rglob("*.py")),
        ROOT / "requirements" / "full.txt",
        *(Path(__file__).parent / f"{name}.py" for name in _RUNNER_MODULES),
    ]
    return f"{interpreter} {platform.python_version()} {platform.machine()} {digest_files(tuple(files))}"


@cache
def digest_files(files: tuple[Path, ...]) -> str:
    """Return a digest of the names and contents of these files."""
    total = sha256()
    for file in files:
        total.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()


def prune_saved_runs() -> None:
    """Delete the saved runs if there are very many."""
    if SAVED_RUNS.exists() and sum(1 for _ in SAVED_RUNS.iterdir()) > 5000:
        shutil.rmtree(SAVED_RUNS)
