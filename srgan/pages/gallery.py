"""The page of `srgan evaluate --html`: the figures, and the pictures behind them to be looked at."""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from srgan.evaluation.benchmark import BASELINE, MEASURES, Mean, Measured, Table
from srgan.pages.layout import data_uri, page, table_row, wide_table
from srgan.pictures import Picture, encode

_SHOWN = 24  # pictures on the page, the worst ones
_MOST_PX = 960  # of a side of what is shown; of larger pictures the centre
_QUALITY = 92  # of WebP: a picture of 480×320 is 40 kB, and no artifact of it shows beside those of an upscaler
_CROP_PX = 64
_MOST_ROWS = 3000  # of the table of all pictures
TRUTH = "HR"


@dataclass(frozen=True)
class _Exhibit:
    """A picture to be shown: files by contender (the truth among them), and of its worst place, too."""

    name: str
    size: tuple[int, int]  # (height, width) of what is shown
    shown: dict[str, bytes]  # WebP
    crops: dict[str, bytes]  # PNG
    scores: dict[str, dict[str, float]]
    cut: bool  # whether more of it exists than is shown


class Gallery:
    """Keeps the pictures that the first contender beside bicubic did worst, by LPIPS or else by PSNR."""

    def __init__(self) -> None:
        self.judged = self.judged_by = ""
        self.offered = 0
        self._kept: list[tuple[float, int, _Exhibit]] = []  # a heap, the best of the worst on top
        self._number = itertools.count()

    def offer(self, measured: Measured) -> None:
        """Take one more picture if it is among the worst so far."""
        if not self.judged:
            self.judged = next((name for name in measured.results if name != BASELINE), BASELINE)
            self.judged_by = "lpips" if "lpips" in measured.scores[self.judged] else "psnr_y"
        self.offered += 1
        badness = -MEASURES[self.judged_by].sign * measured.scores[self.judged][self.judged_by]
        if len(self._kept) < _SHOWN:
            heapq.heappush(self._kept, (badness, next(self._number), self._exhibit(measured)))
        elif badness > self._kept[0][0]:
            heapq.heapreplace(self._kept, (badness, next(self._number), self._exhibit(measured)))

    def exhibits(self) -> list[_Exhibit]:
        """Return what is to be shown, the worst first."""
        return [exhibit for _, _, exhibit in sorted(self._kept, key=lambda kept: -kept[0])]

    def _exhibit(self, measured: Measured) -> _Exhibit:
        hr = measured.pair.hr
        pixels = {name: sr.pixels for name, sr in measured.results.items()} | {TRUTH: hr.pixels}
        height, width = min(hr.height, _MOST_PX), min(hr.width, _MOST_PX)
        top, left = (hr.height - height) // 2, (hr.width - width) // 2
        y, x, side = worst_window(pixels[self.judged], hr.pixels, _CROP_PX)
        return _Exhibit(
            name=measured.pair.name,
            size=(height, width),
            shown={
                name: encode(_part(levels, top, left, height, width), "webp", quality=_QUALITY)
                for name, levels in pixels.items()
            },
            crops={name: encode(_part(levels, y, x, side, side), "png") for name, levels in pixels.items()},
            scores=measured.scores,
            cut=(height, width) != (hr.height, hr.width),
        )


def worst_window(sr: npt.NDArray[np.uint8], hr: npt.NDArray[np.uint8], side_px: int) -> tuple[int, int, int]:
    """Return (top, left, side) of the square where `sr` departs most from `hr`, both (H,W,3), in squared error.

    The side is `side_px`, or that of the picture if it is smaller.
    """
    side = min(side_px, *hr.shape[:2])
    error = np.square(sr.astype(np.float64) - hr).mean(axis=2)
    sums = np.pad(error, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    windows = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    top, left = np.unravel_index(int(windows.argmax()), windows.shape)
    return int(top), int(left), side


def _part(levels: npt.NDArray[np.uint8], top: int, left: int, height: int, width: int) -> Picture:
    return Picture(np.ascontiguousarray(levels[top : top + height, left : left + width]))


def evaluation_page(name: str, table: Table, gallery: Gallery) -> str:
    """Return the page: means, advantages, the worst pictures with a slider, and a table of all."""
    count = len(table.names)
    body = [
        f'<h1>{escape(name)}</h1><p class="soft">{count} pictures · {escape(str(table.protocol))}</p>',
        _notes(table),
        "<h2>Means</h2>",
        _means(table),
        _advantages(table, gallery.judged),
        _exhibition(gallery),
        _all_pictures(table),
        "<footer>± is half of the 95 % interval of the mean, by bootstrap over the pictures. Pictures above are "
        f"WebP of quality {_QUALITY}, the enlarged places PNG; the figures are of the original pixels.</footer>",
    ]
    return page(f"{name}: evaluation", "\n".join(filter(None, body)), package="srgan.pages", name="gallery")


def _notes(table: Table) -> str:
    return "".join(f'<p class="soft">{escape(note)}</p>' for note in table.notes)


def _means(table: Table) -> str:
    keys = table.known_keys()
    lines = []
    means = {(name, key): table.mean(name, key) for name in table.rows for key in keys}
    best = {key: _best(means, key) for key in keys}
    for name in table.rows:
        cells = [_cell(means[name, key], MEASURES[key].decimals, best=best[key] == name) for key in keys]
        if table.fid:
            cells.append(f"{table.fid[name]:.2f}" if name in table.fid else "–")
        lines.append(table_row(name, cells))
    hints = "".join(f'<th title="{escape(MEASURES[key].hint)}">{MEASURES[key].heading}</th>' for key in keys)
    fid = "<th>FID</th>" if table.fid else ""
    return wide_table(f"<tr><th></th>{hints}{fid}</tr>", lines)


def _best(means: dict[tuple[str, str], Mean | None], key: str) -> str:
    known = {name: mean.value for (name, own), mean in means.items() if own == key and mean}
    return max(known, key=lambda name: MEASURES[key].sign * known[name]) if len(known) > 1 else ""


def _cell(mean: Mean | None, decimals: int, *, best: bool = False, signed: bool = False) -> str:
    if mean is None:
        return "–"
    value = f"{mean.value:{'+' if signed else ''}.{decimals}f}"
    value = f"<b>{value}</b>" if best else value
    if math.isnan(mean.low):
        return value
    return f'{value}<small class="soft">±{(mean.high - mean.low) / 2:.{decimals}f}</small>'


def _advantages(table: Table, over: str) -> str:
    """How much better each contender is than the one that is judged, picture by picture."""
    others = [name for name in table.rows if name != over]
    keys = [
        key for key in table.known_keys() if key in table.rows.get(over, {}) and key != "seconds_per_megapixel"
    ]
    if not others or len(table.names) < 2:
        return ""
    lines = []
    for name in others:
        cells = [_cell(table.advantage(name, over, key), MEASURES[key].decimals, signed=True) for key in keys]
        lines.append(table_row(name, cells))
    head = "".join(f"<th>{MEASURES[key].heading}</th>" for key in keys)
    return (
        f'<h3>Better than {escape(over)} by</h3><p class="soft">Picture by picture, so far surer than two means '
        f"beside each other; below 0 it is worse.</p>{wide_table(f'<tr><th></th>{head}</tr>', lines)}"
    )


def _exhibition(gallery: Gallery) -> str:
    exhibits = gallery.exhibits()
    if not exhibits:
        return ""
    by = MEASURES[gallery.judged_by].heading
    shown = f"the {len(exhibits)} worst of {gallery.offered}" if len(exhibits) < gallery.offered else "all"
    keys = [key for key in MEASURES if key in exhibits[0].scores[gallery.judged]]
    choices = "".join(
        f'<option value="{key}" data-sign="{MEASURES[key].sign}"{" selected" if key == gallery.judged_by else ""}>'
        f"{MEASURES[key].heading}</option>"
        for key in keys
    )
    cards = "".join(_card(exhibit, gallery.judged, keys) for exhibit in exhibits)
    return (
        f'<h2>Pictures</h2><p class="soft">Of {escape(gallery.judged)}, by {by}: {shown}. Drag across one, or '
        "use the arrow keys. Below it the place where most is wrong, enlarged.</p>"
        f'<p class="sort"><label>Worst first by <select id="order">{choices}</select></label></p>'
        f'<div class="exhibits">{cards}</div>'
    )


def _card(exhibit: _Exhibit, judged: str, keys: list[str]) -> str:
    height, width = exhibit.size
    right = judged if judged != BASELINE else TRUTH
    pictures, crops = [], []
    for name, data in exhibit.shown.items():
        role = "left" if name == BASELINE else "right" if name == right else ""
        pictures.append(
            f'<img class="{role}" data-name="{escape(name)}" src="{data_uri(data, "webp")}" width="{width}" '
            f'height="{height}" alt="{escape(f"{exhibit.name} by {name}")}">'
        )
        crop = data_uri(exhibit.crops[name], "png")
        alt = escape(f"worst place of {exhibit.name} by {name}")
        crops.append(f'<li><img src="{crop}" alt="{alt}"><small>{escape(name)}</small></li>')
    values = "".join(f' data-{key.replace("_", "-")}="{exhibit.scores[judged][key]:.6g}"' for key in keys)
    options = "".join(f"<option>{escape(name)}</option>" for name in exhibit.shown)
    told = [key for key in ("psnr_y", "lpips", "lr_psnr") if key in keys]
    figures = [f"{MEASURES[key].heading} {exhibit.scores[judged][key]:.{MEASURES[key].decimals}f}" for key in told]
    said = " · ".join([*figures, *(["its centre"] if exhibit.cut else [])])
    divide = escape(f"Divide {exhibit.name}")
    return (
        f'<section class="card exhibit"{values}><h4>{escape(exhibit.name)}</h4> <small>{escape(said)}</small>'
        f'<div class="compare" style="aspect-ratio:{width}/{height};max-width:{2 * width}px">{"".join(pictures)}'
        f'<input type="range" min="0" max="100" value="50" step="0.5" aria-label="{divide}"></div>'
        f'<div class="sides"><label>left <select class="choose-left">{options}</select></label>'
        f'<label>right <select class="choose-right">{options}</select></label></div>'
        f'<ul class="crops">{"".join(crops)}</ul></section>'
    )


def _all_pictures(table: Table) -> str:
    keys, lines = table.known_keys(), []
    for index, name in enumerate(table.names):
        for contender, columns in table.rows.items():
            figures = [
                f"{columns[key][index]:.{MEASURES[key].decimals}f}" if key in columns else "–" for key in keys
            ]
            lines.append(table_row(name, [escape(contender), *figures]))
    some = ""
    if len(lines) > _MOST_ROWS:
        some = f'<p class="soft">The first {_MOST_ROWS:,} of {len(lines):,} rows; --csv writes all.</p>'
    headings = ["picture", "contender", *(MEASURES[key].heading for key in keys)]
    head = "".join(f'<th aria-sort="none"><button type="button">{heading}</button></th>' for heading in headings)
    body = "".join(lines[:_MOST_ROWS])
    return (
        f'<h2>All figures</h2>{some}<div class="card wide"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
