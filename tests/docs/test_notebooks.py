"""Notebooks run, and their stored outputs are current."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from docs import report
from docs.blocks import ROOT, display_path
from docs.notebooks import compare_outputs, execute, find_notebooks, normalize, write_notebook
from docs.page_selection import selected_pages


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "notebook" in metafunc.fixturenames:
        selected = [ROOT / page for page in selected_pages(metafunc.config)]
        paths = [path for path in find_notebooks() if not selected or path in selected]
        metafunc.parametrize("notebook", paths, ids=display_path)


def test_the_stored_outputs_of_a_notebook_are_current(
    notebook: Path, env: dict[str, str], record_property: Callable[[str, object], None]
) -> None:
    stored = nbformat.read(notebook, as_version=4)
    began = time.perf_counter()
    executed, problems = execute(notebook, env)
    record_property("block", report.describe_notebook_run(notebook, time.perf_counter() - began))
    problems = problems or compare_outputs(notebook, stored, executed)
    if problems:
        pytest.fail("\n" + "\n".join(map(str, problems)), pytrace=False)


def create_notebook(path: Path, *cells: str) -> Path:
    """Write a notebook with these cells and the fixed outputs 1, 2, …"""
    notebook = nbformat.v4.new_notebook()
    for number, source in enumerate(cells, 1):
        cell = nbformat.v4.new_code_cell(source, id=f"cell{number}")
        cell.outputs = [nbformat.v4.new_output("stream", text=f"{number}\n")]
        notebook.cells.append(cell)
    write_notebook(path, normalize(notebook))
    return path


def test_reports_the_line_of_a_failing_cell(tmp_path: Path, env: dict[str, str]) -> None:
    path = create_notebook(tmp_path / "page.ipynb", "print(1)", "print(undefined)")
    _, (problem,) = execute(path, env)
    assert "NameError: name 'undefined' is not defined" in problem.message
    assert '"id": "cell2"' in path.read_text("utf-8").splitlines()[problem.line - 1]


def test_reports_an_outdated_output_with_a_hint(tmp_path: Path, env: dict[str, str]) -> None:
    path = create_notebook(tmp_path / "page.ipynb", "print(1)", "print(3)", "4")
    executed, no_problems = execute(path, env)
    outdated, kind = compare_outputs(path, nbformat.read(path, as_version=4), executed)
    assert not no_problems
    assert "the stored output is\n2\nbut a run gives\n3" in outdated.message
    assert "make docs-update" in outdated.hint
    assert "the stored outputs are [['stream']]" in kind.message


def test_an_image_needs_a_text_alternative(tmp_path: Path, env: dict[str, str]) -> None:
    path = create_notebook(
        tmp_path / "page.ipynb", "import matplotlib.pyplot as plt\n\nplt.plot([1, 2])"
    )
    executed, _ = execute(path, env)
    assert any("alt" in problem.hint for problem in compare_outputs(path, executed, executed))
    executed.cells[0].metadata["alt"] = "A line that rises."
    assert not compare_outputs(path, executed, executed)


def test_outputs_of_cells_tagged_varies_may_differ(tmp_path: Path, env: dict[str, str]) -> None:
    path = create_notebook(tmp_path / "page.ipynb", "print(10)")
    executed, _ = execute(path, env)
    stored = nbformat.read(path, as_version=4)
    assert compare_outputs(path, stored, executed)
    stored.cells[0].metadata["tags"] = ["varies"]
    assert not compare_outputs(path, stored, executed)
