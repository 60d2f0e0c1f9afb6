"""Every block of the pages, the README and the docstrings runs, and prints what is shown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import pytest
import yaml

from docs import ledger
from docs.agree import read_all, sources
from docs.blocks import ROOT, Program
from docs.compare import faults_of
from docs.lint import lint
from docs.run import Interpreter, run

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

PARSERS: dict[str, tuple[Callable[[str], object], type[Exception]]] = {
    "json": (json.loads, ValueError),
    "yaml": (yaml.safe_load, yaml.YAMLError),
    "toml": (tomllib.loads, tomllib.TOMLDecodeError),
}
PROGRAMS, BLOCKS, FAULTS = read_all(sources())


def _chosen(config: pytest.Config, program: Program) -> bool:
    pages = [ROOT / page for page in config.getoption("--page")]
    return not pages or program.block.path in pages


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "program" in metafunc.fixturenames:
        chosen = [
            program
            for program in PROGRAMS
            if not program.block.skip and _chosen(metafunc.config, program)
        ]
        metafunc.parametrize("program", chosen, ids=lambda program: program.block.name)


def test_every_block_is_seen_by_both_readers_and_fits_its_neighbours() -> None:
    assert not FAULTS, "\n" + "\n".join(map(str, FAULTS))


def test_every_block_is_accounted_for() -> None:
    """Run, compared, skipped with a reason, or parsed: there is no other kind."""
    outputs = sum(block.shows is not None for block in BLOCKS)
    illustrations = sum(block.language == "text" and not block.is_output for block in BLOCKS)
    drawn = sum(block.language == "mermaid" and not block.draws for block in BLOCKS)
    data = sum(block.language in PARSERS for block in BLOCKS)
    assert len(PROGRAMS) + outputs + illustrations + drawn + data == len(BLOCKS)
    shown = [(each.output, each.error, each.picture) for each in PROGRAMS]
    assert outputs == sum(block is not None for blocks in shown for block in blocks)


def test_program_prints_what_the_page_shows(
    program: Program,
    interpreter: Interpreter,
    env: dict[str, str],
    record_property: Callable[[str, object], None],
) -> None:
    ran = run(program, interpreter, env)
    record_property("block", program.block.name)
    record_property("language", program.block.language)
    record_property("seconds", round(ran.seconds, 2))
    faults = faults_of(program, ran)
    if faults:
        pytest.fail("\n" + "\n".join(map(str, faults)), pytrace=False)


def test_code_is_formatted_and_clean() -> None:
    faults = lint(BLOCKS)
    assert not faults, "\n" + "\n".join(map(str, faults))


@pytest.mark.parametrize("language", PARSERS)
def test_data_is_well_formed(language: str) -> None:
    parse, wrong = PARSERS[language]
    for block in BLOCKS:
        if block.language == language:
            try:
                parse(block.code)
            except wrong as error:
                pytest.fail(str(block.fault(f"not {language}: {error}", "Mend it.")))


def test_the_site_shows_the_ledger() -> None:
    text = ledger.PAGE.read_text("utf-8")
    assert text == ledger.on_page(text, BLOCKS), "`make docs-update` writes the ledger anew"


def test_no_more_is_skipped_than_the_ledger_allows() -> None:
    skipped = ledger.skipped(BLOCKS)
    counts = Counter(entry.language for entry in skipped)
    for language, ceiling in ledger.CEILING.items():
        assert counts[language] <= ceiling, "\n".join(map(str, skipped))
