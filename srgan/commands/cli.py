"""The `srgan` command. Commands read their options, call the library and say what happened; nothing else is here.

Results go to standard output, one line per file; errors, warnings and the progress bar go to standard error. Exit
codes: 0 all done, 1 something failed, 2 the request made no sense, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from srgan.commands.extras import needs
from srgan.commands.options import HALO_HELP, EvaluateOptions, TrainOptions, UpscaleOptions, taking
from srgan.commands.terminal import FAILED, INTERRUPTED, USAGE, say, taken
from srgan.commands.wording import Commands, MisunderstoodError, explained
from srgan.environment import refuse_misspelt
from srgan.errors import OutputError, SrganError, UsageError
from srgan.isolated import leave_folder_at_hand
from srgan.texts import did_you_mean, one_line

app = typer.Typer(
    help="Photographs four times larger, by SRGAN.",
    no_args_is_help=True,
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # plain help: rich costs as much start-up time as everything else together
    pretty_exceptions_enable=False,
)


data = typer.Typer(
    help="Look at training pictures before training.", no_args_is_help=True, cls=Commands, rich_markup_mode=None
)
app.add_typer(data, name="data")


def main() -> None:
    """Run the command line and exit with its code; the entry point of `srgan`."""
    leave_folder_at_hand()
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not be able to show every name
    # Pillow's notes on odd metadata; what matters of them comes as an error or as a warning of our own.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        _refuse_what_is_no_path(sys.argv[1:])
        with _flushed():
            sys.exit(command()(prog_name="srgan", standalone_mode=False) or 0)
    except MisunderstoodError as error:
        if not sys.argv[1:] or sys.argv[1:] == ["data"]:  # no_args_is_help
            error.show()
        else:
            say("error", explained(error))
        sys.exit(USAGE)
    except SrganError as error:
        say("error", str(error))
        sys.exit(USAGE if isinstance(error, UsageError) else FAILED)
    except OSError as error:  # of a file that nobody has expected to fail
        say("error", f"{error.filename or 'standard output'}: {error.strerror}")
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def command() -> Any:
    """Return the program as click has it; completion is had by `srgan completion`, not by options."""
    made = typer.main.get_command(app)
    made.params = [parameter for parameter in made.params if not str(parameter.name).endswith("_completion")]
    return made


@contextlib.contextmanager
def _flushed() -> Iterator[None]:
    """Have what was printed written before the end, where a full disk can still be told."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        with taken(sys.stdout):
            raise
    except SystemExit as end:
        with taken(sys.stdout):
            sys.stdout.flush()
        raise end
    except SrganError:  # it is told; what a full disk has not taken of the output is dropped
        with contextlib.suppress(OutputError), taken(sys.stdout):
            sys.stdout.flush()
        raise


def _open_closed_streams() -> None:
    """Open what was closed before the start (`2>&-`, a service without a console): what is said there is lost.

    Else the next file that is opened would be taken for it, and printed into.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # for the whole life
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # known by its name
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _refuse_what_is_no_path(arguments: Sequence[str]) -> None:
    """Refuse nothing at all, which would be taken for the current folder, and files that look like options."""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not argument or (name.startswith("--") and equals and not value):
            raise UsageError(f"{name or 'an argument'} is empty; give a name (. is the current folder)")
        if argument.startswith("-") and Path(argument).is_file():
            raise UsageError(f"{argument}: begins like an option; call this file ./{argument}")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"srgan {version('srgan')}")
        raise typer.Exit


@app.callback()
def _srgan(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hold the options that stand before the command, and what is refused whatever that is."""
    refuse_misspelt()


@app.command()
@taking(UpscaleOptions)
def upscale(options: UpscaleOptions) -> None:
    """Upscale pictures: photo.jpg becomes photo_x4.jpg, a folder becomes the same tree in OUT.

    Files that are finished already are skipped, so an interrupted run is taken up by the same command. As INPUT or
    OUT, - is standard input or output.
    """
    from srgan.commands.upscale import upscale as run_upscale

    with needs("watch"), needs("cluster"):
        raise typer.Exit(run_upscale(options))


@app.command()
def models() -> None:
    """List the bundled models and check that their files are intact."""
    from srgan.commands.models import models as list_models

    if not list_models():
        raise typer.Exit(FAILED)


@app.command()
def doctor() -> None:
    """Say what is installed here and works, what is missing, and how to get it."""
    from srgan.commands.doctor import doctor as examine

    if not examine():
        raise typer.Exit(FAILED)


@app.command()
def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish.", show_default=False)],
) -> None:
    """Print what lets a shell complete commands, options and models: eval "$(srgan completion bash)"."""
    shells = ("bash", "zsh", "fish")
    if shell not in shells:
        raise UsageError(f"no completion for {shell!r}: choose {', '.join(shells)}{did_you_mean(shell, shells)}")
    os.environ["_SRGAN_COMPLETE"] = f"source_{shell}"  # how typer's programs are asked for it
    command()(prog_name="srgan")


@app.command()
@taking(TrainOptions)
def train(options: TrainOptions) -> None:
    """Train a generator on folders of pictures."""
    with needs("train"):
        from srgan.commands.train import train as run_training

        run_training(options)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="The one to show, as TOML.", show_default=False)] = None,
) -> None:
    """List the bundled recipes for training, or show one: a file to begin a recipe of your own with."""
    with needs("train"):
        from srgan.commands.recipes import recipes as show_recipes

        show_recipes(name)


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
            autocompletion=lambda: ["onnx", "openvino", "safetensors"],
        ),
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision, half the size.")] = False,
    opset: Annotated[int | None, typer.Option("--opset", metavar="N", help="Version of ONNX's operators.")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="For eight bits, too; needs --calibrate.")] = False,
    calibrate: Annotated[
        Path | None, typer.Option("--calibrate", metavar="DIR", help="Photographs, to measure --int8's ranges.")
    ] = None,
) -> None:
    """Write a generator as files for this and other programs, each checked against the original."""
    with needs("train"):
        from srgan.commands.export import export as export_model

        if int8 != (calibrate is not None) or (int8 and fp16):
            raise UsageError("--int8 goes with --calibrate DIR, a folder of photographs, and without --fp16")
        export_model(model, out, name, kinds or [], fp16, opset, calibrate)


@app.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(help="A .pth, .pt, .ckpt, .safetensors or .onnx file.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the files.")] = Path(),
    name: Annotated[str | None, typer.Option("--name", help="Name of the model; default: the file's.")] = None,
    halo: Annotated[int | None, typer.Option("--halo", metavar="PX", help=HALO_HELP)] = None,
) -> None:
    """Make a generator that another program trained usable here. Code in its file is never run."""
    with needs("train"):
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
    with needs("train"):
        from srgan.pages.report import report_command

        print(one_line(str(report_command(run, out))))


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="The folders of two runs or more.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The page.")] = Path("compare.html"),
    study: Annotated[
        bool,
        typer.Option(
            "--study",
            help="RUN is the folder of a study (tools/objectives.py): its table, also printed, and its plots.",
        ),
    ] = False,
) -> None:
    """Show training runs side by side as one HTML page: figures, recipes, curves and samples."""
    with needs("train"):
        if study:
            from srgan.commands.study import show_study

            show_study(runs, out)
            return
        from srgan.pages.compare import compare_command, differences_of_data

        for text in differences_of_data(runs):
            say("warning", text)
        print(one_line(str(compare_command(runs, out))))


@app.command()
@taking(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> None:
    """Measure models on pictures whose truth is known: PSNR, SSIM, LPIPS, DISTS, LR-PSNR and time."""
    with needs("train"):
        from srgan.commands.evaluate import evaluate_command

        evaluate_command(**vars(options) | {"models": options.models or [], "sr": options.sr or []})


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
    with needs("service"):
        from srgan_service.server import serve_command

        given = {"host": host, "port": port, "model": model, "data_dir": data_dir, "keys_file": keys_file}
        serve_command({**given, "insecure": insecure or None})


@app.command()
def page(
    out: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="The folder; a page there is renewed.")
    ],
    runtime: Annotated[
        Path | None,
        typer.Option(
            "--runtime", metavar="PATH", help="The npm package onnxruntime-web, packed or not; default: from npm."
        ),
    ] = None,
) -> None:
    """Write the page that needs no server: pictures are made larger in the browser, and stay there."""
    with needs("page"):
        from srgan.commands import page as page_command

        page_command.page(out, runtime)


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
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the recipe.")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report there, too.")
    ] = None,
) -> None:
    """Find what would spoil a run (unreadable, small, doubled, badly paired) and how long it will take."""
    with needs("train"):
        from srgan.commands import data as data_commands

        if data_commands.check(folders, lr, json_path, recipe, overrides or []):
            raise typer.Exit(FAILED)


@data.command()
def preview(
    folders: Annotated[
        list[str],
        typer.Argument(metavar="DIR[=WEIGHT]...", help="Folders, as for `train --data`.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The sheet, .png or .jpg.")],
    recipe: Annotated[str | None, typer.Option("--recipe", help="Whose degradation; default: srgan_x4.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the recipe.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Another number shows other patches.")] = 0,
    count: Annotated[int, typer.Option("--count", help="How many patches.")] = 16,
) -> None:
    """Draw a sheet of patches as a run will see them: HR beside the LR made from it."""
    with needs("train"):
        from srgan.commands import data as data_commands

        data_commands.preview(folders, out, recipe, overrides or [], seed=seed, count=count)
