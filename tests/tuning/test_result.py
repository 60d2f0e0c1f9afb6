"""The result of ``tune`` is shown as a table, as a line of Python, and as a plot."""

from __future__ import annotations

import sys

import pytest

from runinference.errors import OptionError
from runinference.tuning import Measurement, TuningResult

RESULT = TuningResult(
    measurements=(
        Measurement("max_batch_size", 1, {}, 1, 95.23, 10.5, 512_000_000, 5, False),
        Measurement("max_batch_size", 1024, {}, 1024, 123_456.7, 8.294, None, 5, True),
        Measurement("autocast", None, {}, 1024, 123_456.7, 8.294, 2_512_000_000, 5, False),
        Measurement("autocast", "bfloat16", {}, 1024, 246_913, 1_234.5, 2_512_000_000, 5, True),
    ),
    options={"min_batch_size": 1024, "max_batch_size": 1024, "autocast": "bfloat16"},
    notes=("Memory ran out with max_batch_size=2048.",),
)


def test_the_table_has_aligned_columns_and_marks_the_recommended_values():
    assert str(RESULT).splitlines() == [
        "option                 batch size  elements/s  ms/call  peak memory",
        "  max_batch_size=1              1        95.2     10.5       512 MB",
        "* max_batch_size=1024       1,024     123,457     8.29            -",
        "  autocast=None             1,024     123,457     8.29     2,512 MB",
        "* autocast='bfloat16'       1,024     246,913    1,234     2,512 MB",
        "",
        "Recommended: min_batch_size=1024, max_batch_size=1024, autocast='bfloat16'",
        "Memory ran out with max_batch_size=2048.",
    ]


def test_the_line_is_empty_if_the_defaults_are_the_fastest():
    result = TuningResult(RESULT.measurements, {})
    assert result.line == ""
    assert str(result).endswith("Recommended: the defaults")


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml")])
def test_the_plot_is_a_png_or_svg_file(tmp_path, name, start):
    RESULT.plot(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_without_matplotlib_the_error_names_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="To fix this, run: pip install matplotlib"):
        RESULT.plot(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("plot.pdf", "must end in .png or .svg, but is 'plot.pdf'"),
        ("missing/plot.png", "directory of the plot doesn't exist"),
        (5, "path of the plot must be a path"),
    ],
)
def test_an_invalid_path_of_the_plot_is_an_option_error(path, message):
    with pytest.raises(OptionError, match=message):
        RESULT.plot(path)
