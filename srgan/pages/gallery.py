"""The page of `srgan evaluate --html`: the figures, and the pictures behind them to be looked at."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from srgan.evaluation.measures import MEASURES, Measure
from srgan.evaluation.tables import BASELINE, Mean, Measured, Table
from srgan.pages.layout import Cell, data_uri, render
from srgan.pictures import Picture, encode

_QUALITY = 92  # of WebP: a picture of 480×320 is 40 kB, and no artifact of it shows beside those of an upscaler
_CROP_PX = 64
_MOST_ROWS = 3000  # of the table of all pictures
_ON_CARDS = ("psnr_y", "lpips", "lr_psnr")  # the figures that stand beside a picture
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
    """Keeps the pictures that the first contender beside bicubic did worst, by LPIPS or else by PSNR.

    `most`: how many. `most_px`: of a side of what is shown; of larger pictures the centre.
    """

    def __init__(self, most: int = 24, most_px: int = 960) -> None:
        self.judged = self.judged_by = ""
        self.offered = 0
        self._most, self._most_px = most, most_px
        self._kept: list[tuple[float, int, _Exhibit]] = []  # a heap, the best of the worst on top
        self._number = itertools.count()

    def offer(self, measured: Measured) -> None:
        """Take one more picture if it is among the worst so far."""
        if not self.judged:
            self.judged = next((name for name in measured.results if name != BASELINE), BASELINE)
            self.judged_by = "lpips" if "lpips" in measured.scores[self.judged] else "psnr_y"
        self.offered += 1
        badness = MEASURES[self.judged_by].cost(measured.scores[self.judged][self.judged_by])
        if len(self._kept) < self._most:
            heapq.heappush(self._kept, (badness, next(self._number), self._exhibit(measured)))
        elif badness > self._kept[0][0]:
            heapq.heapreplace(self._kept, (badness, next(self._number), self._exhibit(measured)))

    def exhibits(self) -> list[_Exhibit]:
        """Return what is to be shown, the worst first."""
        return [exhibit for _, _, exhibit in sorted(self._kept, key=lambda kept: -kept[0])]

    def _exhibit(self, measured: Measured) -> _Exhibit:
        hr = measured.pair.hr
        pixels = {name: sr.pixels for name, sr in measured.results.items()} | {TRUTH: hr.pixels}
        height, width = min(hr.height, self._most_px), min(hr.width, self._most_px)
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
    keys = table.known_keys()
    exhibits = gallery.exhibits()
    shown_keys = [key for key in keys if exhibits and key in exhibits[0].scores[gallery.judged]]
    over_keys, advantages = _advantages(table, gallery.judged)
    rows = _all_figures(table)
    return render(
        "gallery.html.j2",
        look="gallery",
        title=f"{name}: evaluation",
        name=name,
        count=len(table.names),
        protocol=str(table.protocol),
        notes=table.notes,
        means=_means(table),
        mean_measures=[MEASURES[key] for key in [*keys, *(["fid"] if table.fid else [])]],
        advantages=advantages,
        advantage_measures=[MEASURES[key] for key in over_keys],
        judged=gallery.judged,
        judged_by=MEASURES[gallery.judged_by].name if gallery.judged_by else "",
        exhibits=[_card(exhibit, gallery.judged, shown_keys) for exhibit in exhibits],
        offered=gallery.offered,
        orders=[(key, MEASURES[key]) for key in shown_keys],
        headings=["picture", "contender", *(MEASURES[key].name for key in keys)],
        rows=rows[:_MOST_ROWS],
        rows_known=len(rows),
        quality=_QUALITY,
    )


def _means(table: Table) -> list[tuple[str, list[Cell]]]:
    keys = table.known_keys()
    means = {key: {name: table.mean(name, key) for name in table.rows} for key in keys}
    best = {key: _best(of_contenders, MEASURES[key]) for key, of_contenders in means.items()}
    rows = []
    for name in table.rows:
        cells = [_cell(means[key][name], MEASURES[key], best=best[key] == name) for key in keys]
        if table.fid:
            cells.append(Cell(MEASURES["fid"].text(table.fid[name])) if name in table.fid else Cell())
        rows.append((name, cells))
    return rows


def _best(means: Mapping[str, Mean | None], measure: Measure) -> str:
    """The contender with the best mean, if several have one."""
    costs = {name: measure.cost(mean.value) for name, mean in means.items() if mean}
    return min(costs, key=lambda name: costs[name]) if len(costs) > 1 else ""


def _cell(mean: Mean | None, measure: Measure, *, best: bool = False, signed: bool = False) -> Cell:
    if mean is None:
        return Cell()
    text = measure.text(mean.value)
    if signed and not text.startswith("-"):
        text = f"+{text}"
    return Cell(text, note="" if math.isnan(mean.margin) else f"±{measure.text(mean.margin)}", best=best)


def _advantages(table: Table, over: str) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """How much better each contender is than the one that is judged, picture by picture: keys, and rows."""
    others = [name for name in table.rows if name != over]
    if not others or len(table.names) < 2:
        return [], []
    keys = [key for key in table.known_keys() if key in table.rows[over] and key != "seconds_per_megapixel"]
    return keys, [
        (name, [_cell(table.advantage(name, over, key), MEASURES[key], signed=True) for key in keys])
        for name in others
    ]


@dataclass(frozen=True)
class _Picture:
    """What one contender made of an exhibit. `side`: of the divided view that shows it first, or ""."""

    name: str
    side: str
    uri: str
    crop_uri: str


@dataclass(frozen=True)
class _Card:
    """An exhibit as the template writes it. `scores`: by the name of a data attribute."""

    name: str
    figures: str
    width: int
    height: int
    scores: list[tuple[str, str]]
    pictures: list[_Picture]


def _card(exhibit: _Exhibit, judged: str, keys: list[str]) -> _Card:
    height, width = exhibit.size
    sides = {judged if judged != BASELINE else TRUTH: "right", BASELINE: "left"}
    scores = exhibit.scores[judged]
    figures = [f"{MEASURES[key].name} {MEASURES[key].text(scores[key])}" for key in _ON_CARDS if key in keys]
    return _Card(
        name=exhibit.name,
        figures=" · ".join([*figures, *(["its centre"] if exhibit.cut else [])]),
        width=width,
        height=height,
        scores=[(key.replace("_", "-"), f"{scores[key]:.6g}") for key in keys],
        pictures=[
            _Picture(name, sides.get(name, ""), data_uri(webp, "webp"), data_uri(exhibit.crops[name], "png"))
            for name, webp in exhibit.shown.items()
        ],
    )


def _all_figures(table: Table) -> list[tuple[str, list[str]]]:
    """A row for each picture and contender."""
    keys = table.known_keys()
    return [
        (
            name,
            [
                contender,
                *(MEASURES[key].text(columns[key][index]) if key in columns else "–" for key in keys),
            ],
        )
        for index, name in enumerate(table.names)
        for contender, columns in table.rows.items()
    ]
