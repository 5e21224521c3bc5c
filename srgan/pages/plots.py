"""Plots as SVG files that stand alone, readable on light and on dark ground: bars, curves, and rows of dots.

They are drawn as the charts of the pages are, with the same axes, colours and template.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from srgan.pages.charts import Axis, Curve, Drawing, Frame, Point, Series, curve_of, figure, fitted_axis
from srgan.pages.layout import render

_WIDTH = 720
_ROW, _BAR = 22, 14
_LABELS = 275  # the column left of the bars
_BESIDE = 145  # what is written beside the longest bar
_FRAME = Frame(56, 700, 52, 272)
_SHEET_WIDTH, _SHEET_GAP, _SHEET_LABELS = 1100, 46, 120


@dataclass(frozen=True)
class Lines:
    """A panel of curves, by label."""

    title: str
    lines: Mapping[str, Sequence[Point]]
    log: bool = False


@dataclass(frozen=True)
class Dots:
    """A panel with a row of dots for each label, their mean marked. `reference`: a value marked in all rows."""

    title: str
    rows: Mapping[str, Sequence[float]]
    reference: float = math.nan


@dataclass(frozen=True)
class _Bar:
    label: str
    x: int
    y: int
    width: str
    height: int
    is_ours: bool
    text: str
    text_x: str


@dataclass(frozen=True)
class _Text:
    """A text at a place; in a legend, beside a line of `colour`."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    colour: int = 0


def bars(title: str, rows: Sequence[tuple[str, float, str]], ours: Sequence[str] = ()) -> str:
    """Return one bar for each (label, value from 0 up, what is written beside it), those of `ours` coloured."""
    most = max((value for _, value, _ in rows), default=1.0) or 1.0
    drawn = []
    for number, (label, value, text) in enumerate(rows):
        width = (_WIDTH - _LABELS - _BESIDE) * value / most
        drawn.append(
            _Bar(
                label=label,
                x=_LABELS,
                y=34 + number * _ROW,
                width=f"{width:.1f}",
                height=_BAR,
                is_ours=label in ours,
                text=text,
                text_x=f"{_LABELS + width + 6:.1f}",
            )
        )
    return _file(title, _WIDTH, 44 + len(rows) * _ROW, bars=drawn)


def curves(
    title: str, lines: Mapping[str, Sequence[Point]], *, x_name: str, y_name: str, log: bool = False
) -> str:
    """Return curves through the (x, y) of up to four `lines`; linear axes begin at 0, `log` ones at the least."""
    points = [point for line in lines.values() for point in line]
    x_axis, y_axis = (_from_zero([point[axis] for point in points], log=log) for axis in (0, 1))
    captions = [
        _Text(_FRAME.right, _FRAME.bottom + 36, x_name, "end"),
        _Text(_FRAME.right, 20, y_name, "end"),
    ]
    legend = [_Text(_FRAME.left + 150 * number, 42, label, colour=number) for number, label in enumerate(lines)]
    series = [Series("", label, line, number) for number, (label, line) in enumerate(lines.items())]
    drawing = _curves(_FRAME, series, x_axis, y_axis)
    return _file(title, _WIDTH, _FRAME.bottom + 48, drawings=[drawing], legend=legend, captions=captions)


def sheet(title: str, upper: Sequence[Lines], lower: Sequence[Dots], *, x_name: str) -> str:
    """Return panels of curves above panels of dots, for the same up to nine labels; `x_name`: of the curves."""
    labels = list(lower[0].rows)
    legend = [
        _Text(12 + 200 * (number % 5), 40 + 17 * (number // 5), label, colour=number)
        for number, label in enumerate(labels)
    ]
    drawings, captions = [], []
    width = (_SHEET_WIDTH - 12 - len(upper) * _SHEET_GAP) / len(upper)
    for number, panel in enumerate(upper):
        left = _SHEET_GAP + number * (width + _SHEET_GAP)
        frame = Frame(left, left + width, 90, 290)
        series = [Series("", label, line, index) for index, (label, line) in enumerate(panel.lines.items())]
        finite = [line.finite() for line in series]
        steps = [x for line in finite for x, _ in line] or [0.0, 1.0]
        drawings.append(_curves(frame, series, Axis(min(steps), max(steps)), fitted_axis(finite, log=panel.log)))
        captions.append(_Text((frame.left + frame.right) / 2, 78, panel.title, "middle"))
        captions.append(_Text(frame.right, frame.bottom + 32, x_name, "end"))
    bottom = 370 + 24 * len(labels)
    width = (_SHEET_WIDTH - 12 - _SHEET_LABELS) / len(lower)
    for number, dots in enumerate(lower):
        left = _SHEET_LABELS + number * width
        frame = Frame(left, left + width - 24, 370, bottom)
        drawings.append(_dots(frame, dots, labels if number == 0 else [""] * len(labels)))
        captions.append(_Text((frame.left + frame.right) / 2, 358, dots.title, "middle"))
    return _file(title, _SHEET_WIDTH, bottom + 30, drawings=drawings, legend=legend, captions=captions)


def _curves(frame: Frame, series: Sequence[Series], x_axis: Axis, y_axis: Axis) -> Drawing:
    return Drawing(
        frame=frame,
        y_ticks=[(f"{frame.y(y_axis.share(tick)):.1f}", figure(tick)) for tick in y_axis.ticks()],
        x_ticks=_x_ticks(frame, x_axis),
        curves=[
            curve_of(line, lambda x: frame.x(x_axis.share(x)), lambda y: frame.y(y_axis.share(y)), smooth=False)
            for line in series
        ],
    )


def _dots(frame: Frame, panel: Dots, labels: Sequence[str]) -> Drawing:
    """A row for each label; `labels`: as they are written at the left."""
    shown = [*itertools.chain(*panel.rows.values()), panel.reference]
    axis = fitted_axis([[(0, value)] for value in shown if math.isfinite(value)])
    rows = [frame.y(1 - (number + 0.5) / len(labels)) for number in range(len(labels))]
    drawn = []
    for number, (y, values) in enumerate(zip(rows, panel.rows.values(), strict=True)):
        finite = [value for value in values if math.isfinite(value)]
        dots = "".join(f"M{frame.x(axis.share(value)):.1f} {y:.1f}h0" for value in finite)
        drawn.append(Curve(key="", kind=f"s{number}", line="", dots=dots, dots_kind="dots"))
        if finite:
            mean = frame.x(axis.share(statistics.fmean(finite)))
            drawn.append(Curve(key="", kind="mark", line=f"M{mean:.1f} {y - 7:.1f}v14", dots="", dots_kind="dots"))
    reference = [f"{frame.x(axis.share(panel.reference)):.1f}"] if math.isfinite(panel.reference) else []
    return Drawing(
        frame=frame,
        y_ticks=[(f"{y:.1f}", label) for y, label in zip(rows, labels, strict=True)],
        x_ticks=_x_ticks(frame, axis),
        curves=drawn,
        uprights=reference,
    )


def _x_ticks(frame: Frame, axis: Axis) -> list[tuple[str, str, str]]:
    return [(f"{frame.x(axis.share(tick)):.1f}", figure(tick), "middle") for tick in axis.ticks()]


def _from_zero(values: Sequence[float], *, log: bool) -> Axis:
    if log and min(values) > 0:
        return Axis(min(values) / 1.2, max(values) * 1.2, log=True)
    return Axis(0.0, (max(values) or 1.0) * 1.08)


def _file(title: str, width: float, height: float, **parts: Any) -> str:
    values = {"bars": (), "legend": (), "drawings": (), "captions": ()} | parts
    return render("plot.svg.j2", title=title, width=width, height=height, **values) + "\n"
