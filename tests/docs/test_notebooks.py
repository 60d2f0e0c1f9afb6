"""Notebooks run as they are, and the site shows what they gave."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from docs import report
from docs.blocks import ROOT, shown
from docs.chosen import chosen
from docs.notebooks import execute, faults_of, notebooks, store, tidy


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "notebook" in metafunc.fixturenames:
        asked = [ROOT / page for page in chosen(metafunc.config)]
        paths = [path for path in notebooks() if not asked or path in asked]
        metafunc.parametrize("notebook", paths, ids=shown)


def test_a_run_of_the_notebook_gives_what_is_stored_in_it(
    notebook: Path, env: dict[str, str], record_property: Callable[[str, object], None]
) -> None:
    stored = nbformat.read(notebook, as_version=4)
    began = time.perf_counter()
    ran, faults = execute(notebook, env)
    record_property("block", report.told_of_notebook(notebook, time.perf_counter() - began))
    faults = faults or faults_of(notebook, stored, ran)
    if faults:
        pytest.fail("\n" + "\n".join(map(str, faults)), pytrace=False)


def made(path: Path, *cells: str) -> Path:
    """A notebook of these cells, with the outputs 1, 2, … that nobody ran."""
    notebook = nbformat.v4.new_notebook()
    for number, source in enumerate(cells, 1):
        cell = nbformat.v4.new_code_cell(source, id=f"cell{number}")
        cell.outputs = [nbformat.v4.new_output("stream", text=f"{number}\n")]
        notebook.cells.append(cell)
    store(path, tidy(notebook))
    return path


def test_a_failing_cell_is_told_with_its_place(tmp_path: Path, env: dict[str, str]) -> None:
    path = made(tmp_path / "page.ipynb", "print(1)", "print(undefined)")
    _, (fault,) = execute(path, env)
    assert "NameError: name 'undefined' is not defined" in fault.what
    assert '"id": "cell2"' in path.read_text("utf-8").splitlines()[fault.line - 1]


def test_a_stale_output_is_told_with_its_place_and_its_cure(
    tmp_path: Path, env: dict[str, str]
) -> None:
    path = made(tmp_path / "page.ipynb", "print(1)", "print(3)", "4")
    ran, none = execute(path, env)
    stale, kind = faults_of(path, nbformat.read(path, as_version=4), ran)
    assert not none
    assert "the stored output is\n2\nand a run gives\n3" in stale.what
    assert "make docs-update" in stale.cure
    assert "stored are outputs of [['stream']]" in kind.what


def test_a_picture_needs_words(tmp_path: Path, env: dict[str, str]) -> None:
    path = made(tmp_path / "page.ipynb", "import matplotlib.pyplot as plt\n\nplt.plot([1, 2])")
    ran, _ = execute(path, env)
    assert any("alt" in fault.cure for fault in faults_of(path, ran, ran))
    ran.cells[0].metadata["alt"] = "A line that rises."
    assert not faults_of(path, ran, ran)


def test_what_may_vary_is_tagged(tmp_path: Path, env: dict[str, str]) -> None:
    path = made(tmp_path / "page.ipynb", "print(10)")
    ran, _ = execute(path, env)
    stored = nbformat.read(path, as_version=4)
    assert faults_of(path, stored, ran)
    stored.cells[0].metadata["tags"] = ["varies"]
    assert not faults_of(path, stored, ran)
