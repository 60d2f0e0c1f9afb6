"""SVG plots of the measurements, in the text color of the page and readable on a phone."""

import math
from html import escape

import numpy as np

WIDTH = 420

_BAR, _GAP, _LEGEND = 11, 22, 46
_LEGEND_SIZE = 11
#: By series.
_FILLS = (
    'style="fill: var(--md-typeset-a-color)"',
    'opacity="0.4"',
    'fill="none" stroke="currentColor" opacity="0.8"',
)
_STROKES = (
    'stroke-width="2"',
    'stroke-dasharray="4 3" opacity="0.6"',
    'stroke-width="2" stroke-dasharray="1 3"',
)
_LEFT, _TOP, _PANEL, _BETWEEN = 52, 26, 130, 70


def bars(groups, title, format_value="{:.3g}".format, bound=None):
    """Plot groups of bars with a legend.

    Args:
        groups: For each group label, the values by series. A group can lack series of the first group.
        title: What the bars show. It is also the description of the plot.
        format_value: Returns the text next to a bar.
        bound: The label of a line at the value 1, or None for no line.
    """
    series = list(next(iter(groups.values())))
    largest = max(max(named.values()) for named in groups.values())
    scale = (WIDTH - 45) / (max(1.0, largest) if bound else largest)
    parts = [_text(0, 12, title)]
    for order, (name, x) in enumerate(_legend(series, 16)):
        parts += [_bar(x, 22, 11, order), _text(x + 16, 32, name, size=_LEGEND_SIZE)]
    top = _LEGEND
    for label, named in groups.items():
        parts.append(_text(0, top + 12, label))
        top += 17
        for order, name in enumerate(series):
            if name in named:
                width = named[name] * scale
                parts.append(_bar(0, top, width, order))
                parts.append(_text(width + 5, top + 10, format_value(named[name]), size=11))
                top += _BAR + 1
        top += _GAP - 17
    if bound:
        parts.append(_line(scale, _LEGEND, scale, top, dashed=True))
        parts.append(_text(scale, top + 14, bound, anchor="end"))
    return _svg(top + (24 if bound else 4), title, parts)


def curves(sizes, panels):
    """Plot panels below one another, with the batch size on the x-axis.

    Args:
        sizes: The batch sizes.
        panels: For each panel title, the curves by name. A curve has one value per batch size.
    """
    parts = []
    step = (WIDTH - _LEFT - 20) / (len(sizes) - 1)
    for number, (title, named) in enumerate(panels.items()):
        top = _TOP + number * (_PANEL + _BETWEEN)
        bottom = top + _PANEL
        top_value, tick = _axis(max(map(max, named.values())))
        parts.append(_text(0, top - 10, title))
        for value in np.arange(0, top_value + tick / 2, tick):
            y = bottom - value / top_value * _PANEL
            parts.append(_line(_LEFT, y, WIDTH - 20, y, opacity=0.2))
            parts.append(_text(_LEFT - 8, y + 4, f"{value:,.10g}", size=11, anchor="end"))
        for at, size in enumerate(sizes):
            x = _LEFT + at * step
            parts.append(_text(x, bottom + 17, str(size), size=11, anchor="middle"))
        for order, (name, values) in enumerate(named.items()):
            points = [
                (_LEFT + at * step, bottom - value / top_value * _PANEL)
                for at, value in enumerate(values)
            ]
            parts += _curve(points, order)
            if len(named) > 1:  # label the highest curve above its end, the others below
                x, y = points[-1]
                above = values[-1] == max(each[-1] for each in named.values())
                parts.append(_text(x, y + (-10 if above else 18), name, size=11, anchor="end"))
    bottom = _TOP + len(panels) * (_PANEL + _BETWEEN) - _BETWEEN
    parts.append(_text((_LEFT + WIDTH - 20) / 2, bottom + 36, "batch size", anchor="middle"))
    return _svg(bottom + 44, f"{' and '.join(panels)}, by batch size", parts)


def growth_curves(panels, linear=False):
    """Plot panels below one another, with logarithmic axes, on which linear growth is a line with the slope 1.

    Args:
        panels: For each pair of panel title and name of the x-axis, the curves by name. A curve maps each x to a
            value. Both are greater than 0. Panels can lack curves of other panels.
        linear: Whether the axes are linear, from 0.
    """
    axis = _LinearAxis if linear else _LogAxis
    names = list(dict.fromkeys(name for named in panels.values() for name in named))
    parts = []
    for order, (name, x) in enumerate(_legend(names, 36)):
        parts += _curve([(x + 4, 10), (x + 28, 10)], order)
        parts.append(_text(x + 36, 14, name, size=_LEGEND_SIZE))
    for number, ((title, x_name), named) in enumerate(panels.items()):
        top = 2 * _TOP + number * (_PANEL + _BETWEEN)
        bottom, right = top + _PANEL, WIDTH - 20
        x_axis = axis([x for curve in named.values() for x in curve], _LEFT, right)
        y_axis = axis([y for curve in named.values() for y in curve.values()], bottom, top)
        parts.append(_text(0, top - 10, title))
        for value in y_axis.ticks():
            y = y_axis.place(value)
            parts.append(_line(_LEFT, y, right, y, opacity=0.2))
            parts.append(_text(_LEFT - 8, y + 4, f"{value:,.10g}", size=11, anchor="end"))
        for value in x_axis.ticks():
            x = x_axis.place(value)
            anchor = "end" if x == right else "middle"
            parts.append(_text(x, bottom + 17, f"{value:,.10g}", size=11, anchor=anchor))
        for name, curve in named.items():
            points = [(x_axis.place(x), y_axis.place(y)) for x, y in curve.items()]
            parts += _curve(points, names.index(name))
        parts.append(_text((_LEFT + right) / 2, bottom + 36, x_name, anchor="middle"))
    bottom = 2 * _TOP + len(panels) * (_PANEL + _BETWEEN) - _BETWEEN
    titles = (f"{title} by {x_name}" for title, x_name in panels)
    return _svg(bottom + 44, ", ".join(titles), parts)


class _LinearAxis:
    """A linear axis from 0, and from one coordinate to another."""

    def __init__(self, values, start, end):
        self._max, self._tick = _axis(max(values))
        self._start, self._end = start, end

    def ticks(self):
        return np.arange(0, self._max + self._tick / 2, self._tick)

    def place(self, value):
        return self._start + value / self._max * (self._end - self._start)


class _LogAxis:
    """A logarithmic axis from one power of ten to another, and from one coordinate to another."""

    def __init__(self, values, start, end):
        self._low = math.floor(math.log10(min(values)))
        self._high = max(math.ceil(math.log10(max(values))), self._low + 1)
        self._start, self._end = start, end

    def ticks(self):
        return [10.0**power for power in range(self._low, self._high + 1)]

    def place(self, value):
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)


def _axis(max_value):
    """Return the end of the axis and the distance of its ticks (1, 2 or 5 times a power of ten)."""
    power = 10 ** math.floor(math.log10(max_value / 4))
    tick = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= max_value / 4)
    return tick * math.ceil(max_value / tick), tick


def _legend(names, symbol_width):
    """Yield each name with the x-coordinate of its symbol."""
    x = 0
    for name in names:
        yield name, x
        x += symbol_width + 0.56 * _LEGEND_SIZE * len(name) + 16


def _curve(points, order):
    path = " ".join(f"{x:.0f},{y:.1f}" for x, y in points)
    line = f'<polyline points="{path}" fill="none" stroke="currentColor" {_STROKES[order]}/>'
    dots = [] if order else [f'<circle cx="{x:.0f}" cy="{y:.1f}" r="3"/>' for x, y in points]
    return [line, *dots]


def _line(x1, y1, x2, y2, opacity=1.0, dashed=False):
    style = ' stroke-dasharray="3 3"' if dashed else f' opacity="{opacity}"'
    return f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" stroke="currentColor"{style}/>'


def _bar(x, y, width, series):
    return f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{_BAR}" {_FILLS[series]}/>'


def _text(x, y, text, size=12, anchor="start"):
    # Escape the percent sign, because the site is formatted with Python's % operator.
    shown = escape(text).replace("%", "&#37;")
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}">{shown}</text>'


def _svg(height, label, parts):
    label = label.replace("%", "&#37;")
    head = (
        f'<svg class="benchmark" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{label}" '
        'fill="currentColor">'
    )
    return "\n".join([head, *parts]) + "</svg>"
