"""What `srgan evaluate` does: measure, then print and write the figures."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from rich.console import Console
from rich.table import Table as RichTable

from srgan.errors import SrganError, UsageError
from srgan.evaluation.benchmark import Upscale, evaluate, scale_between
from srgan.evaluation.measures import MEASURES
from srgan.evaluation.tables import BASELINE, SCALE, Luma, Mean, Measured, Protocol, Table
from srgan.files import write_atomically
from srgan.pages.gallery import Gallery, evaluation_page
from srgan.pages.layout import write_page
from srgan.texts import did_you_mean
from srgan.upscale import Upscaler
from srgan.weights import is_file_name

if TYPE_CHECKING:
    from srgan.evaluation.frechet import FrechetDistance


def evaluate_command(
    hr: Path,
    lr: Path | None,
    models: Sequence[str],
    sr: Sequence[str],
    *,
    precision: str = "auto",
    border: int | None = None,
    luma: str = "studio",
    perceptual_border: int = 0,
    fid: bool = False,
    json_path: Path | None = None,
    csv_path: Path | None = None,
    html_path: Path | None = None,
) -> None:
    """Print the means over all pictures and write all figures to the files that are given.

    `sr`: folders of pictures that other programs made, as DIR or NAME=DIR. `precision`: of all models, see
    `load_engine`; the notes say which each has run in. The other options: see `tables.Protocol` and
    `benchmark.evaluate`. Raises UsageError for what cannot be compared, SrganError if
    a file cannot be written.
    """
    _refuse_bad_protocol(border, luma, perceptual_border)
    folders = dict(_named_folder(text) for text in sr)
    if len(folders) < len(sr):
        raise UsageError("two --sr folders have the same name: give them others, as NAME=DIR")
    upscalers = _upscalers(models, precision)
    notes = [f"{name} was computed in {upscaler.precision}" for name, upscaler in upscalers.items()]
    scale = _scale(upscalers, hr, lr, notes)
    protocol = Protocol(scale, scale if border is None else border, cast(Luma, luma), perceptual_border)
    table = Table(protocol, notes=notes)
    gallery = Gallery() if html_path else None
    distances = _FrechetDistances() if fid else None
    contenders: dict[str, Upscale] = {name: _at_scale(upscaler, scale) for name, upscaler in upscalers.items()}
    for measured in evaluate(contenders, hr, lr, sr_folders=folders, protocol=protocol, notes=notes):
        table.add(measured)
        if distances:
            distances.add(measured)
        if gallery:
            gallery.offer(measured)
    if distances:
        table.fid = distances.values(table.notes)
    _print(table, hr)
    if json_path:
        _write(json_path, json.dumps(_as_json(table), indent=1, allow_nan=False) + "\n")
    if csv_path:
        _write(csv_path, _as_csv(table))
    if html_path and gallery:
        write_page(html_path, evaluation_page("/".join(hr.resolve().parts[-2:]), table, gallery))


def _refuse_bad_protocol(border: int | None, luma: str, perceptual_border: int) -> None:
    if luma not in get_args(Luma):
        raise UsageError(
            f"--luma {luma!r}: choose {', '.join(get_args(Luma))}{did_you_mean(luma, get_args(Luma))}"
        )
    if (border or 0) < 0 or perceptual_border < 0:
        raise UsageError("a border is a number of pixels, 0 or more")


def _upscalers(models: Sequence[str], precision: str) -> dict[str, Upscaler]:
    """Return the models by what they are called in the table: files by their names, unless two have the same."""
    models = list(dict.fromkeys(models))
    names = [Path(model).name if is_file_name(model) else model for model in models]
    return {
        name if names.count(name) == 1 else model: Upscaler(model, precision=precision)
        for name, model in zip(names, models, strict=True)
    }


def _scale(upscalers: Mapping[str, Upscaler], hr: Path, lr: Path | None, notes: list[str]) -> int:
    """Return the scale of the benchmark: that between LR and HR, else the least of the models, else the usual.

    Raises UsageError if a model enlarges less than that.
    """
    scales = {name: upscaler.scale for name, upscaler in upscalers.items()}
    name = min(scales, key=lambda name: scales[name], default="")
    scale = scales.get(name, SCALE)
    if lr is not None:
        scale = scale_between(hr, lr, scale)
    elif not scales:
        notes.append(f"×{scale} by default: neither a model nor --lr says another scale")
    if name and scales[name] < scale:
        raise UsageError(
            f"{name} enlarges {scales[name]} times, and the pictures in {lr} were reduced {scale} times: "
            f"give --lr pictures reduced {scales[name]} times, or name a model of ×{scale}"
        )
    larger = [name for name in scales if scales[name] > scale]
    notes.extend(f"{name} enlarges {scales[name]} times: its results were reduced to ×{scale}" for name in larger)
    return scale


def _at_scale(upscaler: Upscaler, scale: int) -> Upscale:
    """Return what enlarges pictures by `scale`: a larger model's result is reduced, as `srgan upscale -s` does."""
    return upscaler.upscale if upscaler.scale == scale else functools.partial(upscaler.upscale, request=scale)


def _named_folder(text: str) -> tuple[str, Path]:
    """Read DIR or NAME=DIR; a folder of exactly that name comes first."""
    name, equals, folder = text.partition("=")
    if equals and name and not Path(text).is_dir():
        return name, Path(folder)
    return Path(text).resolve().name, Path(text)


class _FrechetDistances:
    """FID of each contender, all on one network."""

    def __init__(self) -> None:
        """Fetch the network: what is missing is said before the work, not after."""
        try:
            from srgan.evaluation import frechet
        except ModuleNotFoundError as error:
            if error.name != "torch_fidelity":
                raise
            raise UsageError("FID needs a package that is not installed: pip install torch-fidelity") from error
        network = frechet.inception_network()
        self._make: Callable[[], FrechetDistance] = lambda: frechet.FrechetDistance(network)
        self._distances: dict[str, FrechetDistance] = {}
        self._pictures = 0

    def add(self, measured: Measured) -> None:
        self._pictures += 1
        for contender, sr in measured.results.items():
            if contender not in self._distances:
                self._distances[contender] = self._make()
            self._distances[contender].add(measured.pair.hr.pixels, real=True)
            self._distances[contender].add(sr.pixels, real=False)

    def values(self, notes: list[str]) -> dict[str, float]:
        if self._pictures < 2:
            notes.append("without FID: it needs at least two pictures")
            return {}
        if self._pictures < 2048:
            notes.append(f"FID of {self._pictures} pictures says little: its matrices have 2,048 rows")
        return {contender: distance.value() for contender, distance in self._distances.items()}


def _print(table: Table, hr: Path) -> None:
    console = Console(highlight=False, markup=False)
    columns = RichTable(title=f"{hr}, {len(table.names)} pictures", caption=str(table.protocol))
    for heading in ("mean", *table.rows):
        columns.add_column(heading, justify="left" if heading == "mean" else "right", overflow="fold")
    for key in table.known_keys():
        columns.add_row(MEASURES[key].name, *(_mean_text(table.mean(name, key), key) for name in table.rows))
    if table.fid:
        columns.add_row(MEASURES["fid"].name, *(MEASURES["fid"].text(table.fid[name]) for name in table.rows))
    console.print(columns)
    if len(table.names) > 1:
        console.print("± is half of the 95 % interval of the mean, by bootstrap over the pictures")
    for note in table.notes:
        console.print(note, soft_wrap=True)


def _mean_text(mean: Mean | None, key: str) -> str:
    """Return a mean with half the width of its interval, as "27.98 ±0.61"; "–" for none."""
    if mean is None:
        return "–"
    text = MEASURES[key].text(mean.value)
    return text if math.isnan(mean.margin) else f"{text} ±{MEASURES[key].text(mean.margin)}"


def _as_json(table: Table) -> dict[str, Any]:
    first = next((name for name in table.rows if name != BASELINE), BASELINE)
    keys = table.known_keys()

    def means(pairs: Iterable[tuple[str, Mean | None]]) -> dict[str, dict[str, float | None]]:
        return {key: {name: _finite(value) for name, value in asdict(mean).items()} for key, mean in pairs if mean}

    return {
        "protocol": asdict(table.protocol),
        "notes": table.notes,
        "means": {name: means((key, table.mean(name, key)) for key in keys) for name in table.rows},
        f"better than {first} by": {
            name: means((key, table.advantage(name, first, key)) for key in keys)
            for name in table.rows
            if name != first
        },
        "fid": table.fid,
        "pictures": [
            {"picture": name, "contender": contender}
            | {key: _finite(columns[key][index]) for key in keys if key in columns}
            for index, name in enumerate(table.names)
            for contender, columns in table.rows.items()
        ],
    }


def _as_csv(table: Table) -> str:
    """One row for each picture and contender; a figure that it has not is empty."""
    text, keys = io.StringIO(), table.known_keys()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["picture", "contender", *keys])
    for index, name in enumerate(table.names):
        for contender, columns in table.rows.items():
            writer.writerow([name, contender, *(columns[key][index] if key in columns else "" for key in keys)])
    return text.getvalue()


def _finite(value: float) -> float | None:
    """JSON has no infinity: the PSNR of identical pictures becomes null."""
    return value if math.isfinite(value) else None


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file name may hold bytes that are no text; so may the table that names it.
        write_atomically(path, text.encode(errors="surrogateescape"))
    except OSError as error:
        raise SrganError(f"{path} cannot be written: {error.strerror}") from error
