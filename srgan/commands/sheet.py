"""`srgan upscale --sheet`: one picture by several models, on a page."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from srgan.commands.options import UpscaleOptions
from srgan.commands.terminal import Voice, say
from srgan.errors import SrganError, UsageError
from srgan.folder.desk import Options
from srgan.folder.streams import STREAM
from srgan.pages.layout import write_page
from srgan.pages.sheet import Contender, sheet_page
from srgan.pictures import Picture, flattened
from srgan.pictures.consistency import consistency
from srgan.upscale import Request, Upscaler

BICUBIC = "bicubic"

# A display's profile has some hundred bytes. It is written into each of the small pictures of a page.
_MOST_ICC_BYTES = 4096


def place(options: UpscaleOptions) -> Path:
    """Return where the page goes; raises UsageError for what makes no sense beside it."""
    models, sheet = options.models or [], options.sheet or Path()
    others = {
        "-o": options.out is not None,
        "--map": options.map is not None,
        "--balance": options.balance is not None,
        "--json": options.json_path is not None,
        "-f": options.format != "auto",
        "-q": options.quality is not None,
    }
    for name, given in others.items():
        if given:
            raise UsageError(f"--sheet writes a page and no result: leave {name} away")
    if STREAM in (sheet, *options.inputs):
        raise UsageError("--sheet is of one picture in a file, and a file itself: leave - away")
    if twice := next((model for model in models if models.count(model) > 1), None):
        raise UsageError(f"-n {twice} is given twice; leave one of them away")
    if sheet.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{sheet}: a sheet is a page; choose a name that ends in .html")
    if sheet.resolve() in [each.resolve() for each in options.inputs]:
        raise UsageError(f"--sheet {sheet}: is the name of another file of this run")
    if sheet.is_dir() or (sheet.exists() and not options.overwrite):
        raise UsageError(f"{sheet}: exists; give the sheet another name, or --overwrite to replace it")
    if not sheet.parent.is_dir():
        raise UsageError(f"{sheet.parent}: there is no such folder for the sheet")
    return sheet


def by_name(upscalers: Mapping[str | None, Upscaler]) -> dict[str, Upscaler]:
    """Return upscalers by what a reader calls them: the model's own name, or as it was given if two have one."""
    names = [BICUBIC, *(upscaler.name for upscaler in upscalers.values())]
    return {
        given if given is not None and names.count(upscaler.name) > 1 else upscaler.name: upscaler
        for given, upscaler in upscalers.items()
    }


def write_sheet(
    path: Path, source: Path, upscalers: Mapping[str, Upscaler], settings: Options, voice: Voice
) -> int:
    """Upscale the picture by each model, write the page at `path`, and return the exit code.

    All results have one size: that of the largest scale, where none is asked for. Nothing is written if one of
    the models fails.
    """
    picture = settings.decode(source)
    for warning in picture.warnings:
        say("warning", f"{source}: {warning}")
    request = settings.order.request
    if (request.scale, request.long_side_px, request.width_px, request.height_px) == (None,) * 4:
        request = replace(request, scale=max(upscaler.scale for upscaler in upscalers.values()))
    first = replace(picture.frames[0], warnings=(), gain_map=None)
    try:
        contenders, notes = _contenders(first, request, upscalers, voice)
    except MemoryError as error:
        raise SrganError(
            f"{source}: not enough memory for all results; choose a --region or fewer models"
        ) from error
    levels, changed = flattened(picture)
    icc = picture.icc if not picture.is_grey and len(picture.icc or b"") <= _MOST_ICC_BYTES else None
    notes += [*changed, *(["without its colour profile"] if picture.icc and not icc else [])]
    shown = None if request.region is not None else Picture(levels)
    told = [f"Shown: {', '.join(dict.fromkeys(notes))}."] if notes else []
    write_page(path, sheet_page(source.name, shown, contenders, told, icc))
    voice.line(f"{source} -> {path}  {', '.join([*upscalers, BICUBIC])} side by side")
    return 0


def _contenders(
    picture: Picture, request: Request, upscalers: Mapping[str, Upscaler], voice: Voice
) -> tuple[list[Contender], list[str]]:
    """Return the results, bicubic interpolation last, and what was changed for the page."""
    contenders: list[Contender] = []
    notes: list[str] = []

    def add(name: str, result: Picture, seconds: float | None) -> None:
        levels, changed = flattened(result)
        notes.extend(changed)
        psnr = None if request.region is not None else consistency(picture, result).lr_psnr_db
        contenders.append(Contender(name, levels, seconds, psnr))

    with voice.bar(len(upscalers)) as bar:
        for name, upscaler in upscalers.items():
            began = time.perf_counter()
            beside_bytes = sum(contender.levels.nbytes for contender in contenders)
            result = upscaler.upscale(picture, request, bar.within_file, beside_bytes=beside_bytes)
            add(name, result, time.perf_counter() - began)
            bar.file_done()
            for warning in result.warnings:
                say("warning", f"{name}: {warning}")
    plain = replace(request, strength=0.0, protect=None)
    add(BICUBIC, next(iter(upscalers.values())).upscale(picture, plain), None)
    return contenders, notes
