"""`srgan upscale` behind its options: where the pictures come from, who makes them, and what is said of it."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

from srgan.commands.options import UpscaleOptions
from srgan.commands.terminal import FAILED, INTERRUPTED, Voice, say
from srgan.engines.inference import Progress
from srgan.errors import OutputError, PictureError, UsageError
from srgan.folder import batch, planning, streams
from srgan.folder.desk import Options
from srgan.folder.making import Order, known_format
from srgan.folder.reporting import FileReport, JsonReport
from srgan.interrupts import interruptible
from srgan.machine import available_cores
from srgan.pictures import Background, Mask, Region, guarded
from srgan.texts import did_you_mean, one_line
from srgan.upscale import Request, Upscaler
from srgan.weights import bundled_models, suited

RUNNERS = ("local", "ray")

# Begins the work: takes what is to be told of progress, and what says that it is to stop.
_Start = Callable[[Progress, threading.Event], Generator[FileReport]]
_PassedOver = Callable[[], planning.PassedOver]  # asked at the end


def upscale(options: UpscaleOptions) -> int:
    """Do all the work, say what becomes of each file, and return the exit code.

    Raises UsageError before any work if the request makes no sense.
    """
    options = _with_runner(options)
    _refuse_for_many(options)
    settings = _settings(options)
    is_stream = streams.is_asked_for(options.inputs, options.out)
    picture_to_stdout = is_stream and options.out in (None, streams.STREAM)
    _refuse_contradictions(options, is_stream=is_stream, picture_to_stdout=picture_to_stdout)
    if options.sheet is not None:
        return _sheet(options, settings)
    if options.models and len(options.models) > 1:
        raise UsageError(f"-n is one model, or several with --sheet: leave -n {options.models[-1]} away")
    make_upscaler = _upscaler_maker(options, _model(options))
    upscaler = make_upscaler()
    passed_over: _PassedOver = planning.PassedOver
    total: int | None = 1
    if is_stream:
        start = _stream(options, upscaler, settings)
    elif options.watch:
        tree = planning.tree(options.inputs, options.out, **_planned(options, settings, upscaler))
        start, total, passed_over = _watch(options, make_upscaler, upscaler, settings, tree), None, tree.look_again
    else:
        plan = planning.plan(options.inputs, options.out, **_planned(options, settings, upscaler))
        if plan.links_left:
            say("note", f"{plan.links_left} symbolic links lead out and were left; --follow-links follows them")
        passed_over = functools.partial(getattr, plan, "passed_over")
        start, total = _folder(options, make_upscaler, upscaler, settings, plan), plan.total
    facts = {
        "model": upscaler.name,
        "model_sha256": upscaler.model_sha256,
        "precision": upscaler.precision,
        "faithful": upscaler.faithful,
        "settings": settings.order.settings(upscaler.scale),
    }
    log = JsonReport(options.json_path, facts)
    to_stderr = picture_to_stdout or options.json_path == streams.STREAM
    voice = Voice(to_stderr, quiet=options.quiet, verbose=options.verbose)
    voice.note(_decided(upscaler))
    return _carried_out(start, total, log, voice, passed_over)


def _sheet(options: UpscaleOptions, settings: Options) -> int:
    """Write the page that compares models, all of which are loaded before any work."""
    from srgan.commands import sheet

    path = sheet.place(options)
    models: list[str | None] = [*options.models] if options.models else [_model(options)]
    upscalers = {model: _upscaler_maker(options, model)() for model in models}
    voice = Voice(quiet=options.quiet, verbose=options.verbose)
    return sheet.write_sheet(path, options.inputs[0], sheet.by_name(upscalers), settings, voice)


def _decided(upscaler: Upscaler) -> str:
    """Return with what the work is done, where that was left to the program."""
    memory = upscaler.memory_bytes
    within = "as much memory as there is" if memory is None else f"{memory / 1e9:.2g} GB of memory"
    return f"model {upscaler.name} in {upscaler.precision}, with {available_cores()} cores and {within}"


def _put(line: str, voice: Voice) -> str | None:
    """Print a line after the work; return what went wrong, which has been said."""
    try:
        voice.line(line)
    except OutputError as problem:
        say("error", str(problem))
        return str(problem)
    return None


def _with_runner(options: UpscaleOptions) -> UpscaleOptions:
    if options.engine is None:
        return options
    if options.engine not in RUNNERS:
        raise UsageError(f"--engine {options.engine}: there is no such option; --device says what computes")
    say("note", f"--engine {options.engine} is now called --runner {options.engine}")
    return replace(options, runner=options.engine, engine=None)


def _settings(options: UpscaleOptions) -> Options:
    """Return how every file is to be made."""
    request = Request(
        scale=options.scale,
        long_side_px=options.long_side,
        width_px=options.width,
        height_px=options.height,
        strength=options.strength,
        protect=_mask(options),
        region=None if options.region is None else Region.parsed(options.region),
        wrap=options.wrap,  # type: ignore[arg-type]  # it says what is wrong with another word
    )
    return Options(
        Order(
            request,
            format=known_format(options.format),
            quality=options.quality_level,
            hdr=options.hdr,  # type: ignore[arg-type]  # refused there if it is neither
            map=options.map is not None,
            label=options.label_word,
            background=None if options.background is None else Background.parsed(options.background),
        ),
        overwrite=options.overwrite,
        fail_fast=options.fail_fast,
        measured=options.json_path is not None,
        max_megapixels=options.max_megapixels,
        accept_damaged=options.accept_damaged,
        map=options.map,
    )


def _mask(options: UpscaleOptions) -> Mask | None:
    if options.protect is None:
        return None
    try:
        return Mask.of(guarded.decode(options.protect, max_megapixels=options.max_megapixels))
    except PictureError as error:
        raise UsageError(f"--protect: {error}") from error


def _upscaler_maker(options: UpscaleOptions, model: str | None) -> Callable[[], Upscaler]:
    return functools.partial(
        Upscaler,
        model,
        tile_lr_px=options.tile_lr_px,
        memory_bytes=options.memory_bytes,
        device=options.device,
        precision=options.precision,
        balance=options.balance,
        halo_lr_px=options.halo,
        faithful=options.is_faithful,
    )


def _refuse_for_many(options: UpscaleOptions) -> None:
    """Refuse what is of one picture where there may be several."""
    many = len(options.inputs) != 1 or options.inputs[0].is_dir() or options.watch or options.runner != "local"
    of_one = {"--map": options.map, "--protect": options.protect, "--region": options.region}
    for name, given in (of_one | {"--sheet": options.sheet}).items():
        if given is not None and many:
            raise UsageError(f"{name} is of one picture: give one file, here, without --watch")
    if options.map is not None and options.map in (*options.inputs, options.out, options.json_path):
        raise UsageError(f"--map {options.map}: is the name of another file of this run")


def _model(options: UpscaleOptions) -> str | None:
    """Return the model that was asked for, or a bundled one of the scale; None for what suits each picture."""
    if options.model is not None or options.balance is not None or options.scale is None:
        return options.model
    models = bundled_models()
    default = next(model.name for model in models if model.is_default)
    best = suited(default, {model.name: model.scale for model in models}, options.scale)
    return None if best == default else best


def _refuse_contradictions(options: UpscaleOptions, *, is_stream: bool, picture_to_stdout: bool) -> None:
    if options.workers < 1:
        raise UsageError(f"{options.workers} workers are none: give -j 1 or more")
    if getattr(sys.stdout, "name", "") == os.devnull and (
        picture_to_stdout or options.json_path == streams.STREAM
    ):
        raise UsageError("standard output is closed; give a file")
    if picture_to_stdout and options.json_path == streams.STREAM:
        raise UsageError("the picture and the report cannot both go to standard output; give --json a file")
    if is_stream and (options.watch or options.runner != "local"):
        raise UsageError("- is one picture: leave --watch and --runner away")
    if options.quiet and options.verbose:
        raise UsageError("--quiet and --verbose contradict each other; leave one of them away")
    if options.balance is not None and options.model is not None:
        raise UsageError(f"--balance lies between two models and takes no third; leave -n {options.model} away")
    if options.runner not in RUNNERS:
        raise UsageError(
            f"unknown runner {options.runner!r}: choose local or ray{did_you_mean(options.runner, RUNNERS)}"
        )
    if options.address is not None and options.runner != "ray":
        raise UsageError("--address is that of a cluster: add --runner ray")


def _planned(options: UpscaleOptions, settings: Options, upscaler: Upscaler) -> dict[str, Any]:
    """Return what planning is told beside the inputs and their place."""
    order = settings.order
    naming = planning.Naming(
        order.request.label(upscaler.scale),
        template=options.name,
        model=upscaler.name,
        strength=order.request.strength,
    )
    return {"naming": naming, "format": order.format, "follow_links": options.follow_links}


def _stream(options: UpscaleOptions, upscaler: Upscaler, settings: Options) -> _Start:
    def start(progress: Progress, stop: threading.Event) -> Generator[FileReport]:
        return streams.run(options.inputs, options.out, upscaler, settings, progress)

    return start


def _folder(
    options: UpscaleOptions,
    make_upscaler: Callable[[], Upscaler],
    upscaler: Upscaler,
    settings: Options,
    plan: planning.Plan,
) -> _Start:
    def start(progress: Progress, stop: threading.Event) -> Generator[FileReport]:
        if options.runner == "ray":
            from srgan.folder import cluster

            return cluster.run(plan, make_upscaler, upscaler, settings, address=options.address, stop=stop)
        return batch.run(plan, upscaler, settings, workers=options.workers, progress=progress, stop=stop)

    return start


def _watch(
    options: UpscaleOptions,
    make_upscaler: Callable[[], Upscaler],
    upscaler: Upscaler,
    settings: Options,
    tree: planning.Tree,
) -> _Start:
    from srgan.folder import watching

    def start(progress: Progress, stop: threading.Event) -> Generator[FileReport]:
        def carry_out(plan: planning.Plan) -> Generator[FileReport]:
            return _folder(options, make_upscaler, upscaler, settings, plan)(progress, stop)

        return watching.run(tree, carry_out, stop)

    return start


def _carried_out(start: _Start, total: int | None, log: JsonReport, voice: Voice, passed_over: _PassedOver) -> int:
    """Tell of each file as it is finished, close the log whatever the end is, and return the exit code.

    `total`: None if there is no end but an interrupt, which is then as good as any.
    """
    error, abandoned = None, False
    with interruptible() as interrupt:
        try:
            # Closed at once, not some time later: it holds threads and folders.
            with (
                voice.bar(total) as bar,
                contextlib.closing(start(bar.within_file, interrupt.stop)) as reports,
            ):
                for report in reports:
                    log.add(report)
                    bar.file_done()
                    voice.tell(report)
        except OutputError as problem:
            error = str(problem)
            say("error", error)
        except KeyboardInterrupt:
            if interrupt.exit_code is None:
                raise
            abandoned = True
        left = (total or 0) - log.counts.total() if total is not None else 0
        over = passed_over()
        if total != 1 or log.counts["skipped"] or over.count:
            counted = ", ".join(f"{count} {status}" for status, count in log.counts.items())
            counted += f", {left} left" * bool(left)
            if over.count:
                counted += f", {over.count} passed over ({one_line(str(over))})"
            error = error or _put(counted, voice)
        if interrupt.exit_code is not None and (total is not None or abandoned):
            error = error or "interrupted"
            say("interrupted", f"{left} of {total} not done; the same command goes on" if total else "in its work")
        log.close(left=left, passed_over=over.facts(), error=error)
    if abandoned:
        os._exit(interrupt.exit_code or INTERRUPTED)  # threads that are still at work would hold up the usual way
    if interrupt.exit_code is not None and total is not None:
        return interrupt.exit_code
    return FAILED if left or error or log.counts["failed"] else 0
