"""The tests of the pages fail if the library is broken in small ways."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from docs.blocks import ROOT, Problem
from docs.collect import read_all
from docs.compare import check_run
from docs.run import environment, run, start_fork_server


@dataclass(frozen=True)
class Mutation:
    """A change of the library's source, and the page whose test must fail.

    Attributes:
        file: The changed file, relative to the package.
        old: Text that occurs once in the file.
        new: The text that replaces it.
        page: The page that must fail.
        affected_output: Only programs whose output or error contains this text are run.
    """

    file: str
    old: str
    new: str
    page: str
    affected_output: str


MUTATIONS = {
    "results lose the ID of their model": Mutation(
        "collate/unbatch.py",
        "zip(examples, rows, repeat(model_id))",
        "zip(examples, rows, repeat(None))",
        "docs/per-key-models.md",
        "predicted by",
    ),
    "results lose their keys": Mutation(
        "handlers/keyed.py",
        "return [key for key, _ in batch]",
        "return [None for key, _ in batch]",
        "docs/keyed-model-handlers.md",
        "flower 0 ->",
    ),
    "one bad element fails its batch": Mutation(
        "handlers/error_policy.py",
        "if len(batch) == 1 or not",
        "if len(batch) >= 1 or not",
        "docs/error-handling-and-dead-letter-queues.md",
        "127 good, 1 bad",
    ),
    "misspelled options get no suggestion": Mutation(
        "errors.py",
        """return f" Did you mean {originals[found[0]]!r}?" if found else \"\"""",
        'return ""',
        "docs/memory-and-model-sharing.md",
        "Did you mean",
    ),
    "batches have no maximum size": Mutation(
        "handlers/model_handler.py",
        '"max_batch_size": "max_batch_size"',
        '"max_batch_size": "min_batch_size"',
        "docs/batching.md",
        "",
    ),
    "new model files are not loaded": Mutation(
        "serving/model_watcher.py",
        "self._metadata = new[-1]",
        "self._metadata = None",
        "docs/model-refresh.md",
        "",
    ),
}


def find_problems(mutation: Mutation, library: Path, home: Path) -> Iterator[Problem]:
    """Yield the problems of the page with this copy of the library, program by program."""
    env = {**environment(home), "PYTHONPATH": str(library)}
    programs, _, _ = read_all([ROOT / mutation.page])
    with start_fork_server(env) as interpreter:
        for program in programs:
            texts = [block.code for block in (program.output, program.error) if block]
            if program.block.language == "python" and mutation.affected_output in "\n".join(texts):
                yield from check_run(program, run(program, interpreter, env))


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_page_fails_if(name: str, tmp_path: Path) -> None:
    mutation = MUTATIONS[name]
    shutil.copytree(
        ROOT / "src", tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
    )
    file = tmp_path / "runinference" / mutation.file
    source = file.read_text("utf-8")
    assert source.count(mutation.old) == 1, f"{mutation.file} has changed. Choose another mutation."
    file.write_text(source.replace(mutation.old, mutation.new), "utf-8")
    home = Path(os.environ["RUNINFERENCE_DOCS_HOME"])
    assert next(find_problems(mutation, tmp_path, home), None), f"{mutation.page} still passes"
