"""Executes notebooks, and compares their outputs with the stored outputs."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

from docs.blocks import ROOT, Problem

DIRECTORY = ROOT / "docs" / "notebooks"
TIMEOUT_S = 120
MIME_TYPES = ("text/plain", "text/html", "image/png", "image/svg+xml")


def find_notebooks(root: Path = DIRECTORY) -> list[Path]:
    return sorted(path for path in root.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def execute(path: Path, env: dict[str, str]) -> tuple[Any, list[Problem]]:
    """Run all cells in a new kernel and an empty directory, and return the notebook with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    for cell in _code(notebook):
        cell.outputs, cell.execution_count = [], None
    with tempfile.TemporaryDirectory(prefix="docs-") as empty:
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT_S,
            kernel_name="python3",
            resources={"metadata": {"path": empty}},
        )
        try:
            client.execute(env={**env, "MPLBACKEND": "module://matplotlib_inline.backend_inline"})
        except CellExecutionError as error:
            line = _find_failing_line(path, notebook)
            message = f"a cell fails: {error.ename}: {error.evalue}"
            return notebook, [Problem(path, line, message, "Fix the cell.")]
        except CellTimeoutError:
            line = _find_failing_line(path, notebook)
            return notebook, [
                Problem(path, line, f"a cell runs for over {TIMEOUT_S} s", "Make the cell smaller.")
            ]
    return normalize(notebook), []


def normalize(notebook: Any) -> Any:
    """Remove everything that differs between runs and isn't shown: times, logs, and splits of streams."""
    for number, cell in enumerate(_code(notebook), 1):
        cell.execution_count = number
        cell.metadata.pop("execution", None)
        cell.outputs = _normalize_outputs(cell.outputs, number)
    notebook.metadata = {"kernelspec": _KERNEL, "language_info": {"name": "python"}}
    return notebook


_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def _normalize_outputs(outputs: list[Any], number: int) -> list[Any]:
    kept: list[Any] = []
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
                continue
        elif "data" in output:
            output.data = {kind: output.data[kind] for kind in MIME_TYPES if kind in output.data}
            if not output.data:  # scripts that Beam loads from other hosts for its tables
                continue
            if "execution_count" in output:
                output.execution_count = number
        kept.append(output)
    return kept


def compare_outputs(path: Path, stored: Any, executed: Any) -> list[Problem]:
    """Return the differences between the stored outputs and those of a run."""
    problems = []
    for cell, new in zip(_code(stored), _code(executed), strict=True):
        line = find_cell_line(path, cell)
        if (
            cell.source.strip() and any("image/png" in each for each in output_kinds(new))
        ) and not (cell.metadata.get("alt")):
            problems.append(
                Problem(
                    path,
                    line,
                    "an image without a text alternative",
                    'Add "alt": "description of the image" to the metadata of its cell.',
                )
            )
        if output_kinds(cell) != output_kinds(new):
            message = (
                f"the stored outputs are {output_kinds(cell)}, but a run gives {output_kinds(new)}"
            )
            problems.append(Problem(path, line, message, _update_hint(path)))
        elif "varies" not in cell.metadata.get("tags", []) and output_text(cell) != output_text(
            new
        ):
            message = (
                f"the stored output is\n{output_text(cell)}\nbut a run gives\n{output_text(new)}"
            )
            problems.append(Problem(path, line, message, _update_hint(path)))
    return problems


def output_kinds(cell: Any) -> list[list[str]]:
    """Return the MIME types of each output of a cell."""
    return [sorted(each.get("data", {each.output_type: ""})) for each in cell.outputs]


def output_text(cell: Any) -> str:
    """Return the text that a cell prints and returns, without images, whose text is only a name."""
    texts = [
        each.get("text", "") or each.get("data", {}).get("text/plain", "")
        for each in cell.outputs
        if "image/png" not in each.get("data", {})
    ]
    return "\n".join(line.rstrip() for line in "\n".join(texts).splitlines())


def write_notebook(path: Path, notebook: Any) -> None:
    """Write a notebook in a stable format, so that another run changes only the outputs."""
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(text + "\n", "utf-8")


def update(path: Path, env: dict[str, str]) -> list[Problem]:
    """Run a notebook and store its outputs if they differ."""
    stored = nbformat.read(path, as_version=4)
    executed, problems = execute(path, env)
    if problems:
        return problems
    remaining = compare_outputs(path, executed, executed)  # no run can fix these
    if compare_outputs(path, stored, executed) != remaining:
        print(f"{os.path.relpath(path, ROOT)}: rewrote the outputs")
        write_notebook(path, executed)
    return remaining


def find_cell_line(path: Path, cell: Any) -> int:
    """Return the line on which a cell begins, counted from 1."""
    lines = path.read_text("utf-8").splitlines()
    mark = f'"id": "{cell.get("id", "")}"'
    return next((number for number, line in enumerate(lines, 1) if mark in line), 1)


def _find_failing_line(path: Path, notebook: Any) -> int:
    failed = [
        cell
        for cell in _code(notebook)
        if any(output.output_type == "error" for output in cell.outputs)
    ]
    not_run = [cell for cell in _code(notebook) if cell.execution_count is None]
    return find_cell_line(path, (failed or not_run or [{}])[0])


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _update_hint(path: Path) -> str:
    return f"If the new output is right, run `make docs-update PAGE={os.path.relpath(path, ROOT)}`."
