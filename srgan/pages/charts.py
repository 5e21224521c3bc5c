"""Line charts as inline SVG, drawn by hand so that a page of them needs nothing from outside.

Colours come from the page: series I has the class `sI`, and `--sI` is defined for light and dark. Every text is
escaped here.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

# In SVG units; the page scales a chart to its column, so these also set the size of the letters.
_WIDTH, _HEIGHT = 400, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 392, 10, 194
_MOST_DOTS = 300  # of one series; more would only blacken the same pixels
_MOST_HITS = 80  # upright strips that answer the pointer
COLOURS = 8
_SMOOTH_FROM = 24  # points; shorter series are drawn as they are

_Place = Callable[[float], float]  # from a step or a value to where it is drawn


@dataclass(frozen=True)
class Series:
    """One curve: `points` are (step, value) with ascending steps; a value that is not finite is a gap.

    `key` is written into the curve's `data-key`, `label` into the legend. `colour`: 0 to COLOURS - 1.
    """

    key: str
    label: str
    points: Sequence[tuple[int, float]]
    colour: int = 0

    def finite(self) -> list[tuple[int, float]]:
        """Return the points that can be drawn."""
        return [point for point in self.points if math.isfinite(point[1])]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    hint: str = "",
    log: bool = False,
    smooth: bool = True,
    guides: Sequence[float] = (),
    span: tuple[float, float] | None = None,
) -> str:
    """Return a `<figure>`: heading, legend with where each line ends, and the chart.

    `hint`: a few words beside the heading. `log`: logarithmic values where none is negative. `smooth`: faint
    dots as logged under a centred moving average, for series long enough. `guides`: values marked by a dashed
    line. `span`: the values to show; by default all but the outermost hundredth at each end.
    """
    drawn = [one.finite() for one in series]
    values = [value for points in drawn for _, value in points]
    log = log and bool(values) and min(values) >= 0 and max(values) > 0
    axis = _Axis.around(drawn, log=log, span=span)
    last_step = max((points[-1][0] for points in drawn if points), default=1) or 1

    def x(step: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * step / last_step

    def y(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * axis.share(value)

    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{figure(tick)}</text>'
        for tick in axis.ticks()
    ]
    parts += [
        f'<line class="guide" x1="{_LEFT}" x2="{_RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        for value in guides
    ]
    for tick in linear_ticks(0, last_step, 4):
        if tick == int(tick):
            anchor = "start" if tick == 0 else "end" if x(tick) > _RIGHT - 14 else "middle"
            parts.append(
                f'<text class="tick" x="{x(tick):.1f}" y="{_BOTTOM + 16}" text-anchor="{anchor}">'
                f"{thousands(int(tick))}</text>"
            )
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{_BOTTOM}" y2="{_BOTTOM}"/>')
    for one, points in zip(series, drawn, strict=True):
        parts.append(_curve(one, points, x, y, smooth=smooth))
    parts += _hits(series, x, last_step)

    label = escape(f"{title}: {', '.join(one.label for one in series)}, over {last_step} steps", quote=True)
    return (
        f'<figure class="chart"><figcaption><h4>{escape(title)}</h4>'
        f"{f'<small>{escape(hint)}</small>' if hint else ''}{_legend(title, series, smooth=smooth)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg></figure>'
    )


@dataclass(frozen=True)
class _Axis:
    """The values from `low` to `high`, and where each stands between them."""

    low: float
    high: float
    log: bool

    @classmethod
    def around(
        cls, drawn: Sequence[Sequence[tuple[int, float]]], *, log: bool, span: tuple[float, float] | None
    ) -> _Axis:
        """Return an axis on which the values of `drawn` fill the height."""
        if span:
            return cls(*span, log=False)
        if log:
            # A logarithm has no zero: zeros are drawn on the floor.
            positive = [value for points in drawn for _, value in points if value > 0]
            low, high = min(positive), max(positive)
            return cls(low / 1.15, high * 1.15, log=True)
        ends = [end for points in drawn if points for end in _inner([value for _, value in points])]
        low, high = min(ends, default=0.0), max(ends, default=1.0)
        margin = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
        return cls(low - margin, high + margin, log=False)

    def share(self, value: float) -> float:
        """Return 0 at the lowest value shown and 1 at the highest; what lies beyond is drawn at the edge."""
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


def linear_ticks(low: float, high: float, wanted: int) -> list[float]:
    """Return about `wanted` multiples of 1, 2 or 5 times a power of ten, from `low` to `high`."""
    rough = (high - low) / max(wanted, 1)
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
    """Return `value` with up to four digits, as short as it can be said: 0.0123, 31.82, 1e-6, 120k."""
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


def smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
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


def _curve(one: Series, points: list[tuple[int, float]], x: _Place, y: _Place, *, smooth: bool) -> str:
    long = _is_long(points, smooth)
    line = _thinned(_runs(smoothed(points) if long else one.points))
    dots = _extremes(points) if long or len(points) < _SMOOTH_FROM else []
    path = "".join(f"{'M' if new else 'L'}{x(step):.1f} {y(value):.1f}" for new, step, value in line)
    dotted = "".join(f"M{x(step):.1f} {y(value):.1f}h0" for step, value in dots)
    key = escape(one.key, quote=True)
    return (
        f'<g class="curve s{one.colour % COLOURS}" data-key="{key}">'
        f'<path class="{"faint" if long else "dots"}" d="{dotted}"/><path class="line" d="{path}"/></g>'
    )


def _is_long(points: Sequence[tuple[int, float]], smooth: bool) -> bool:
    return smooth and len(points) >= _SMOOTH_FROM


def _runs(points: Sequence[tuple[int, float]]) -> list[tuple[bool, int, float]]:
    """The finite points, each with whether it begins a new piece of the line after a gap."""
    runs, new = [], True
    for step, value in points:
        if math.isfinite(value):
            runs.append((new, step, value))
        new = not math.isfinite(value)
    return runs


def _thinned(runs: list[tuple[bool, int, float]]) -> list[tuple[bool, int, float]]:
    """Every so many points of a line, with the beginnings of its pieces and its end."""
    stride = max(1, len(runs) // _MOST_DOTS)
    return [run for index, run in enumerate(runs) if index % stride == 0 or run[0] or index == len(runs) - 1]


def _extremes(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `_MOST_DOTS` points: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= _MOST_DOTS:
        return points
    size = math.ceil(2 * len(points) / _MOST_DOTS)
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [pick(stretch, key=lambda point: point[1]) for stretch in stretches for pick in (min, max)]


def _hits(series: Sequence[Series], x: _Place, last_step: int) -> list[str]:
    """Upright strips over the chart whose titles say the values there."""
    steps = sorted({step for one in series for step, _ in one.points})
    stride = math.ceil(len(steps) / _MOST_HITS) or 1
    steps = steps[::-stride][::-1]  # the last one is always among them
    known = [(one, [step for step, _ in one.points]) for one in series if one.points]
    middles = [(x(a) + x(b)) / 2 for a, b in itertools.pairwise(steps)]
    edges = [x(0), *middles, x(last_step)]
    parts = []
    for index, step in enumerate(steps):
        said = [f"step {step:,}"]
        for one, own in known:
            nearest = min(bisect_left(own, step), len(own) - 1)
            said.append(f"{one.label} {figure(one.points[nearest][1])}")
        parts.append(
            f'<rect class="hit" x="{edges[index]:.1f}" width="{max(edges[index + 1] - edges[index], 0.5):.1f}" '
            f'y="{_TOP}" height="{_BOTTOM - _TOP}"><title>{escape(chr(10).join(said))}</title></rect>'
        )
    return parts


def _legend(title: str, series: Sequence[Series], *, smooth: bool) -> str:
    items = []
    for one in series:
        points = one.finite()
        line = smoothed(points) if _is_long(points, smooth) else points
        last = figure(line[-1][1]) if line else "never finite"
        # A single curve that is named by the heading needs no name of its own.
        name = "" if len(series) == 1 and one.label.lower() == title.lower() else f"{escape(one.label)} "
        items.append(f'<li class="s{one.colour % COLOURS}">{name}<b>{last}</b></li>')
    return f'<ul class="legend">{"".join(items)}</ul>'
