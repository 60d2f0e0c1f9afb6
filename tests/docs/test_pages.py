"""Every code block in pages, README and docstrings runs, and prints the output that the page shows.

pytest-examples collects the Python blocks. `make docs-format` formats them with `--update-examples`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from pytest_examples import CodeExample, EvalExample, find_examples

from docs import ledger, report
from docs.blocks import ROOT, Block, Problem, Program
from docs.collect import find_sources, read_all, set_style
from docs.compare import check_run
from docs.page_selection import selected_pages
from docs.run import Interpreter
from docs.run_cache import RunCache

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

PARSERS: dict[str, tuple[Callable[[str], object], type[Exception]]] = {
    "json": (json.loads, ValueError),
    "yaml": (yaml.safe_load, yaml.YAMLError),
    "toml": (tomllib.loads, tomllib.TOMLDecodeError),
}


class Contents(NamedTuple):
    """The contents of the tested pages."""

    programs: list[Program]
    blocks: list[Block]
    problems: list[Problem]


def find_paths(pages: tuple[str, ...]) -> list[Path]:
    """Return these pages, by default all, without notebooks."""
    selected = [ROOT / page for page in pages if not page.endswith(".ipynb")]
    return selected if pages else find_sources()


@cache
def read(pages: tuple[str, ...]) -> Contents:
    paths = find_paths(pages)
    return Contents(*read_all(paths)) if paths else Contents([], [], [])


@pytest.fixture(scope="session")
def contents(pytestconfig: pytest.Config) -> Contents:
    return read(selected_pages(pytestconfig))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize tests with the Python blocks that pytest-examples finds, and with the shell blocks."""
    pages = selected_pages(metafunc.config)
    if not {"example", "shell_block"} & set(metafunc.fixturenames):
        return
    contents = read(pages)
    if "example" in metafunc.fixturenames:
        bad_files = {problem.path for problem in contents.problems}
        examples = [
            each for each in find_examples(*find_paths(pages)) if each.path not in bad_files
        ]
        metafunc.parametrize("example", examples, ids=str)
    else:
        shell_blocks = [
            program
            for program in contents.programs
            if program.block.language == "shell" and not program.block.skip
        ]
        metafunc.parametrize("shell_block", shell_blocks, ids=lambda program: program.block.name)


def test_blocks_are_valid_and_both_parsers_read_them_alike(contents: Contents) -> None:
    assert not contents.problems, "\n" + "\n".join(map(str, contents.problems))


def test_every_block_is_run_compared_or_parsed(contents: Contents) -> None:
    blocks, programs = contents.blocks, contents.programs
    compared = sum(block.role is not None for block in blocks)
    illustrations = sum(block.language == "text" and not block.is_output for block in blocks)
    diagrams = sum(block.language == "mermaid" and not block.draws for block in blocks)
    data = sum(block.language in PARSERS for block in blocks)
    assert len(programs) + compared + illustrations + diagrams + data == len(blocks)
    shown = [(each.output, each.error, each.diagram) for each in programs]
    assert compared == sum(block is not None for blocks in shown for block in blocks)


@pytest.fixture
def run_and_compare(
    interpreter: Interpreter,
    env: dict[str, str],
    runs: RunCache,
    record_property: Callable[[str, object], None],
) -> Callable[[Program], None]:
    """Return a function that runs a program, and fails if the page shows something else."""

    def run_and_compare(program: Program) -> None:
        result = runs.run(program, interpreter, env)
        record_property("block", report.describe_run(program.block, result))
        problems = check_run(program, result)
        if problems:
            runs.discard(program)
            pytest.fail("\n" + "\n".join(map(str, problems)), pytrace=False)

    return run_and_compare


def test_example_prints_the_output_that_the_page_shows(
    example: CodeExample, contents: Contents, run_and_compare: Callable[[Program], None]
) -> None:
    place = (example.path, example.start_line)
    run_and_compare(
        next(each for each in contents.programs if (each.block.path, each.block.line) == place)
    )


def test_shell_block_prints_the_output_that_the_page_shows(
    shell_block: Program, run_and_compare: Callable[[Program], None]
) -> None:
    run_and_compare(shell_block)


def test_example_is_formatted_and_has_no_lint_errors(
    example: CodeExample, eval_example: EvalExample, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_style(eval_example, monkeypatch)
    if eval_example.update_examples:
        eval_example.format(example)
    else:
        eval_example.lint(example)


@pytest.mark.parametrize("language", PARSERS)
def test_data_is_well_formed(contents: Contents, language: str) -> None:
    parse, parse_error = PARSERS[language]
    for block in contents.blocks:
        if block.language == language:
            try:
                parse(block.code)
            except parse_error as error:
                pytest.fail(
                    str(block.problem(f"invalid {language}: {error}", f"Fix the {language}."))
                )


def test_the_page_about_the_tests_lists_the_code_that_is_not_run() -> None:
    if read(()).problems:
        pytest.skip("another test reports the problems of a page")
    text = ledger.PAGE.read_text("utf-8")
    assert text == ledger.fill_in_table(text, read(()).blocks), (
        "To update the table, run `make docs-update`."
    )


def test_the_number_of_skipped_blocks_is_limited(contents: Contents) -> None:
    skipped = ledger.skipped_blocks(contents.blocks)
    counts = Counter(entry.language for entry in skipped)
    for language, maximum in ledger.MAX_SKIPPED.items():
        assert counts[language] <= maximum, "\n".join(map(str, skipped))
