"""Draws the pipeline that a program runs, so that the diagram always matches the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_ENTITIES = str.maketrans({'"': "#quot;", "<": "#lt;", ">": "#gt;"})


def draw_first_pipeline(file: Path, direction: str) -> None:
    """Draw the first pipeline that this process runs from now on into `file`."""
    import apache_beam

    run = apache_beam.Pipeline.run

    def run_and_draw(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
        if not file.exists():
            file.write_text(to_mermaid(pipeline, direction), "utf-8")
        return run(pipeline, *args, **kwargs)

    apache_beam.Pipeline.run = run_and_draw


def to_mermaid(pipeline: Any, direction: str = "LR") -> str:
    """Return the top-level steps of a pipeline and their connections as a Mermaid flowchart.

    A composite transform is one box. `RunInference` steps are rounded.
    """
    root = pipeline.transforms_stack[0]
    names = {id(step): f"s{number}" for number, step in enumerate(root.parts)}
    lines = [f"flowchart {direction}"]
    for step in root.parts:
        label = step.full_label.translate(_ENTITIES)
        is_inference = type(step.transform).__name__ == "RunInference"
        left, right = ("([", "])") if is_inference else ("[", "]")
        lines.append(f'    {names[id(step)]}{left}"{label}"{right}')
    for step in root.parts:
        side_inputs = [side.pvalue for side in step.side_inputs]
        for pvalues, arrow in ((step.inputs, "-->"), (side_inputs, "-.->")):
            # The root of a pipeline has no producer.
            producers = [pvalue.producer for pvalue in pvalues if pvalue.producer is not None]
            sources = [names[id(_top_level_step(producer, root))] for producer in producers]
            lines += [f"    {source} {arrow} {names[id(step)]}" for source in sources]
    return "\n".join(lines)


def _top_level_step(step: Any, root: Any) -> Any:
    """Return the top-level step that contains this step."""
    while step.parent is not root:
        step = step.parent
    return step
