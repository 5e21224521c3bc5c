"""Make the bundled weights: train in segments, evaluate, write weights, manifest and the table of the model card.

    make weights MINUTES=240 DATA=photos BENCHMARKS=benchmarks
    python tools/make_weights.py --data photos --benchmarks benchmarks --minutes 240 --segment 9

The minutes are those of training, shared by three stages: `srresnet-x4` and `srgan-x4` from the recipe
srgan_x4_best, then `srgan-x4-photo` from srgan_x4_photo, which goes on with the best checkpoint of that game. Of
each game the best checkpoint is taken, by LPIPS on held-out pictures, and blended with `srresnet-x4`. Schedules
follow the clock, so they are complete whatever the speed. `--segment` ends this call after so many minutes with a
checkpoint; the same command goes on from there, on this machine or on another to which the run folder was copied.
Nothing in `--out` changes before every stage is finished and evaluated.

`--benchmarks` holds folders with `HR` and `LRx4`, which are never trained on.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blend import blended
from degrade import degrade

from srgan.conversion.calibrating import lr_crops, write_int8_form
from srgan.evaluation.measures import MEASURES
from srgan.files import write_atomically
from srgan.networks.reading import load_generator
from srgan.training.checkpoint import checkpoint_path, checkpoints
from srgan.training.config import STAGES
from srgan.training.data.sources import parse_source
from srgan.weights import add_to_manifest

STOPPED = (143, -signal.SIGTERM)  # the exit codes of a run that was ended with a checkpoint, and before it began
TABLE = re.compile(r"(<!-- figures -->\n).*?(<!-- end -->)", re.DOTALL)
BLEND = 0.9  # of the game's weights in what is bundled: half a dB for a little LPIPS, docs/experiments.md
DEGRADED = {  # how LR is called and which quality of JPEG it has; None: blur, noise and JPEG
    **{f"LR as JPEG of quality {quality}": quality for quality in (40, 60, 75, 90)},
    "LR with blur, noise and JPEG, as recipes draw them by default": None,
}
PRETRAINED = "srresnet-x4"  # what the first run exports before its game
MODELS = {
    PRETRAINED: "Content loss only: the highest PSNR, soft texture.",
    "srgan-x4": "Trained in the adversarial game: sharp texture, the most natural look.",
    "srgan-x4-photo": "The same on blurred, noisy and JPEG pictures: for photographs from the web.",
}


@dataclass(frozen=True)
class Run:
    """One call of `srgan train`. `share`: of all minutes. `game`: what it exports in the end, by name. `after`:
    the folder of the run whose game it goes on with.
    """

    recipe: str
    share: float
    game: str
    after: Path | None = None


def runs(folder: Path) -> dict[Path, Run]:
    """Return the runs in their order, by the folder of each."""
    best = folder / "best"
    return {
        best: Run("srgan_x4_best", 0.65, "srgan-x4"),
        folder / "photo": Run("srgan_x4_photo", 0.35, "srgan-x4-photo", after=best),
    }


def best_of_game(folder: Path) -> Path:
    """Return the best checkpoint of a finished run's game, or the last if no picture was held out to judge."""
    best = checkpoint_path(folder, STAGES.index("adversarial"), "adversarial", None)
    return best if best.is_file() else checkpoints(folder)[-1]


def train(run: Run, folder: Path, data: list[str], minutes: float, stop_at_s: float) -> bool:
    """Train until `run` is finished, or `stop_at_s` of the monotonic clock; return whether it is finished."""
    if (folder / f"{run.game}.onnx").is_file():  # the last that is written
        return True
    left_s = stop_at_s - time.monotonic()
    if left_s <= 0:
        return False
    command = [sys.executable, "-m", "srgan", "train", run.recipe, "--run", str(folder)]
    command += ["--minutes", f"{minutes * run.share:g}"]
    if run.after:
        command += ["--set", f"start={best_of_game(run.after)}"]
    for source in data:
        command += ["--data", source]
    if checkpoints(folder):
        command.append("--resume")
    with subprocess.Popen(command) as process:
        try:
            code = process.wait(left_s)
        except subprocess.TimeoutExpired:
            process.terminate()  # it finishes the step and writes a checkpoint
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # the terminal has told it too
            raise
    if code not in (0, *STOPPED):
        raise SystemExit(f"{' '.join(command)}\nended with exit code {code}")
    return code == 0


def evaluated(weights: Path, hr: Path, lr: Path) -> dict[str, Any]:
    """Return what `srgan evaluate` says of the files in `weights`."""
    report = weights / f"{hr.parent.name}-{lr.name}.json"
    command = [sys.executable, "-m", "srgan", "evaluate", "--hr", str(hr), "--lr", str(lr), "--json", str(report)]
    for name in MODELS:
        command += ["-n", str(weights / f"{name}.onnx")]
    subprocess.run(command, check=True)
    content: dict[str, Any] = json.loads(report.read_text())
    return content


def figures(weights: Path, benchmarks: Path) -> str:
    """Return the model card's tables: the benchmarks' own LR, then LR as the web and cameras leave it."""
    found = sorted(path.parent for path in benchmarks.glob("*/HR"))
    clean = {path.name: evaluated(weights, path / "HR", path / "LRx4") for path in found}
    text = table(clean, ("psnr_y", "ssim_y", "lpips", "dists", "lr_psnr"))
    for words, quality in DEGRADED.items():
        degraded = {}
        for path in found:
            lr = weights / path.name / f"LRx4-{quality or 'realistic'}"
            degrade(path / ("LRx4" if quality else "HR"), lr, quality)
            degraded[path.name] = evaluated(weights, path / "HR", lr)
        text += f"\n{words} (PSNR / LPIPS / DISTS):\n\n" + table(degraded, ("psnr_y", "lpips", "dists"))
    return text


def table(reports: dict[str, dict[str, Any]], keys: Sequence[str]) -> str:
    """Return the means of `reports`, by benchmark, as Markdown: a row for each model, slashes between figures."""
    lines = [f"| | {' | '.join(reports)} |", "|---" * (len(reports) + 1) + "|"]
    for model in next(iter(reports.values()))["means"]:
        cells = [
            " / ".join(MEASURES[key].text(means[key]["value"]) if key in means else "–" for key in keys)
            for means in (report["means"][model] for report in reports.values())
        ]
        lines.append(f"| `{Path(model).stem}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def finish(folder: Path, run: Run, pretrained: Path, data: list[str], out: Path) -> None:
    """Write to `out` what `run` is bundled as: the best of its game, blended with the `pretrained` generator."""
    command = [sys.executable, "-m", "srgan", "export", str(best_of_game(folder)), "--name", run.game]
    subprocess.run([*command, "-o", str(folder / "best"), "--to", "safetensors"], check=True)
    second = folder / "best" / f"{run.game}.safetensors"
    blended(pretrained, second, BLEND, data=data, cache=folder / "cache", out=out)


def bundle(trained: dict[Path, Run], data: list[str], benchmarks: Path, out: Path) -> None:
    """Evaluate the finished runs and put weights, manifest and figures into `out`."""
    begun = next(iter(trained))
    first = begun.parent / "bundle"  # side by side, as they will lie in `out`
    first.mkdir(exist_ok=True)
    for suffix in (".safetensors", ".onnx"):
        write_atomically(first / f"{PRETRAINED}{suffix}", (begun / f"{PRETRAINED}{suffix}").read_bytes())
    for folder, run in trained.items():
        finish(folder, run, begun / f"{PRETRAINED}.safetensors", data, first)
    measured = figures(first, benchmarks)
    out.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        for suffix in (".onnx", ".safetensors"):
            write_atomically(out / f"{name}{suffix}", (first / f"{name}{suffix}").read_bytes())
        _, metadata = load_generator(out / f"{name}.safetensors")
        write_int8_form(out / f"{name}.onnx", lr_crops(Path(parse_source(data[0]).folder), metadata.scale))
        add_to_manifest(out, name, MODELS[name], metadata, default=name == "srgan-x4")
    card = out / "README.md"
    text = (
        card.read_text(encoding="utf-8") if card.exists() else "# Model card\n\n<!-- figures -->\n<!-- end -->\n"
    )
    text = TABLE.sub(lambda found: found[1] + measured + found[2], text)
    write_atomically(card, text.encode())
    print(measured)


def main() -> None:
    """Read the options, train what is not finished, and bundle when all is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="training pictures; repeat for more")
    parser.add_argument("--benchmarks", type=Path, required=True, help="folder of folders with HR and LRx4")
    parser.add_argument("--minutes", type=float, required=True, help="of training in all, over all calls")
    parser.add_argument("--segment", type=float, default=1e6, help="minutes after which this call ends")
    parser.add_argument("--run", type=Path, default=Path("runs/weights"), help="folder of checkpoints and logs")
    parser.add_argument("--out", type=Path, default=Path("weights"), help="folder of the bundle")
    options = parser.parse_args()
    stop_at_s = time.monotonic() + 60 * options.segment
    trained = runs(options.run)
    for folder, run in trained.items():
        if not train(run, folder, options.data, options.minutes, stop_at_s):
            print(f"{folder}: not finished yet; the same command goes on")
            return
    bundle(trained, options.data, options.benchmarks, options.out)


if __name__ == "__main__":
    main()
