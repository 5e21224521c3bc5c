"""The page of `srgan upscale --sheet`: one picture by several models, to be compared by eye."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from srgan.pages.layout import Cell, data_uri, render
from srgan.pictures import Picture, encode

MOST_PX = 1600  # of a side of what is shown whole: five such results are some 5 MB of WebP
_QUALITY = 92  # of WebP, as in `srgan evaluate --html`
_CROP_PX, _MOST_CROPS = 128, 6
_BLOCK_PX = 16  # places are looked for in steps of it

_Levels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Contender:
    """A result. `levels`: (H,W,3), of all contenders the same size. `seconds`: None of what no model made.

    `lr_psnr_db`: reduced again, against the picture it was made from; None where there is no such figure.
    """

    name: str
    levels: _Levels
    seconds: float | None = None
    lr_psnr_db: float | None = None


@dataclass(frozen=True)
class Place:
    """A rectangle of the results and by how many grey levels they differ in it, as root mean square."""

    top: int
    left: int
    height: int
    width: int
    levels_rms: float = 0.0

    def of(self, levels: _Levels) -> _Levels:
        """Return this part of a result."""
        part: _Levels = np.ascontiguousarray(
            levels[self.top : self.top + self.height, self.left : self.left + self.width]
        )
        return part


def differing_places(results: Sequence[_Levels], side_px: int, most: int) -> list[Place]:
    """Return where results, (H,W,3) uint8 each, differ most: squares that do not overlap, the worst first.

    What counts is their variance at each pixel. A picture that is smaller than `side_px` is taken as a whole; of
    results that are equal there is no such place.
    """
    (height, width), (rows, columns) = results[0].shape[:2], (min(side_px, side) for side in results[0].shape[:2])
    sums = np.stack(list(_block_sums(results)))
    down, across = -(-rows // _BLOCK_PX), -(-columns // _BLOCK_PX)
    table = np.pad(sums, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    windows = table[down:, across:] - table[:-down, across:] - table[down:, :-across] + table[:-down, :-across]
    places: list[Place] = []
    while len(places) < most and windows.max() > 1e-3:
        y, x = map(int, np.unravel_index(int(windows.argmax()), windows.shape))
        levels_rms = float(np.sqrt(windows[y, x] / (rows * columns)))
        top, left = min(y * _BLOCK_PX, height - rows), min(x * _BLOCK_PX, width - columns)
        places.append(Place(top, left, rows, columns, levels_rms))
        windows[max(0, y - down + 1) : y + down, max(0, x - across + 1) : x + across] = 0
    return places


def _block_sums(results: Sequence[_Levels]) -> Iterator[npt.NDArray[np.float64]]:
    """Yield, for each row of blocks, the sum of the variances in each; by rows, since floats of all are large."""
    height, width = results[0].shape[:2]
    for top in range(0, height, _BLOCK_PX):
        rows = np.stack([levels[top : top + _BLOCK_PX].astype(np.float32) for levels in results])
        spread = rows.var(axis=0).mean(axis=2).sum(axis=0)
        yield np.add.reduceat(spread.astype(np.float64), range(0, width, _BLOCK_PX))


@dataclass(frozen=True)
class _Shown:
    name: str
    side: str
    uri: str


def sheet_page(
    name: str,
    source: Picture | None,
    contenders: Sequence[Contender],
    notes: Sequence[str],
    icc: bytes | None = None,
) -> str:
    """Return the page: the first contenders behind one slider, where the models differ most, and their figures.

    `source`: what they were made from, (h,w,3) uint8, where it covers the same. `icc`: the profile of them all.
    """
    height, width = contenders[0].levels.shape[:2]
    models = [contender for contender in contenders if contender.seconds is not None]
    compared = models if len(models) > 1 else contenders
    places = differing_places([contender.levels for contender in compared], _CROP_PX, _MOST_CROPS)
    view = _view(height, width, places)
    left, right = [contender.name for contender in (models if len(models) > 1 else contenders)][:2]

    def png(levels: _Levels) -> str:
        return data_uri(encode(Picture(levels, icc=icc), "png"), "png")

    crops = []
    for place in places:
        shown = [(contender.name, png(place.of(contender.levels))) for contender in contenders]
        if source is not None:
            part = _scaled(place, source.height / height, source.width / width, source)
            shown.insert(0, ("the picture itself", png(part.of(source.pixels))))
        crops.append((place, shown))
    return render(
        "sheet.html.j2",
        look="gallery",
        title=f"{name}: {len(models)} models" if len(models) > 1 else f"{name}: {models[0].name}",
        name=name,
        size=f"{width}×{height}",
        notes=notes,
        view=view,
        is_part=(view.height, view.width) != (height, width),
        shown=[
            _Shown(
                contender.name,
                {left: "left", right: "right"}.get(contender.name, ""),
                data_uri(encode(Picture(view.of(contender.levels), icc=icc), "webp", quality=_QUALITY), "webp"),
            )
            for contender in contenders
        ],
        crops=crops,
        several=len(models) > 1,
        figures=[(contender.name, _cells(contender, models)) for contender in contenders],
        quality=_QUALITY,
    )


def _view(height: int, width: int, places: Sequence[Place]) -> Place:
    """Return what is shown behind the slider: all, or of a large result the surroundings of its worst place."""
    rows, columns = min(height, MOST_PX), min(width, MOST_PX)
    worst = places[0] if places else Place(height // 2, width // 2, 0, 0)
    top, left = worst.top + worst.height // 2 - rows // 2, worst.left + worst.width // 2 - columns // 2
    return Place(min(max(0, top), height - rows), min(max(0, left), width - columns), rows, columns)


def _scaled(place: Place, down: float, across: float, source: Picture) -> Place:
    """Return the same place in the picture that the results were made from."""
    height, width = max(1, round(place.height * down)), max(1, round(place.width * across))
    top = min(round(place.top * down), source.height - height)
    left = min(round(place.left * across), source.width - width)
    return Place(max(0, top), max(0, left), height, width)


def _cells(contender: Contender, models: Sequence[Contender]) -> list[Cell]:
    """Return the seconds, the speed and the LR-PSNR of a contender."""
    psnr = contender.lr_psnr_db
    of_psnr = Cell() if psnr is None else Cell(f"{psnr:.1f}")
    if contender.seconds is None:
        return [Cell(), Cell(), of_psnr]
    fastest = min(model.seconds for model in models if model.seconds is not None)
    megapixels = contender.levels.shape[0] * contender.levels.shape[1] / 1e6
    best = contender.seconds == fastest and len(models) > 1
    return [Cell(f"{contender.seconds:.2f}", best=best), Cell(f"{megapixels / contender.seconds:.2f}"), of_psnr]
