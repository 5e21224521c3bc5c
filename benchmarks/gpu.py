"""What a graphics card makes of upscaling and training, in one command of at most 150 seconds.

    python benchmarks/gpu.py                        # on CUDA; prints tables in Markdown, and writes build/gpu.json
    python benchmarks/gpu.py --device cpu --quick   # a rehearsal at tiny sizes: does it run?

Measured, in this order: the rate of large matrix products; what each precision is off from float32 on the CPU; the
forms of the last convolution; pictures from levels to levels, through `Inference` as `srgan upscale` does it, and
through eager PyTorch (NCHW, layers as published, one piece); patches per second of both training stages and of the
plain loop of `speed_training.py`, with the dearest operators of our step; and, with --compile, one forward pass by
CUDA graph and by `torch.compile`. Upscaling needs torch, numpy, pydantic and safetensors; training what the extra
`train` installs, but not OpenVINO. What cannot be had, or for what no time is left, is named with its reason.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import MagicMock, patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from srgan.engines.inference import Inference
from srgan.engines.protocol import Precision
from srgan.engines.torch import TorchEngine
from srgan.errors import SrganError
from srgan.files import write_atomically
from srgan.networks import tails
from srgan.networks.layers import TailForm, deployed
from srgan.networks.reading import load_network
from srgan.texts import first_line

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "weights" / "srgan-x4.safetensors"
HALF_TYPES: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}

# Time that is kept for what comes after: a measurement that has not this much before it is left out.
LEAST_S = 10.0

# The stages as they are measured on a card: batches that fill it, and the larger discriminator.
ON_A_CARD = (
    "pretrain.batch_size=32",
    "pretrain.patch_hr_px=192",
    "adversarial.batch_size=32",
    "adversarial.patch_hr_px=128",
    'discriminator.kind="unet"',
)
OPERATORS = 20

PLAIN = "plain loop, fp32"

Figures = dict[str, Any]
Upscale = Callable[[np.ndarray], np.ndarray]
MakeStep = Callable[[], Callable[[], None]]


@dataclass(frozen=True)
class Plan:
    """What is measured: sides of square LR pictures, a large one (height, width), and the training recipe."""

    sizes: tuple[int, ...] = (256, 512, 1024)
    large: tuple[int, int] = (4000, 6000)
    parity_side: int = 192
    product_side: int = 8192
    repetitions: int = 5
    recipe: str = "srgan_x4_best"
    changes: tuple[str, ...] = ON_A_CARD
    steps: int = 10
    rounds: int = 2


QUICK = Plan(
    sizes=(16,),
    large=(24, 32),
    parity_side=16,
    product_side=64,
    repetitions=1,
    recipe="tiny",
    changes=("pretrain.batch_size=2", "adversarial.batch_size=2"),
    steps=1,
    rounds=1,
)


class Card:
    """The device that is measured, and the time until `limit_s` that is left for it."""

    def __init__(self, device: str, limit_s: float) -> None:
        self.device = torch.device(device)
        self._ends = time.monotonic() + limit_s

    def left_s(self) -> float:
        """Return for how many seconds measurements may still begin."""
        return self._ends - time.monotonic() - LEAST_S

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def described(self) -> Figures:
        """Return what it is, and what runs on it."""
        facts: Figures = {"torch": torch.__version__, "python": platform.python_version()}
        if self.device.type != "cuda":
            return facts | {"name": platform.processor() or platform.machine()}
        properties = torch.cuda.get_device_properties(self.device)
        return facts | {
            "name": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }

    def measured(self, run: Callable[[], object], repetitions: int) -> tuple[list[float], int | None]:
        """Return the seconds of each repetition of `run`, after one that is not counted, and its peak memory."""
        before = None
        run()
        self.wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
        seconds = []
        for _ in range(repetitions):
            began = time.perf_counter()
            run()
            self.wait()
            seconds.append(time.perf_counter() - began)
        return seconds, None if before is None else torch.cuda.max_memory_allocated(self.device) - before

    def attempt(self, measure: Callable[..., Figures], *arguments: Any) -> Figures:
        """Return what `measure(*arguments)` does, or as "missing" why that could not be had."""
        try:
            if self.left_s() <= 0:
                raise TimeoutError("no time was left")
            return measure(*arguments)
        except (SrganError, ImportError, RuntimeError, TimeoutError, ValueError) as error:
            return {"missing": f"{type(error).__name__}: {first_line(error)}"}
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, measure, print, and write after every part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--compile", action="store_true", help="also one pass by CUDA graph and torch.compile")
    parser.add_argument("--limit", type=float, default=150, help="seconds in all (default: %(default)g)")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "gpu.json", help="file for the figures")
    options = parser.parse_args(arguments)
    plan, card = QUICK if options.quick else Plan(), Card(options.device, options.limit)
    if card.device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA here; `--device cpu --quick` is a rehearsal without")
    figures: Figures = {"quick": options.quick, "device": card.described()}
    parts = [products, network, parity, forms, upscaling, training, operators] + (
        [compiled] if options.compile else []
    )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    print(", ".join(f"{key} {value}" for key, value in figures["device"].items()))
    for part in parts:
        figures[part.__name__] = part(plan, card, figures)
        figures["seconds"] = round(time.monotonic() - began, 1)
        write_atomically(options.json, (json.dumps(figures, indent=1) + "\n").encode())
        print("\n".join(["", f"## {part.__name__.capitalize()}, {figures['seconds']} s", ""]))
        print("\n".join(shown(figures[part.__name__])), flush=True)


def products(plan: Plan, card: Card, _: Figures) -> Figures:
    """Return the rate of a large matrix product in each precision, in operations per second: the peak."""

    def rate(dtype: torch.dtype) -> Figures:
        # Random numbers: zeros are multiplied faster.
        a, b = (torch.randn(plan.product_side, plan.product_side, device=card.device).to(dtype) for _ in range(2))
        seconds, _bytes = card.measured(partial(torch.mm, a, b), 5)
        return {"operations_per_s": 2 * plan.product_side**3 / statistics.median(seconds)}

    return {kind: card.attempt(rate, HALF_TYPES.get(kind, torch.float32)) for kind in precisions()}


def network(plan: Plan, card: Card, _: Figures) -> Figures:
    """Return the arithmetic of the bundled generator, as published, for each LR pixel."""
    published, metadata = generator(TailForm(moved=False))
    side = 16
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        published(torch.zeros(1, 3, side, side))
    return {
        "name": metadata.name,
        "scale": metadata.scale,
        "operations_per_lr_px": counter.get_total_flops() / side**2,
    }


def generator(form: TailForm) -> tuple[nn.Module, Any]:
    """Return the bundled generator with its tail in `form`, on the CPU, and its metadata."""
    loaded, metadata = load_network(MODEL)
    return deployed(loaded, form).eval(), metadata


def picture(height: int, width: int) -> np.ndarray:
    """Return (H,W,3) levels with edges, waves and grain, the same at every call."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    random = np.random.default_rng(0)
    waves = [np.sin(x / (5 + 3 * channel)) * np.cos(y / (7 + channel)) for channel in range(3)]
    smooth = 0.5 + 0.3 * np.stack(waves, axis=-1)
    squares = 0.15 * (((x // 37 + y // 23) % 2)[..., None] - 0.5)
    grain = random.normal(0, 0.02, (height, width, 1)).astype(np.float32)
    levels: np.ndarray = (255 * (smooth + squares + grain)).clip(0, 255).astype(np.uint8)
    return levels


def parity(plan: Plan, card: Card, _: Figures) -> Figures:
    """Return how far each precision is from float32 on the CPU: in dB, in grey levels at most and on average."""
    levels = picture(plan.parity_side, plan.parity_side)
    lr = np.ascontiguousarray(levels.transpose(2, 0, 1)[None] / np.float32(255))
    with torch.inference_mode():
        exact = generator(TailForm())[0](torch.from_numpy(lr)).numpy()

    def difference(precision: Precision) -> Figures:
        off = TorchEngine(MODEL, device=str(card.device), precision=precision).run(lr) - exact
        mean_square = max(float(np.square(off, dtype=np.float64).mean()), 1e-20)
        return {
            "db": -10 * float(np.log10(mean_square)),
            "most_levels": 255 * float(np.abs(off).max()),
            "mean_levels": 255 * float(off.mean()),
        }

    return {precision: card.attempt(difference, precision) for precision in precisions()}


def precisions() -> list[Precision]:
    """Return the precisions, the one that `auto` takes on CUDA first."""
    return [*HALF_TYPES, "fp32"]


def forms(plan: Plan, card: Card, _: Figures) -> Figures:
    """Return seconds and bytes of a pass in every form of the tail."""
    loaded = load_network(MODEL)[0].eval()

    def passes(side: int, precision: Precision, form: TailForm) -> Figures:
        lr = torch.rand(1, 3, side, side, device=card.device).contiguous(memory_format=torch.channels_last)
        placed = deployed(loaded, form).to(card.device).to(memory_format=torch.channels_last)
        run = partial(forward, placed, lr, HALF_TYPES.get(precision))
        seconds, peak_bytes = card.measured(run, plan.repetitions)
        return {
            "seconds": statistics.median(seconds),
            "bytes_per_lr_px": peak_bytes and peak_bytes / side**2,
        }

    return {
        f"{'moved' if form.moved else 'as published'}, {precision}, {side}": card.attempt(
            passes, side, precision, form
        )
        for side in dict.fromkeys((plan.sizes[0], plan.sizes[-1]))
        for precision in precisions()
        for form in tails.forms(loaded, half=precision in HALF_TYPES)
    }


def forward(network: nn.Module, lr: Tensor, half: torch.dtype | None) -> Tensor:
    """Return SR as the engine computes it."""
    autocast = torch.autocast(lr.device.type, dtype=half, enabled=half is not None)
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False), autocast:
        sr: Tensor = network(lr)
    return sr


def upscaling(plan: Plan, card: Card, figures: Figures) -> Figures:
    """Return time and memory of pictures from levels to levels: ours, and eager PyTorch in one piece."""
    rows: Figures = {}
    squares = [(side, side) for side in plan.sizes]

    def of_picture(make: Callable[[], Upscale], size: tuple[int, int], precision: Precision) -> Figures:
        levels, px = picture(*size), size[0] * size[1]
        repetitions = 1 if size == plan.large else plan.repetitions
        seconds, peak_bytes = card.measured(partial(make(), levels), repetitions)
        middle = statistics.median(seconds)
        rate = figures["network"]["operations_per_lr_px"] * px / middle
        peak = figures["products"][precision].get("operations_per_s")
        return {
            "seconds": middle,
            "output_mp_per_s": figures["network"]["scale"] ** 2 * px / 1e6 / middle,
            "bytes_per_lr_px": peak_bytes and peak_bytes / px,
            "peak_gb": peak_bytes and peak_bytes / 1e9,
            "share_of_peak": peak and rate / peak,
        }

    for precision in precisions():
        make = cache(partial(ours, precision, card))  # by the first picture, and then no more
        for size in (*squares, plan.large):
            rows[f"ours, {precision}, {size[0]}x{size[1]}"] = card.attempt(of_picture, make, size, precision)
        del make
        make = cache(partial(eager, precision, card))
        for size in squares:
            name = f"eager NCHW, {precision}, {size[0]}x{size[1]}"
            rows[name] = card.attempt(of_picture, make, size, precision)
    return rows


def ours(precision: Precision, card: Card) -> Upscale:
    """Return this program's way, with whatever tiles it takes."""
    return Inference(TorchEngine(MODEL, device=str(card.device), precision=precision)).levels


def eager(precision: Precision, card: Card) -> Upscale:
    """Return the way of a script: the layers as published, contiguous, the whole picture at once."""
    placed = generator(TailForm(moved=False))[0].to(card.device)

    def run(levels: np.ndarray) -> np.ndarray:
        lr = torch.from_numpy(levels).to(card.device).permute(2, 0, 1)[None].float().contiguous() / 255
        sr = forward(placed, lr, HALF_TYPES.get(precision)).float().clamp(0, 1).mul(255).round().byte()
        upscaled: np.ndarray = sr[0].permute(1, 2, 0).cpu().numpy()
        return upscaled

    return run


def training(plan: Plan, card: Card, figures: Figures) -> Figures:
    """Return patches per second of both stages, ours and a plain loop's; keep our step's dearest operators."""
    figures["operators"] = {}
    with tempfile.TemporaryDirectory() as scratch, patch.dict(os.environ):
        return card.attempt(both_stages, plan, card, figures, Path(scratch))


def both_stages(plan: Plan, card: Card, figures: Figures, scratch: Path) -> Figures:
    """Do what `training` does, with `scratch` as a folder for samples."""
    without_openvino()
    from measuring import photographs
    from speed_training import SAMPLES, seconds

    from srgan.training.config import load_recipe
    from srgan.training.data.cache import build_cache

    rows: Figures = {}
    recipe = load_recipe(plan.recipe, list(plan.changes))
    if random := random_backbones(scratch):
        rows["random weights"] = {"of": ", ".join(random)}
    folder = photographs(scratch / "samples", SAMPLES[:3], "jpg")
    pictures = build_cache([folder], scratch / "cache")

    def rate(name: str, loop: str, patches: int, make: MakeStep) -> Figures:
        step = make()
        steps = plan.steps if loop != PLAIN else 1
        times = [seconds(step, steps, card.device) for _ in range(plan.rounds)]
        if name not in figures["operators"]:
            figures["operators"][name] = dearest_operators(step, card)
        return {"patches_per_s": patches / statistics.median(times)}

    for name in recipe.stages():
        for loop, (patches, make) in loops(card, recipe, name, folder, pictures).items():
            rows[f"{name}: {loop}"] = card.attempt(rate, name, loop, patches, make)
    return rows


def loops(card: Card, recipe: Any, name: str, folder: Path, pictures: Any) -> dict[str, tuple[int, MakeStep]]:
    """Return what there is to measure of the stage `name`: the patches of a step, and what makes the step."""
    import speed_training

    from srgan.training.processes import make_fabric, precision_of
    from srgan.training.trainer import discriminator_steps

    patches = recipe.stages()[name].batch_size * (discriminator_steps(recipe) if name == "adversarial" else 1)
    exact = recipe.model_copy(update={"precision": "fp32"})
    steps: dict[str, MakeStep] = {
        f"ours, {precision_of(recipe)}": lambda: speed_training.ours(recipe, name, pictures, make_fabric(recipe))[
            0
        ],
        "ours, fp32": lambda: speed_training.ours(exact, name, pictures, make_fabric(exact))[0],
        PLAIN: lambda: speed_training.plain(recipe, name, folder, 0, card.device),
    }
    return {loop: (patches, make) for loop, make in steps.items()}


def dearest_operators(step: Callable[[], None], card: Card) -> Figures:
    """Return the dearest operators of one step: calls, milliseconds of the device, and their share."""
    from torch.profiler import ProfilerActivity, profile

    on_card = card.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    with profile(activities=activities) as profiled:
        step()
        card.wait()
    # Operators, not the kernels that they start, whose time is theirs.
    events = [event for event in profiled.key_averages() if event.device_type.name == "CPU"]
    times = {e.key: e.self_device_time_total if on_card else e.self_cpu_time_total for e in events}
    total = sum(times.values()) or 1.0
    return {
        event.key: {"calls": event.count, "ms": times[event.key] / 1e3, "share": times[event.key] / total}
        for event in sorted(events, key=lambda event: times[event.key], reverse=True)[:OPERATORS]
    }


def operators(plan: Plan, card: Card, figures: Figures) -> Figures:
    """Return what was kept of both stages, as rows of one table."""
    stages = figures["operators"].items()
    return {f"{name}: {operator}": facts for name, rows in stages for operator, facts in rows.items()}


def without_openvino() -> None:
    """Let what trains be imported where OpenVINO is not installed: nothing here exports a model or runs it."""
    if importlib.util.find_spec("openvino") is None:
        sys.modules.setdefault("srgan.engines.runtime", MagicMock())


def random_backbones(folder: Path) -> list[str]:
    """Put random weights into `folder` for the networks of the perceptual losses, if nobody names trained ones.

    They take the time that trained ones take.
    """
    if os.environ.get("SRGAN_BACKBONES"):
        return []
    import torchvision
    from safetensors.torch import save_file

    names = ["vgg16", "alexnet"]
    for name in names:
        with torch.device("meta"):
            state = getattr(torchvision.models, name)(weights=None).features.state_dict()
        tensors = {f"features.{key}": 0.02 * torch.randn(tensor.shape) for key, tensor in state.items()}
        save_file(tensors, folder / f"{name}_features.safetensors")
    os.environ["SRGAN_BACKBONES"] = str(folder)
    return names


def compiled(plan: Plan, card: Card, _: Figures) -> Figures:
    """Return the seconds of one pass by eager PyTorch, by a CUDA graph and by torch.compile, in half precision."""
    placed = deployed(load_network(MODEL)[0].eval()).to(card.device).to(memory_format=torch.channels_last)
    lr = torch.rand(1, 3, plan.sizes[0], plan.sizes[0], device=card.device)
    half = torch.float16 if card.device.type == "cuda" else torch.bfloat16
    eagerly = partial(forward, placed, lr.contiguous(memory_format=torch.channels_last), half)
    ways: dict[str, Callable[[], Callable[[], object]]] = {
        "eager": lambda: eagerly,
        "CUDA graph": lambda: graph(eagerly),
        "torch.compile": lambda: partial(forward, cast(nn.Module, torch.compile(copy.deepcopy(placed))), lr, half),
    }

    def middle(make: Callable[[], Callable[[], object]]) -> Figures:
        return {"seconds": statistics.median(card.measured(make(), plan.repetitions)[0])}

    return {way: card.attempt(middle, make) for way, make in ways.items()}


def graph(run: Callable[[], Tensor]) -> Callable[[], None]:
    """Return what replays the work of `run` on the card; its input stays where it is."""
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        run()
    torch.cuda.current_stream().wait_stream(aside)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        run()
    return recorded.replay


def shown(rows: Figures) -> Iterator[str]:
    """Yield the lines of a table of `rows`, each a name with its figures."""
    if not all(isinstance(row, dict) for row in rows.values()):
        rows = {"": rows}
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    yield "| | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, row in rows.items():
        cells = [f"{cell:.4g}" if isinstance(cell := row.get(key, ""), float) else str(cell) for key in columns]
        yield f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
