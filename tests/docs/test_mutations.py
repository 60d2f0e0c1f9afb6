"""Break the library in small ways: the pages notice. So their outputs are no ornament."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from docs.agree import read_all
from docs.blocks import ROOT, Fault
from docs.compare import faults_of
from docs.run import environment, forking, run


@dataclass(frozen=True)
class Mutation:
    """One change of the library's source, and the page that must notice it."""

    file: str
    old: str
    new: str
    page: str
    shows: str
    """What the page shows that is not so any more; the programs that show it are run."""


MUTATIONS = {
    "a result does not say which model spoke": Mutation(
        "splitting.py",
        "zip(examples, rows, repeat(model_id))",
        "zip(examples, rows, repeat(None))",
        "docs/model-per-key.md",
        "says",
    ),
    "results lose their keys": Mutation(
        "keyed.py",
        "keys = [key for key, _ in batch]",
        "keys = [None for key, _ in batch]",
        "docs/keyed-handlers.md",
        "till.png shows",
    ),
    "a whole batch fails with one of its elements": Mutation(
        "failing.py",
        "if len(batch) == 1 or not",
        "if len(batch) >= 1 or not",
        "docs/errors-and-dead-letters.md",
        "",
    ),
    "a misspelt option is not told": Mutation(
        "errors.py",
        """return f" Did you mean {spelt[found[0]]!r}?" if found else \"\"""",
        'return ""',
        "docs/sharing-and-memory.md",
        "Did you mean",
    ),
    "batches are as large as they like": Mutation(
        "batching.py",
        '"max_batch_size": "max_size"',
        '"max_batch_size": "min_size"',
        "docs/batching.md",
        "",
    ),
    "the oldest model is taken for the newest": Mutation(
        "watching.py",
        "[max(files, key=",
        "[min(files, key=",
        "docs/model-refresh.md",
        "",
    ),
}


def faults(mutation: Mutation, library: Path, home: Path) -> Iterator[Fault]:
    """What is wrong with the programs of the page, one after the other, with this library."""
    env = {**environment(home), "PYTHONPATH": str(library)}
    programs, _, _ = read_all([ROOT / mutation.page])
    with forking(env) as interpreter:
        for program in programs:
            texts = [block.code for block in (program.output, program.error) if block]
            if program.block.language == "python" and mutation.shows in "\n".join(texts):
                yield from faults_of(program, run(program, interpreter, env))


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_pages_notice_that(name: str, tmp_path: Path) -> None:
    mutation = MUTATIONS[name]
    shutil.copytree(
        ROOT / "src", tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
    )
    file = tmp_path / "runinference" / mutation.file
    source = file.read_text("utf-8")
    assert source.count(mutation.old) == 1, f"{mutation.file} has changed: mutate it in another way"
    file.write_text(source.replace(mutation.old, mutation.new), "utf-8")
    home = Path(os.environ["RUNINFERENCE_DOCS_HOME"])
    assert next(faults(mutation, tmp_path, home), None), f"{mutation.page} did not notice"
