"""Bars and curves as SVG files that stand on their own, readable on light and on dark ground."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from srgan.pages.charts import figure, linear_ticks, log_ticks

_STYLE = """
svg{font:12px system-ui,sans-serif;background:#fff}text{fill:#333}.title{font-weight:600;font-size:13px}
.grid{stroke:#ddd}.bar{fill:#9aa5b1}.ours{fill:#1f77b4}.line{fill:none;stroke-width:2}.end{text-anchor:end}
.c0{stroke:#1f77b4}.c1{stroke:#d95f02}.c2{stroke:#1b9e77}.c3{stroke:#7570b3}.middle{text-anchor:middle}
@media(prefers-color-scheme:dark){svg{background:#0d1117}text{fill:#d0d7de}.grid{stroke:#30363d}.bar{fill:#6e7681}
.ours{fill:#58a6ff}.c0{stroke:#58a6ff}.c1{stroke:#f0883e}.c2{stroke:#3fb950}.c3{stroke:#a5a0ff}}
"""
_WIDTH = 720
_ROW, _BAR = 22, 14
_LABELS = 275
_LEFT, _RIGHT, _TOP, _HEIGHT = 56, 700, 52, 220


def bars(title: str, rows: Sequence[tuple[str, float, str]], ours: Sequence[str] = ()) -> str:
    """Return one bar for each (label, value from 0 up, what is written beside it), those of `ours` coloured."""
    most = max((value for _, value, _ in rows), default=1.0) or 1.0
    room = _WIDTH - _LABELS - 145
    parts = []
    for number, (label, value, said) in enumerate(rows):
        top = 34 + number * _ROW
        width = room * value / most
        kind = "bar ours" if label in ours else "bar"
        parts.append(
            f'<text class="end" x="{_LABELS - 8}" y="{top + 11}">{escape(label)}</text>'
            f'<rect class="{kind}" x="{_LABELS}" y="{top}" width="{width:.1f}" height="{_BAR}"/>'
            f'<text x="{_LABELS + width + 6:.1f}" y="{top + 11}">{escape(said)}</text>'
        )
    return _svg(title, 44 + len(rows) * _ROW, parts)


def curves(
    title: str, lines: Mapping[str, Sequence[tuple[float, float]]], *, x_name: str, y_name: str, log: bool = False
) -> str:
    """Return curves through the (x, y) of up to four `lines`; linear axes begin at 0, `log` ones at the least."""
    points = [point for line in lines.values() for point in line]
    across, up = ([point[axis] for point in points] for axis in (0, 1))
    x_axis, y_axis = _Axis(across, log=log), _Axis(up, log=log)
    bottom = _TOP + _HEIGHT

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return _LEFT + (_RIGHT - _LEFT) * x_axis.share(point[0]), bottom - _HEIGHT * y_axis.share(point[1])

    parts = []
    for tick in y_axis.ticks():
        _, y = place((x_axis.low, tick))
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{figure(tick)}</text>')
    for tick in x_axis.ticks():
        x, _ = place((tick, y_axis.low))
        parts.append(f'<text class="middle" x="{x:.1f}" y="{bottom + 18}">{figure(tick)}</text>')
    for number, (label, line) in enumerate(lines.items()):
        placed = [place(point) for point in line]
        path = "".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(placed))
        dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in placed) if len(placed) <= 12 else ""
        left = _LEFT + number * 150
        parts.append(
            f'<path class="line c{number}" d="{path}"/>'
            f'<path class="line c{number}" style="stroke-width:7;stroke-linecap:round" d="{dots}"/>'
            f'<path class="line c{number}" d="M{left} 38h18"/><text x="{left + 24}" y="42">{escape(label)}</text>'
        )
    parts.append(f'<text class="end" x="{_RIGHT}" y="{bottom + 36}">{escape(x_name)}</text>')
    parts.append(f'<text class="end" x="{_RIGHT}" y="20">{escape(y_name)}</text>')
    return _svg(title, bottom + 48, parts)


class _Axis:
    """Where values stand between the ends of an axis."""

    def __init__(self, values: Sequence[float], *, log: bool) -> None:
        self.log = log and min(values) > 0
        self.low = min(values) / 1.2 if self.log else 0.0
        self.high = (max(values) or 1.0) * (1.2 if self.log else 1.08)

    def share(self, value: float) -> float:
        """Return 0 at the low end and 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return round values between the ends."""
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high, 5)


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">'
        f'<style>{_STYLE}</style><text class="title" x="12" y="20">{escape(title)}</text>'
        f"{chr(10).join(parts)}</svg>\n"
    )
