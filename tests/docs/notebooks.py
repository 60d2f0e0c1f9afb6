"""Notebooks: execute one as a reader would, and compare what it gives with what is stored in it."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

from docs.blocks import ROOT, Fault

DIRECTORY = ROOT / "docs" / "notebooks"
LIMIT = 120
KEPT = ("text/plain", "text/html", "image/png", "image/svg+xml")


def notebooks(root: Path = DIRECTORY) -> list[Path]:
    return sorted(path for path in root.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def execute(path: Path, env: dict[str, str]) -> tuple[Any, list[Fault]]:
    """The notebook after a run of all its cells, in a kernel of its own and an empty directory."""
    notebook = nbformat.read(path, as_version=4)
    for cell in _code(notebook):
        cell.outputs, cell.execution_count = [], None
    with tempfile.TemporaryDirectory(prefix="docs-") as empty:
        client = NotebookClient(
            notebook,
            timeout=LIMIT,
            kernel_name="python3",
            resources={"metadata": {"path": empty}},
        )
        try:
            client.execute(env={**env, "MPLBACKEND": "module://matplotlib_inline.backend_inline"})
        except CellExecutionError as error:
            line = _line_of_failing_cell(path, notebook)
            told = f"a cell fails: {error.ename}: {error.evalue}"
            return notebook, [Fault(path, line, told, "Mend the cell.")]
        except CellTimeoutError:
            line = _line_of_failing_cell(path, notebook)
            return notebook, [
                Fault(path, line, f"a cell runs for over {LIMIT} s", "Make it smaller.")
            ]
    return tidy(notebook), []


def tidy(notebook: Any) -> Any:
    """Without what differs from run to run and nobody reads: times, logs, how a stream was cut."""
    for number, cell in enumerate(_code(notebook), 1):
        cell.execution_count = number
        cell.metadata.pop("execution", None)
        cell.outputs = _tidy_outputs(cell.outputs, number)
    notebook.metadata = {"kernelspec": _KERNEL, "language_info": {"name": "python"}}
    return notebook


_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def _tidy_outputs(outputs: list[Any], number: int) -> list[Any]:
    kept: list[Any] = []
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
                continue
        elif "data" in output:
            output.data = {kind: output.data[kind] for kind in KEPT if kind in output.data}
            if not output.data:  # scripts that Beam loads from other hosts, for its tables
                continue
            if "execution_count" in output:
                output.execution_count = number
        kept.append(output)
    return kept


def faults_of(path: Path, stored: Any, ran: Any) -> list[Fault]:
    """Where what is stored is not what the run gave."""
    faults = []
    for cell, fresh in zip(_code(stored), _code(ran), strict=True):
        line = line_of(path, cell)
        if (cell.source.strip() and any("image/png" in each for each in shapes(fresh))) and not (
            cell.metadata.get("alt")
        ):
            faults.append(
                Fault(
                    path,
                    line,
                    "a picture without words for those who cannot see it",
                    'Add "alt": "what it shows" to the metadata of its cell.',
                )
            )
        if shapes(cell) != shapes(fresh):
            told = f"stored are outputs of {shapes(cell)}, and a run gives {shapes(fresh)}"
            faults.append(Fault(path, line, told, _update(path)))
        elif "varies" not in cell.metadata.get("tags", []) and texts(cell) != texts(fresh):
            told = f"the stored output is\n{texts(cell)}\nand a run gives\n{texts(fresh)}"
            faults.append(Fault(path, line, told, _update(path)))
    return faults


def shapes(cell: Any) -> list[list[str]]:
    """What kinds of output a cell has."""
    return [sorted(each.get("data", {each.output_type: ""})) for each in cell.outputs]


def texts(cell: Any) -> str:
    """What a cell prints and gives, as far as it is text; a picture's text is its name and size."""
    told = [
        each.get("text", "") or each.get("data", {}).get("text/plain", "")
        for each in cell.outputs
        if "image/png" not in each.get("data", {})
    ]
    return "\n".join(line.rstrip() for line in "\n".join(told).splitlines())


def store(path: Path, notebook: Any) -> None:
    """Write a notebook, so that a later run of the same cells changes no byte but the outputs."""
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(text + "\n", "utf-8")


def update(path: Path, env: dict[str, str]) -> list[Fault]:
    """Store what a run gives, unless the stored outputs already say it."""
    stored = nbformat.read(path, as_version=4)
    ran, faults = execute(path, env)
    if faults:
        return faults
    missing = faults_of(path, ran, ran)  # what no run can mend
    if faults_of(path, stored, ran) != missing:
        print(f"{os.path.relpath(path, ROOT)}: rewrote the outputs")
        store(path, ran)
    return missing


def line_of(path: Path, cell: Any) -> int:
    """Where in the file a cell begins; from one."""
    lines = path.read_text("utf-8").splitlines()
    mark = f'"id": "{cell.get("id", "")}"'
    return next((number for number, line in enumerate(lines, 1) if mark in line), 1)


def _line_of_failing_cell(path: Path, notebook: Any) -> int:
    failed = [
        cell
        for cell in _code(notebook)
        if any(output.output_type == "error" for output in cell.outputs)
    ]
    waiting = [cell for cell in _code(notebook) if cell.execution_count is None]
    return line_of(path, (failed or waiting or [{}])[0])


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _update(path: Path) -> str:
    return f"If the run is right: `make docs-update PAGE={os.path.relpath(path, ROOT)}`."
