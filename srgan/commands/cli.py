"""The `srgan` command. Commands read their options, call the library and say what happened; nothing else is here.

Results go to standard output, one line per file; errors, warnings and the progress bar go to standard error. Exit
codes: 0 all done, 1 something failed, 2 the request made no sense, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from srgan.commands.terminal import say
from srgan.errors import SrganError, UsageError
from srgan.texts import one_line

FAILED, USAGE, INTERRUPTED = 1, 2, 130

# What only training and evaluation, or the service, need; where one of them is missing, the extra is.
_EXTRAS = {
    "train": {
        *("lightning", "lpips", "onnx", "onnxscript", "skimage", "tensorboard"),
        *("torch", "torchmetrics", "torchvision"),
    },
    "watch": {"watchfiles"},
    "cluster": {"ray", "pyarrow", "pandas"},
    "service": {
        *("dbos", "fastapi", "fsspec", "h11", "prometheus_client", "pydantic_settings", "python_multipart"),
        *("starlette", "structlog", "uvicorn"),
    },
}

_HALO = "Context of a tile, in pixels of the input, for a network of another program; default: measured."

app = typer.Typer(
    help="Photographs four times larger, by SRGAN.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich costs as much start-up time as everything else together
    pretty_exceptions_enable=False,
)


data = typer.Typer(help="Look at training pictures before training.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data, name="data")


def main() -> None:
    """Run the command line and exit with its code; the entry point of `srgan`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not be able to show every name
    # Pillow's notes on odd metadata; what matters of them comes as an error or as a warning of our own.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        app(prog_name="srgan")
    except SrganError as error:
        say("error", str(error))
        sys.exit(USAGE if isinstance(error, UsageError) else FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"srgan {version('srgan')}")
        raise typer.Exit


@app.callback()
def _srgan(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hold the options that stand before the command."""


@app.command()
def upscale(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="Pictures, or folders of them.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT", help="Folder for the results, or a file for one picture."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "-n", "--model", help="Bundled model (see `srgan models`), or the path of a file (.onnx, ...)."
        ),
    ] = None,
    scale: Annotated[
        float | None, typer.Option("-s", "--scale", help="Times larger, 1 to 16; default: the model's own.")
    ] = None,
    long_side: Annotated[
        int | None, typer.Option("--long-side", metavar="PX", help="Longer side of the result, instead of -s.")
    ] = None,
    width: Annotated[
        int | None,
        typer.Option("--width", metavar="PX", help="Width of the result; with --height, the box it fits into."),
    ] = None,
    height: Annotated[int | None, typer.Option("--height", metavar="PX", help="Height of the result.")] = None,
    strength: Annotated[
        float, typer.Option("--strength", help="1: the model's result, 0: bicubic, between: a blend.")
    ] = 1.0,
    tile: Annotated[
        str, typer.Option("-t", "--tile", metavar="auto|off|N", help="Side of a tile, in pixels of the input.")
    ] = "auto",
    memory: Annotated[
        str, typer.Option("--memory", metavar="auto|SIZE", help="Most memory to work in, such as 800M or 2G.")
    ] = "auto",
    device: Annotated[
        str, typer.Option("--device", metavar="auto|cpu|cuda[:N]|mps", help="Where to compute; GPUs need torch.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option("--precision", metavar="auto|fp32|fp16|bf16", help="Of the computation on a GPU.")
    ] = "auto",
    balance: Annotated[
        float | None,
        typer.Option("--balance", help="Instead of -n: 0 is srresnet-x4 (true), 1 srgan-x4 (sharp), or between."),
    ] = None,
    halo: Annotated[int | None, typer.Option("--halo", metavar="PX", help=_HALO)] = None,
    format: Annotated[
        str,
        typer.Option(
            "-f", "--format", help="auto (that of the input), png, jpg, webp, avif, tiff, gif, bmp or ppm."
        ),
    ] = "auto",
    quality: Annotated[
        int | None, typer.Option("-q", "--quality", help="1 to 100, for jpg, webp and avif.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make finished files again, and replace any that are in the way.")
    ] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Follow symbolic links out of a folder.")
    ] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first file that fails.")] = False,
    max_megapixels: Annotated[
        float, typer.Option("--max-megapixels", metavar="N", help="Refuse larger pictures before decoding them.")
    ] = 200.0,
    workers: Annotated[
        int, typer.Option("-j", "--workers", help="Files that are decoded or encoded beside the one in inference.")
    ] = 2,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write what became of each file; - for stdout.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on with what appears in the folder, until Ctrl-C.")
    ] = False,
    engine: Annotated[
        str, typer.Option("--engine", metavar="local|ray", help="Work here, or on a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option("--address", help="Of the Ray cluster; default: one on this machine alone.")
    ] = None,
) -> None:
    """Upscale pictures: photo.jpg becomes photo_x4.jpg, a folder becomes the same tree in OUT.

    Files that are finished already are skipped, so an interrupted run is taken up by the same command. As INPUT or
    OUT, - is standard input or output.
    """
    from srgan.commands import upscale as commands
    from srgan.folder import batch
    from srgan.upscale import Request, Upscaler

    request = Request(scale, long_side, width, height, strength)
    options = batch.Options(request, quality, overwrite, fail_fast, json_path is not None, max_megapixels)
    work = commands.Work(inputs, out, format, follow_links, workers, watch, json_path, engine, address)
    make_upscaler = functools.partial(
        Upscaler,
        model,
        tile_lr_px=_tile(tile),
        memory_bytes=_memory(memory),
        device=device,
        precision=precision,
        balance=balance,
        halo_lr_px=halo,
    )
    with _extra("watch"), _extra("cluster"):
        raise typer.Exit(commands.upscale(work, make_upscaler, options))


@app.command()
def models() -> None:
    """List the bundled models and check that their files are intact."""
    from srgan.weights import bundled_models, find_weights

    damaged = 0
    for model in bundled_models():
        state = "intact"
        try:
            find_weights(model.name)
        except SrganError as error:
            state = "DAMAGED"
            damaged += 1
            say("error", str(error))
        default = " (default)" if model.is_default else ""
        print(one_line(f"{model.name}{default}  x{model.scale}  {state}  {model.description}"))
    if damaged:
        raise typer.Exit(FAILED)


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="tiny, srresnet_x4, srgan_x4 or the path of a TOML file.", show_default=False)
    ],
    data: Annotated[
        list[str],
        typer.Option(
            "--data", metavar="DIR[=WEIGHT]", help="Folder of pictures, or HR_DIR:LR_DIR; may be given again."
        ),
    ],
    run: Annotated[Path, typer.Option("--run", metavar="DIR", help="Folder for checkpoints, logs and results.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the recipe.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Finish in this time, with the schedule fitted to it.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --run.")] = False,
    devices: Annotated[int, typer.Option("--devices", help="GPUs, or processes on a CPU, per machine.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", help="Machines.")] = 1,
) -> None:
    """Train a generator on folders of pictures."""
    with _extra("train"):
        from srgan.commands.train import train as run_training

        run_training(recipe, data, run, overrides or [], minutes, resume, devices, nodes)


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(
            help="The folder of a run, a checkpoint, a .safetensors file or a bundled model.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the files.")] = Path(),
    name: Annotated[str | None, typer.Option("--name", help="Name of the files; default: the model's.")] = None,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            metavar="KIND",
            help="onnx, openvino or safetensors; may be given again. Default: onnx and safetensors.",
        ),
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision, half the size.")] = False,
    opset: Annotated[int | None, typer.Option("--opset", metavar="N", help="Version of ONNX's operators.")] = None,
) -> None:
    """Write a generator as files for this and other programs, each checked against the original."""
    with _extra("train"):
        from srgan.commands.export import export as export_model

        export_model(model, out, name, kinds or [], fp16, opset)


@app.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(help="A .pth, .pt, .ckpt, .safetensors or .onnx file.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the files.")] = Path(),
    name: Annotated[str | None, typer.Option("--name", help="Name of the model; default: the file's.")] = None,
    halo: Annotated[int | None, typer.Option("--halo", metavar="PX", help=_HALO)] = None,
) -> None:
    """Make a generator that another program trained usable here. Code in its file is never run."""
    with _extra("train"):
        from srgan.commands.import_ import import_ as import_model

        import_model(file, out, name, halo)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: report.html in the run.")
    ] = None,
) -> None:
    """Show a training run as one HTML page: curves, samples over time, recipe and final figures."""
    with _extra("train"):
        from srgan.pages.report import report_command

        print(one_line(str(report_command(run, out))))


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="The folders of two runs or more.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The page.")] = Path("compare.html"),
) -> None:
    """Show training runs side by side as one HTML page: figures, recipes, curves and samples."""
    with _extra("train"):
        from srgan.pages.compare import compare_command

        print(one_line(str(compare_command(runs, out))))


@app.command()
def evaluate(
    hr: Annotated[Path, typer.Option("--hr", metavar="DIR", help="Folder of true high-resolution pictures.")],
    lr: Annotated[
        Path | None,
        typer.Option("--lr", metavar="DIR", help="Their low-resolution versions; default: made by bicubic."),
    ] = None,
    models: Annotated[
        list[str] | None, typer.Option("-n", "--model", help="Model to measure; may be given again.")
    ] = None,
    sr: Annotated[
        list[str] | None,
        typer.Option("--sr", metavar="[NAME=]DIR", help="Pictures that another program made; may be given again."),
    ] = None,
    border: Annotated[
        int | None, typer.Option("--border", help="Pixels shaved before PSNR and SSIM; default: the scale.")
    ] = None,
    luma: Annotated[
        str, typer.Option("--luma", metavar="studio|rounded|full", help="Range of Y; rounded is MATLAB's.")
    ] = "studio",
    perceptual_border: Annotated[
        int, typer.Option("--perceptual-border", help="Pixels shaved before LPIPS and DISTS.")
    ] = 0,
    fid: Annotated[bool, typer.Option("--fid", help="FID, too; needs torch-fidelity and its weights.")] = False,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there.")
    ] = None,
    csv_path: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a row for each picture there.")
    ] = None,
    html_path: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with the pictures there.")
    ] = None,
) -> None:
    """Measure models on pictures whose truth is known: PSNR, SSIM, LPIPS, DISTS, LR-PSNR and time."""
    with _extra("train"):
        from srgan.commands import evaluate as commands

        commands.evaluate_command(
            hr,
            lr,
            models or [],
            sr or [],
            border=border,
            luma=luma,
            perceptual_border=perceptual_border,
            fid=fid,
            json_path=json_path,
            csv_path=csv_path,
            html_path=html_path,
        )


@app.command()
def serve(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on; default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Default: 8000.")] = None,
    model: Annotated[
        str | None, typer.Option("-n", "--model", help="Used when a request names none; a name or a file.")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option("--data-dir", metavar="DIR", help="For the pictures of jobs; or an fsspec URL.")
    ] = None,
    keys_file: Annotated[
        Path | None, typer.Option("--keys-file", metavar="FILE", help="API keys, as TOML.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let other machines in without API keys.")] = False,
) -> None:
    """Serve the upscaler over HTTP. Every setting is also SRGAN_NAME in the environment (docs/deployment.md)."""
    with _extra("service"):
        from srgan_service.server import serve_command

        given = {"host": host, "port": port, "model": model, "data_dir": data_dir, "keys_file": keys_file}
        serve_command({**given, "insecure": insecure or None})


@data.command()
def check(
    folders: Annotated[
        list[str],
        typer.Argument(metavar="DIR[=WEIGHT]...", help="Folders, as for `train --data`.", show_default=False),
    ],
    lr: Annotated[Path | None, typer.Option("--lr", metavar="DIR", help="Their low-resolution versions.")] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="For which sizes and times are judged; default: srgan_x4.")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report there, too.")
    ] = None,
) -> None:
    """Find what would spoil a run (unreadable, small, doubled, badly paired) and how long it will take."""
    with _extra("train"):
        from srgan.commands import data as data_commands

        if data_commands.check(folders, lr, json_path, recipe):
            raise typer.Exit(FAILED)


@data.command()
def preview(
    folders: Annotated[
        list[str],
        typer.Argument(metavar="DIR[=WEIGHT]...", help="Folders, as for `train --data`.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The sheet, .png or .jpg.")],
    recipe: Annotated[str | None, typer.Option("--recipe", help="Whose degradation; default: srgan_x4.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Another number shows other patches.")] = 0,
    count: Annotated[int, typer.Option("--count", help="How many patches.")] = 16,
) -> None:
    """Draw a sheet of patches as a run will see them: HR beside the LR made from it."""
    with _extra("train"):
        from srgan.commands import data as data_commands

        data_commands.preview(folders, out, recipe, seed, count)


def _tile(text: str) -> int | Literal["auto", "off"]:
    if text == "auto":
        return "auto"
    if text == "off":
        return "off"
    if text.isascii() and text.isdecimal() and int(text) > 0:
        return int(text)
    raise UsageError(f"tile {text!r} is not understood: give auto, off or the side of a tile in pixels")


def _memory(text: str) -> int | None:
    """Return the bytes that "800M" or "2G" stand for; None for "auto"."""
    if text == "auto":
        return None
    units = {"K": 10**3, "M": 10**6, "G": 10**9}
    size = text.upper().removesuffix("B")
    with contextlib.suppress(ValueError):
        if size[-1:] in units and 0 < float(size[:-1]) < 1e6:
            return int(float(size[:-1]) * units[size[-1:]])
    raise UsageError(f"memory {text!r} is not understood: give auto or a size such as 800M or 2G")


@contextlib.contextmanager
def _extra(extra: str) -> Iterator[None]:
    """Turn the absence of a package that only `extra` brings into what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS[extra]:
            raise
        raise UsageError(f'this needs {missing}, which is not installed: pip install "srgan[{extra}]"') from error
