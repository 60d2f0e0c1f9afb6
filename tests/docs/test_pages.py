"""Every block of the pages, the README and the docstrings runs, and prints what is shown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import yaml

from docs import ledger, report
from docs.agree import read_all, sources
from docs.blocks import ROOT, Block, Fault, Program
from docs.chosen import chosen
from docs.compare import faults_of
from docs.lint import lint
from docs.run import Interpreter
from docs.store import Store

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
    """What the pages hold that are tested: all, or those that were chosen."""

    programs: list[Program]
    blocks: list[Block]
    faults: list[Fault]


@cache
def read(pages: tuple[str, ...]) -> Contents:
    paths = [ROOT / page for page in pages if not page.endswith(".ipynb")]
    if pages and not paths:
        return Contents([], [], [])
    return Contents(*read_all(paths or sources()))


@pytest.fixture(scope="session")
def contents(pytestconfig: pytest.Config) -> Contents:
    return read(chosen(pytestconfig))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "program" in metafunc.fixturenames:
        programs = read(chosen(metafunc.config)).programs
        run_here = [program for program in programs if not program.block.skip]
        metafunc.parametrize("program", run_here, ids=lambda program: program.block.name)


def test_every_block_is_seen_by_both_readers_and_fits_its_neighbours(contents: Contents) -> None:
    assert not contents.faults, "\n" + "\n".join(map(str, contents.faults))


def test_every_block_is_accounted_for(contents: Contents) -> None:
    """Run, compared, skipped with a reason, or parsed: there is no other kind."""
    blocks, programs = contents.blocks, contents.programs
    compared = sum(block.shows is not None for block in blocks)
    illustrations = sum(block.language == "text" and not block.is_output for block in blocks)
    drawn = sum(block.language == "mermaid" and not block.draws for block in blocks)
    data = sum(block.language in PARSERS for block in blocks)
    assert len(programs) + compared + illustrations + drawn + data == len(blocks)
    shown = [(each.output, each.error, each.picture) for each in programs]
    assert compared == sum(block is not None for blocks in shown for block in blocks)


def test_program_prints_what_the_page_shows(
    program: Program,
    interpreter: Interpreter,
    env: dict[str, str],
    runs: Store,
    record_property: Callable[[str, object], None],
) -> None:
    ran = runs.run(program, interpreter, env)
    record_property("block", report.told(program.block, ran))
    faults = faults_of(program, ran)
    if faults:
        runs.forget(program)
        pytest.fail("\n" + "\n".join(map(str, faults)), pytrace=False)


def test_code_is_formatted_and_clean(contents: Contents) -> None:
    faults = lint(contents.blocks)
    assert not faults, "\n" + "\n".join(map(str, faults))


@pytest.mark.parametrize("language", PARSERS)
def test_data_is_well_formed(contents: Contents, language: str) -> None:
    parse, wrong = PARSERS[language]
    for block in contents.blocks:
        if block.language == language:
            try:
                parse(block.code)
            except wrong as error:
                pytest.fail(str(block.fault(f"not {language}: {error}", "Mend it.")))


def test_the_site_shows_the_ledger() -> None:
    text = ledger.PAGE.read_text("utf-8")
    assert text == ledger.on_page(text, read(()).blocks), (
        "`make docs-update` writes the ledger anew"
    )


def test_no_more_is_skipped_than_the_ledger_allows(contents: Contents) -> None:
    skipped = ledger.skipped(contents.blocks)
    counts = Counter(entry.language for entry in skipped)
    for language, ceiling in ledger.CEILING.items():
        assert counts[language] <= ceiling, "\n".join(map(str, skipped))
