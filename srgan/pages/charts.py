"""Line charts as SVG, whose files need nothing from outside: for pages, and for plots that stand alone.

Colours come from the page: series I has the class `sI`, and `--sI` is defined for light and dark.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from srgan.pages.layout import render

# In SVG units; the page scales a chart to its column, so these also set the size of the letters.
_WIDTH, _HEIGHT = 400, 220
_MOST_DOTS = 300  # of one series; more would only blacken the same pixels
_MOST_HITS = 80  # upright strips that answer the pointer
COLOURS = 9
_SMOOTH_FROM = 24  # points; shorter series are drawn as they are

Point = tuple[float, float]
_Place = Callable[[float], float]  # from a step or a value to where it is drawn


@dataclass(frozen=True)
class Series:
    """One curve: `points` are (x, value), x ascending, in a run a step; a value that is not finite is a gap.

    `key` is written into the curve's `data-key`, `label` into the legend. `colour`: 0 to COLOURS - 1.
    """

    key: str
    label: str
    points: Sequence[Point]
    colour: int = 0

    def finite(self) -> list[Point]:
        """Return the points that can be drawn."""
        return [point for point in self.points if math.isfinite(point[1])]


@dataclass(frozen=True)
class Look:
    """How a chart is drawn.

    `hint`: a few words beside the heading. `log`: logarithmic values where none is negative. `smooth`: faint dots
    as logged under a centred moving average, for series long enough. `guides`: values marked by a dashed line.
    `span`: the values to show; by default all but the outermost hundredth at each end.
    """

    hint: str = ""
    log: bool = False
    smooth: bool = True
    guides: tuple[float, ...] = ()
    span: tuple[float, float] | None = None


PLAIN = Look()


@dataclass(frozen=True)
class Frame:
    """The sides of the area that curves are drawn in, in SVG units."""

    left: float
    right: float
    top: float
    bottom: float

    def x(self, share: float) -> float:
        """Return the place of a share of the width, from the left."""
        return self.left + (self.right - self.left) * share

    def y(self, share: float) -> float:
        """Return the place of a share of the height, from the bottom."""
        return self.bottom - (self.bottom - self.top) * share


@dataclass(frozen=True)
class Curve:
    """The paths of a series: its line, and its points as faint or as full dots."""

    key: str
    kind: str  # its class, "s" and a colour
    line: str
    dots: str
    dots_kind: str


@dataclass(frozen=True)
class Hit:
    """An upright strip that tells the values there."""

    x: str
    width: str
    text: str


@dataclass(frozen=True)
class Drawing:
    """All that drawing.svg.j2 writes: places are in SVG units, ticks have their texts."""

    frame: Frame
    y_ticks: Sequence[tuple[str, str]]
    x_ticks: Sequence[tuple[str, str, str]]  # with the anchor of the text
    curves: Sequence[Curve]
    guides: Sequence[str] = ()
    uprights: Sequence[str] = ()  # guides from top to bottom
    hits: Sequence[Hit] = ()


@dataclass(frozen=True)
class _Entry:
    """Of the legend: where a line ends."""

    colour: int
    name: str
    last: str


_FRAME = Frame(46, 392, 10, 194)


def line_chart(title: str, series: Sequence[Series], look: Look = PLAIN) -> Markup:
    """Return a `<figure>`: heading, legend with where each line ends, and the chart from step 0 to the last."""
    finite = [curve.finite() for curve in series]
    values = [value for points in finite for _, value in points]
    log = look.log and bool(values) and min(values) >= 0 and max(values) > 0
    axis = Axis(*look.span) if look.span else fitted_axis(finite, log=log)
    last_step = max((points[-1][0] for points in finite if points), default=1) or 1

    def x(step: float) -> float:
        return _FRAME.x(step / last_step)

    def y(value: float) -> float:
        return _FRAME.y(axis.share(value))

    drawing = Drawing(
        frame=_FRAME,
        y_ticks=[(f"{y(tick):.1f}", figure(tick)) for tick in axis.ticks()],
        x_ticks=[
            (
                f"{x(tick):.1f}",
                thousands(int(tick)),
                "start" if tick == 0 else "end" if x(tick) > _FRAME.right - 14 else "middle",
            )
            for tick in linear_ticks(0, last_step, 4)
            if tick == int(tick)
        ],
        curves=[curve_of(curve, x, y, smooth=look.smooth) for curve in series],
        guides=[f"{y(value):.1f}" for value in look.guides],
        hits=_hits(series, x, last_step),
    )
    return render(
        "chart.html.j2",
        title=title,
        hint=look.hint,
        label=f"{title}: {', '.join(curve.label for curve in series)}, over {last_step:.0f} steps",
        legend=[_entry(title, curve, named=len(series) > 1, smooth=look.smooth) for curve in series],
        width=_WIDTH,
        height=_HEIGHT,
        chart=drawing,
    )


@dataclass(frozen=True)
class Axis:
    """The values from `low` to `high`, and where each stands between them."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Return 0 at the lowest value shown and 1 at the highest; what lies beyond is drawn at the edge."""
        if self.low == self.high:
            return 0.5
        if not self.log:
            part = (value - self.low) / (self.high - self.low)
        elif value <= 0:
            part = 0.0
        else:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        return min(1.0, max(0.0, part))

    def ticks(self) -> list[float]:
        """Return round values within the axis."""
        if not self.log:
            return linear_ticks(self.low, self.high, 5)
        ticks = log_ticks(self.low, self.high)
        return ticks if len(ticks) >= 2 else linear_ticks(self.low, self.high, 4)


def fitted_axis(series: Sequence[Sequence[Point]], *, log: bool = False) -> Axis:
    """Return an axis on which the values of `series`, all of them finite, fill the height."""
    # A logarithm has no zero: zeros are drawn on the floor.
    positive = [value for points in series for _, value in points if value > 0]
    if log and positive:
        return Axis(min(positive) / 1.15, max(positive) * 1.15, log=True)
    ends = [end for points in series if points for end in _inner([value for _, value in points])]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    margin = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    return Axis(low - margin, high + margin)


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` multiples of 1, 2 or 5 times a power of ten, from `low` to `high`."""
    rough = (high - low) / max(count, 1)
    if not rough > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    unit = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9)
    return [float(f"{index * unit:.12g}") for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten from `low` to `high`; with fewer than three of them, also twice and five times each."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, (last - first) // 5)
    powers = [10.0**power for power in range(first, last + 1, stride)]
    ticks = [tick for tick in powers if low <= tick <= high]
    if len(ticks) >= 3:
        return ticks
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    return [float(f"{tick:.12g}") for tick in ticks if low <= tick <= high]


def figure(value: float) -> str:
    """Return `value` with up to four digits, as short as it can be: 0.0123, 31.82, 1e-6, 120k."""
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if size >= 1e4 and size < 1e12:
        return thousands(round(value))
    if size and size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def thousands(count: int) -> str:
    """Return a count in at most four digits where that loses little: 950, 3.05k, 120k, 1M."""
    for size, suffix in ((1_000_000, "M"), (1_000, "k")):
        if abs(count) >= size:
            return f"{count / size:.3g}{suffix}" if abs(count) < 1000 * size else f"{count // size}{suffix}"
    return str(count)


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Return the centred moving average over a twentieth of the points; it does not lag behind the run.

    `points`: finite (step, value). At the ends the window is cut off, down to its half.
    """
    reach = max(1, len(points) // 40)
    totals = [0.0]
    for _, value in points:
        totals.append(totals[-1] + value)
    averages = []
    for index, (step, _) in enumerate(points):
        first, end = max(0, index - reach), min(len(points), index + reach + 1)
        averages.append((step, (totals[end] - totals[first]) / (end - first)))
    return averages


def _inner(values: list[float]) -> tuple[float, float]:
    """Smallest and largest, without the outermost hundredth at each end where there are many."""
    ordered, cut = sorted(values), len(values) // 100
    return ordered[cut], ordered[-1 - cut]


def curve_of(series: Series, x: _Place, y: _Place, *, smooth: bool) -> Curve:
    """Return the paths of `series`; `x`, `y`: where a step and a value are drawn."""
    points = series.finite()
    long = _is_long(points, smooth)
    line = _thinned(_runs(smoothed(points) if long else series.points))
    dots = _extremes(points) if long or len(points) < _SMOOTH_FROM else []
    return Curve(
        key=series.key,
        kind=f"s{series.colour % COLOURS}",
        line="".join(f"{'M' if new else 'L'}{x(step):.1f} {y(value):.1f}" for new, step, value in line),
        dots="".join(f"M{x(step):.1f} {y(value):.1f}h0" for step, value in dots),
        dots_kind="faint" if long else "dots",
    )


def _is_long(points: Sequence[Point], smooth: bool) -> bool:
    return smooth and len(points) >= _SMOOTH_FROM


def _runs(points: Sequence[Point]) -> list[tuple[bool, float, float]]:
    """The finite points, each with whether it begins a new piece of the line after a gap."""
    runs, new = [], True
    for step, value in points:
        if math.isfinite(value):
            runs.append((new, step, value))
        new = not math.isfinite(value)
    return runs


def _thinned(runs: list[tuple[bool, float, float]]) -> list[tuple[bool, float, float]]:
    """Every so many points of a line, with the beginnings of its pieces and its end."""
    stride = max(1, len(runs) // _MOST_DOTS)
    return [run for index, run in enumerate(runs) if index % stride == 0 or run[0] or index == len(runs) - 1]


def _extremes(points: list[Point]) -> list[Point]:
    """At most `_MOST_DOTS` points: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= _MOST_DOTS:
        return points
    size = math.ceil(2 * len(points) / _MOST_DOTS)
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [pick(stretch, key=lambda point: point[1]) for stretch in stretches for pick in (min, max)]


def _hits(series: Sequence[Series], x: _Place, last_step: float) -> list[Hit]:
    """Upright strips over the chart whose titles say the values there."""
    steps = sorted({step for curve in series for step, _ in curve.points})
    stride = math.ceil(len(steps) / _MOST_HITS) or 1
    steps = steps[::-stride][::-1]  # the last one is always among them
    steps_of = [(curve, [step for step, _ in curve.points]) for curve in series if curve.points]
    middles = [(x(a) + x(b)) / 2 for a, b in itertools.pairwise(steps)]
    edges = [x(0), *middles, x(last_step)]
    hits = []
    for index, step in enumerate(steps):
        lines = [f"step {step:,.0f}"]
        for curve, logged in steps_of:
            nearest = min(bisect_left(logged, step), len(logged) - 1)
            lines.append(f"{curve.label} {figure(curve.points[nearest][1])}")
        width = max(edges[index + 1] - edges[index], 0.5)
        hits.append(Hit(f"{edges[index]:.1f}", f"{width:.1f}", "\n".join(lines)))
    return hits


def _entry(title: str, series: Series, *, named: bool, smooth: bool) -> _Entry:
    points = series.finite()
    line = smoothed(points) if _is_long(points, smooth) else points
    # A single curve that is named by the heading needs no name of its own.
    name = series.label if named or series.label.lower() != title.lower() else ""
    return _Entry(series.colour % COLOURS, name, figure(line[-1][1]) if line else "never finite")
