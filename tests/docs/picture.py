"""Draw the pipeline that a program runs, so that picture and code cannot part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_ENTITIES = str.maketrans({'"': "#quot;", "<": "#lt;", ">": "#gt;"})


def remember_the_first(file: Path, direction: str) -> None:
    """From now on, the first pipeline that runs in this process is drawn into the file."""
    import apache_beam

    run = apache_beam.Pipeline.run

    def run_and_draw(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
        if not file.exists():
            file.write_text(mermaid(pipeline, direction), "utf-8")
        return run(pipeline, *args, **kwargs)

    apache_beam.Pipeline.run = run_and_draw


def mermaid(pipeline: Any, direction: str = "LR") -> str:
    """The steps that the program names, and what flows between them, as a Mermaid flowchart.

    A step made of others is one box; the steps that hold a model are round.
    """
    root = pipeline.transforms_stack[0]
    names = {id(step): f"s{number}" for number, step in enumerate(root.parts)}
    lines = [f"flowchart {direction}"]
    for step in root.parts:
        label = step.full_label.translate(_ENTITIES)
        model = type(step.transform).__name__ == "RunInference"
        left, right = ("([", "])") if model else ("[", "]")
        lines.append(f'    {names[id(step)]}{left}"{label}"{right}')
    for step in root.parts:
        beside = [side.pvalue for side in step.side_inputs]
        for pvalues, arrow in ((step.inputs, "-->"), (beside, "-.->")):
            sources = [names[id(_outermost(pvalue.producer, root))] for pvalue in _made(pvalues)]
            lines += [f"    {source} {arrow} {names[id(step)]}" for source in sources]
    return "\n".join(lines)


def _made(pvalues: Any) -> list[Any]:
    """Those that some step made; the beginning of a pipeline was made by none."""
    return [pvalue for pvalue in pvalues if pvalue.producer is not None]


def _outermost(step: Any, root: Any) -> Any:
    """The step of the program that this one is a part of."""
    while step.parent is not root:
        step = step.parent
    return step
