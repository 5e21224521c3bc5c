"""What can be typed for the verbs with many options: a record for each, whose fields are the options."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from srgan.errors import UsageError

if TYPE_CHECKING:
    from srgan.pictures import Quality

HALO_HELP = "Context of a tile, in pixels of the input, for a network of another program; default: measured."

Record = TypeVar("Record")


def _models() -> list[str]:
    """Return the bundled models, for a shell to complete."""
    from srgan.weights import bundled_models

    return [model.name for model in bundled_models()]


def taking(record: type[Record]) -> Callable[[Callable[[Record], None]], Callable[..., None]]:
    """Make a command for typer of a function of one `record`, a dataclass whose fields are annotated options."""
    hints = typing.get_type_hints(record, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(record)  # type: ignore[arg-type]  # a dataclass, as said
    ]

    def decorate(verb: Callable[[Record], None]) -> Callable[..., None]:
        @functools.wraps(verb)
        def command(**options: Any) -> None:
            verb(record(**options))

        command.__annotations__ = hints
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


@dataclass(frozen=True)
class UpscaleOptions:
    """Of `srgan upscale`."""

    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="Pictures, or folders of them.", show_default=False)
    ]
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT", help="Folder for the results, or a file for one picture."),
    ] = None
    models: Annotated[
        list[str] | None,
        typer.Option(
            "-n",
            "--model",
            metavar="MODEL",
            help="Bundled model (see `srgan models`), or a file (.onnx, ...); default: what suits the picture.",
            autocompletion=_models,
        ),
    ] = None
    scale: Annotated[
        float | None, typer.Option("-s", "--scale", help="Times larger, 1 to 16; default: the model's own.")
    ] = None
    long_side: Annotated[
        int | None, typer.Option("--long-side", metavar="PX", help="Longer side of the result, instead of -s.")
    ] = None
    width: Annotated[
        int | None,
        typer.Option("--width", metavar="PX", help="Width of the result; with --height, the box it fits into."),
    ] = None
    height: Annotated[int | None, typer.Option("--height", metavar="PX", help="Height of the result.")] = None
    strength: Annotated[
        float, typer.Option("--strength", help="1: the model's result, 0: bicubic, between: a blend.")
    ] = 1.0
    tile: Annotated[
        str, typer.Option("-t", "--tile", metavar="auto|off|N", help="Side of a tile, in pixels of the input.")
    ] = "auto"
    memory: Annotated[
        str,
        typer.Option("--memory", metavar="auto|SIZE", help="Most memory for picture, result and work: 800M, 2G."),
    ] = "auto"
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="auto|cpu|cuda[:N]|mps|gpu[:N]|npu",
            help="Where to compute; cuda and mps need torch, gpu and npu are Intel's.",
            autocompletion=lambda: ["auto", "cpu", "cuda", "mps", "gpu", "npu"],
        ),
    ] = "auto"
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            metavar="auto|fp32|bf16|fp16|int8",
            help="Of the computation; auto is what the device is fast at, fp32 the same everywhere.",
            autocompletion=lambda: ["auto", "fp32", "bf16", "fp16"],
        ),
    ] = "auto"
    balance: Annotated[
        float | None,
        typer.Option("--balance", help="Instead of -n: 0 is srresnet-x4 (true), 1 srgan-x4 (sharp), or between."),
    ] = None
    halo: Annotated[int | None, typer.Option("--halo", metavar="PX", help=HALO_HELP)] = None
    faithful: Annotated[
        str | None,
        typer.Option(
            "--faithful",
            metavar="on|off",
            help="Whether the result, reduced again, is the picture; default: on for models of clean pictures.",
        ),
    ] = None
    protect: Annotated[
        Path | None,
        typer.Option(
            "--protect",
            metavar="MASK",
            help="Picture of the input's size: white stays true (srresnet-x4), black becomes sharp.",
        ),
    ] = None
    region: Annotated[
        str | None,
        typer.Option("--region", metavar="X,Y,W,H", help="Make this part alone, in pixels of the result."),
    ] = None
    wrap: Annotated[
        str | None,
        typer.Option(
            "--wrap",
            metavar="horizontal|both",
            help="Whose edges meet: left and right, as of 360 degrees, or all four, as of a texture.",
            autocompletion=lambda: ["horizontal", "both"],
        ),
    ] = None
    map: Annotated[
        Path | None,
        typer.Option(
            "--map", metavar="FILE", help="Draw there what of the result is invented; takes twice the time."
        ),
    ] = None
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet", metavar="FILE", help="Instead of results, a page that compares several -n on one picture."
        ),
    ] = None
    format: Annotated[
        str,
        typer.Option(
            "-f",
            "--format",
            help="auto (that of the input), png, jpg, webp, avif, tiff, gif, bmp or ppm.",
            autocompletion=lambda: ["auto", "png", "jpg", "webp", "avif", "tiff", "gif", "bmp", "ppm"],
        ),
    ] = "auto"
    quality: Annotated[
        str | None,
        typer.Option(
            "-q",
            "--quality",
            metavar="1..100|lossless",
            help="For jpg, webp and avif; default: lossless in webp and avif if the input is.",
        ),
    ] = None
    background: Annotated[
        str | None,
        typer.Option(
            "--background",
            metavar="COLOUR",
            help="Put behind transparent pictures where the format holds no transparency: white, #ff8000.",
        ),
    ] = None
    label: Annotated[
        str,
        typer.Option(
            "--label",
            metavar="on|off",
            help="Whether results say in XMP, or as a text, that and how a model made them.",
            autocompletion=lambda: ["on", "off"],
        ),
    ] = "on"
    hdr: Annotated[
        str,
        typer.Option(
            "--hdr",
            metavar="keep|drop",
            help="What becomes of the gain map by which a JPEG is for HDR screens, too.",
        ),
    ] = "keep"
    name: Annotated[
        str,
        typer.Option(
            "--name",
            metavar="TEMPLATE",
            help="Of results: {stem}, {size}, {scale}, {model}, {strength} are filled in.",
        ),
    ] = "{stem}_{size}"
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make finished files again, and replace any that are in the way.")
    ] = False
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Follow symbolic links out of a folder.")
    ] = False
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first file that fails.")] = False
    max_megapixels: Annotated[
        float, typer.Option("--max-megapixels", metavar="N", help="Refuse larger pictures before decoding them.")
    ] = 200.0
    accept_damaged: Annotated[
        bool, typer.Option("--accept-damaged", help="Take what there is of files that are damaged or cut short.")
    ] = False
    workers: Annotated[
        int, typer.Option("-j", "--workers", help="Files that are decoded or encoded beside the one in inference.")
    ] = 2
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write what became of each file; - for stdout.")
    ] = None
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but warnings and errors.")] = False
    verbose: Annotated[bool, typer.Option("--verbose", help="Say what was decided and what was skipped, too.")] = (
        False
    )
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on with what appears in the folder, until Ctrl-C.")
    ] = False
    runner: Annotated[
        str,
        typer.Option(
            "--runner",
            metavar="local|ray",
            help="Work here, or on a Ray cluster.",
            autocompletion=lambda: ["local", "ray"],
        ),
    ] = "local"
    address: Annotated[
        str | None, typer.Option("--address", help="Of the Ray cluster; default: one on this machine alone.")
    ] = None
    # What --runner was called until 0.2.0: an engine is what runs a generator, and nothing else.
    engine: Annotated[str | None, typer.Option("--engine", hidden=True)] = None

    @property
    def model(self) -> str | None:
        """The model that was asked for, the first of several."""
        return self.models[0] if self.models else None

    @property
    def tile_lr_px(self) -> int | Literal["auto", "off"]:
        """The side of a tile in LR pixels, "auto" or "off"."""
        if self.tile == "auto" or self.tile == "off":
            return self.tile  # type: ignore[return-value]  # one of the two
        if self.tile.isascii() and self.tile.isdecimal() and int(self.tile) > 0:
            return int(self.tile)
        raise UsageError(f"tile {self.tile!r} is not understood: give auto, off or the side of a tile in pixels")

    @property
    def is_faithful(self) -> bool | None:
        """What "on" and "off" stand for; None for what suits the model."""
        if self.faithful not in (None, "on", "off"):
            raise UsageError(f"faithful {self.faithful!r} is not understood: choose on or off")
        return None if self.faithful is None else self.faithful == "on"

    @property
    def quality_level(self) -> Quality:
        """What "80" and "lossless" stand for; None for what suits the picture."""
        if self.quality is None or self.quality == "lossless":
            return self.quality  # type: ignore[return-value]  # one of the two
        if re.fullmatch(r"[+-]?[0-9]{1,9}", self.quality):
            return int(self.quality)
        raise UsageError(f"quality {self.quality!r} is not understood: choose one from 1 to 100, or lossless")

    @property
    def label_word(self) -> Literal["on", "off"]:
        """Whether results are labelled, by one of the two words."""
        if self.label not in ("on", "off"):
            raise UsageError(f"label {self.label!r} is not understood: choose on or off")
        return self.label  # type: ignore[return-value]  # one of the two

    @property
    def memory_bytes(self) -> int | None:
        """What "800M" or "2G" stand for; None for "auto"."""
        if self.memory == "auto":
            return None
        units = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
        size = self.memory.upper().removesuffix("B")
        try:
            count, unit = float(size[:-1]), units[size[-1:]]
        except (ValueError, KeyError):
            count, unit = 0.0, 0
        if not 0 < count < 1e6:
            raise UsageError(f"memory {self.memory!r} is not understood: give auto or a size such as 800M or 2G")
        return int(count * unit)


@dataclass(frozen=True)
class TrainOptions:
    """Of `srgan train`."""

    recipe: Annotated[
        str,
        typer.Argument(
            help="tiny, srresnet_x4, srgan_x4, srgan_x4_best, srgan_x4_photo or the path of a TOML file.",
            show_default=False,
            autocompletion=lambda: ["tiny", "srresnet_x4", "srgan_x4", "srgan_x4_best", "srgan_x4_photo"],
        ),
    ]
    data: Annotated[
        list[str],
        typer.Option(
            "--data", metavar="DIR[=WEIGHT]", help="Folder of pictures, or HR_DIR:LR_DIR; may be given again."
        ),
    ]
    run: Annotated[Path, typer.Option("--run", metavar="DIR", help="Folder for checkpoints, logs and results.")]
    validation: Annotated[
        list[str] | None,
        typer.Option(
            "--validation", metavar="DIR", help="Pictures to judge by; default: some of --data, held out."
        ),
    ] = None
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the recipe.")
    ] = None
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Finish in this time, with the schedule fitted to it.")
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --run.")] = False
    allow_changes: Annotated[
        bool,
        typer.Option("--allow-changes", help="Resume with other losses, degradation or pictures to judge by."),
    ] = False
    devices: Annotated[int, typer.Option("--devices", help="GPUs, or processes on a CPU, per machine.")] = 1
    nodes: Annotated[int, typer.Option("--nodes", help="Machines.")] = 1


@dataclass(frozen=True)
class EvaluateOptions:
    """Of `srgan evaluate`."""

    hr: Annotated[Path, typer.Option("--hr", metavar="DIR", help="Folder of true high-resolution pictures.")]
    lr: Annotated[
        Path | None,
        typer.Option("--lr", metavar="DIR", help="Their low-resolution versions; default: made by bicubic."),
    ] = None
    models: Annotated[
        list[str] | None,
        typer.Option("-n", "--model", help="Model to measure; may be given again.", autocompletion=_models),
    ] = None
    precision: Annotated[
        str, typer.Option("--precision", metavar="auto|fp32|bf16|fp16|int8", help="Of the models' computation.")
    ] = "auto"
    sr: Annotated[
        list[str] | None,
        typer.Option("--sr", metavar="[NAME=]DIR", help="Pictures that another program made; may be given again."),
    ] = None
    border: Annotated[
        int | None, typer.Option("--border", help="Pixels shaved before PSNR and SSIM; default: the scale.")
    ] = None
    luma: Annotated[
        str, typer.Option("--luma", metavar="studio|rounded|full", help="Range of Y; rounded is MATLAB's.")
    ] = "studio"
    perceptual_border: Annotated[
        int, typer.Option("--perceptual-border", help="Pixels shaved before LPIPS and DISTS.")
    ] = 0
    fid: Annotated[bool, typer.Option("--fid", help="FID, too; needs torch-fidelity and its weights.")] = False
    json_path: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there.")] = (
        None
    )
    csv_path: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a row for each picture there.")
    ] = None
    html_path: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with the pictures there.")
    ] = None
