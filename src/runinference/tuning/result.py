"""The result of tuning: what was measured, and the recommended options."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from runinference.checks import check_path
from runinference.errors import OptionError


@dataclass(frozen=True)
class Measurement:
    """The speed of a handler with one value of an option.

    Attributes:
        option: The option that was varied, such as ``"max_batch_size"``.
        value: Its value.
        options: All options that differ from those of the handler.
        batch_size: Mean number of elements in a call of the model, or in a request.
        elements_per_second: Median throughput.
        milliseconds_per_call: Median duration of a call of the model, or of a request.
        peak_memory_bytes: Peak memory of PyTorch's GPU if the process uses one, otherwise of the process. None
            if it can't be measured, as on operating systems other than Linux.
        n_passes: Number of passes over the sample that the medians are based on.
        is_recommended: Whether the value is the recommended one of its option.
    """

    option: str
    value: Any
    options: Mapping[str, Any]
    batch_size: float
    elements_per_second: float
    milliseconds_per_call: float
    peak_memory_bytes: int | None
    n_passes: int
    is_recommended: bool


@dataclass(frozen=True)
class TuningResult:
    """The measurements of a handler, and the recommended options. ``str()`` returns both as text.

    Attributes:
        measurements: What was measured, in the order of the table.
        options: The recommended options of the handler that differ from the defaults.
        notes: Why some values weren't measured, for example because memory ran out.
    """

    measurements: tuple[Measurement, ...]
    options: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The recommended options as Python code, to paste into the call of the handler's constructor.

        Empty if the defaults are recommended.
        """
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

    def table(self) -> str:
        """Return the measurements as a table of text, in which ``*`` marks the recommended values."""
        head = ("option", "batch size", "elements/s", "ms/call", "peak memory")
        rows = [head, *map(_format_row, self.measurements)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        )

    def __str__(self) -> str:
        recommended = self.line or "the defaults"
        return "\n".join([self.table(), "", f"Recommended: {recommended}", *self.notes])

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a plot of throughput and duration by value to a PNG or SVG file.

        Args:
            path: The path of the file, with the extension ``.png`` or ``.svg``.

        Raises:
            OptionError: The path has another extension, or its directory doesn't exist.
            ImportError: matplotlib isn't installed.
            OSError: The file can't be written.
        """
        check_plot_path(path)
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                f"The plot needs matplotlib, which cannot be imported ({error}). To fix this, run: "
                "pip install matplotlib"
            ) from error
        groups = [
            (key, list(rows)) for key, rows in groupby(self.measurements, attrgetter("option"))
        ]
        figure = Figure(figsize=(9, 3.2 * len(groups)), layout="constrained")
        axes = figure.subplots(len(groups), 2, squeeze=False)
        for row, (option, rows) in zip(axes, groups, strict=True):
            for ax, field, label in zip(row, _PLOTTED, _PLOTTED.values(), strict=True):
                values = [getattr(each, field) for each in rows]
                ax.plot(range(len(rows)), values, "o-" if _is_number(rows[-1].value) else "o")
                chosen = [i for i, each in enumerate(rows) if each.is_recommended]
                ax.plot(chosen, [values[i] for i in chosen], "o", markersize=11, fillstyle="none")
                ax.set_xticks(range(len(rows)), [f"{each.value}" for each in rows], rotation=45)
                ax.yaxis.set_major_formatter("{x:,.10g}")
                ax.set_ylim(bottom=0)
                ax.set(xlabel=option, ylabel=label)
                ax.grid(alpha=0.3)
        figure.savefig(path)


_PLOTTED = {
    "elements_per_second": "elements per second",
    "milliseconds_per_call": "milliseconds per call",
}


def check_plot_path(path: Any) -> None:
    """Raise `OptionError` unless a plot can be written to a path."""
    file = Path(check_path("The path of the plot", path))
    if file.suffix.lower() not in (".png", ".svg"):
        raise OptionError(f"The path of a plot must end in .png or .svg, but is {str(file)!r}.")
    if not file.absolute().parent.is_dir():
        raise OptionError(f"The directory of the plot doesn't exist: {str(file)!r}.")


def _format_row(row: Measurement) -> tuple[str, ...]:
    peak = row.peak_memory_bytes
    return (
        f"{'*' if row.is_recommended else ' '} {row.option}={row.value!r}",
        _format_number(row.batch_size),
        _format_number(row.elements_per_second),
        _format_number(row.milliseconds_per_call),
        "-" if peak is None else f"{peak / 1e6:,.0f} MB",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _format_number(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
