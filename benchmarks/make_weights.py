"""Make the bundled weights: train in segments, evaluate, write weights, manifest and the table of the model card.

    make weights MINUTES=240 DATA=photos BENCHMARKS=benchmarks
    python benchmarks/make_weights.py --data photos --benchmarks benchmarks --minutes 240 --segment 9

The minutes are those of training, shared by three stages: `srresnet-x4` and `srgan-x4` from the recipe
srgan_x4_best, then `srgan-x4-photo` from srgan_x4_photo, which starts from the former. The schedules
follow the clock, so they are complete whatever the speed. `--segment` ends this call after so many minutes with a
checkpoint; the same command goes on from there, on this machine or on another to which the run folder was copied.
Nothing in `--out` changes before every stage is finished and evaluated.

`--benchmarks` holds folders with `HR` and `LRx4`, which are never trained on.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from srgan.files import write_atomically
from srgan.training.checkpoint import checkpoints, load_generator
from srgan.weights import add_to_manifest

STOPPED = 143  # the exit code of a run that SIGTERM ended with a checkpoint
TABLE = re.compile(r"(<!-- figures -->\n).*?(<!-- end -->)", re.DOTALL)
MODELS = {
    "srresnet-x4": "SRResNet trained on the pixel loss alone: the closest pixels, soft texture",
    "srgan-x4": "SRGAN, trained from srresnet-x4 in the adversarial game: sharp, natural texture",
    "srgan-x4-photo": "SRGAN trained on blurred, noisy and JPEG pictures: for photos from the web",
}


@dataclass(frozen=True)
class Run:
    """One call of `srgan train`. `share`: of all minutes. `exports`: names of the files that are bundled. `start`:
    the weights that it starts from.
    """

    recipe: str
    share: float
    exports: tuple[str, ...]
    start: Path | None = None


def runs(folder: Path) -> dict[Path, Run]:
    """Return the runs in their order, by the folder of each."""
    best = folder / "best"
    return {
        best: Run("srgan_x4_best", 0.65, ("srresnet-x4", "srgan-x4")),
        folder / "photo": Run("srgan_x4_photo", 0.35, ("srgan-x4-photo",), best / "srresnet-x4.safetensors"),
    }


def train(run: Run, folder: Path, data: list[str], minutes: float, stop_at_s: float) -> bool:
    """Train until `run` is finished, or `stop_at_s` of the monotonic clock; return whether it is finished."""
    if all((folder / f"{name}.onnx").is_file() for name in run.exports):
        return True
    left_s = stop_at_s - time.monotonic()
    if left_s <= 0:
        return False
    command = [sys.executable, "-m", "srgan", "train", run.recipe, "--run", str(folder)]
    command += ["--minutes", f"{minutes * run.share:g}"]
    if run.start:
        command += ["--set", f"start={run.start}"]
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
    if code not in (0, STOPPED):
        raise SystemExit(f"{' '.join(command)}\nended with exit code {code}")
    return code == 0


def figures(weights: Path, benchmarks: Path) -> str:
    """Return the model card's table, measured by `srgan evaluate` on the files in `weights`."""
    columns: list[str] = []
    cells: dict[str, list[str]] = {}
    for benchmark in sorted(path.parent for path in benchmarks.glob("*/HR")):
        report = weights / f"{benchmark.name}.json"
        command = [sys.executable, "-m", "srgan", "evaluate", "--hr", str(benchmark / "HR")]
        command += ["--lr", str(benchmark / "LRx4"), "--json", str(report)]
        for name in MODELS:
            command += ["-n", str(weights / f"{name}.onnx")]
        subprocess.run(command, check=True)
        columns.append(benchmark.name)
        for row in json.loads(report.read_text())["means"]:
            name = Path(row["model"]).stem
            lpips = "–" if row["lpips"] is None else f"{row['lpips']:.4f}"
            cell = f"{row['psnr_y']:.2f} / {row['ssim_y']:.4f} / {lpips} / {row['lr_psnr']:.2f}"
            cells.setdefault(name, []).append(cell)
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| `{name}` | {' | '.join(row)} |" for name, row in cells.items()]
    return "\n".join(lines) + "\n"


def bundle(trained: dict[Path, Run], benchmarks: Path, out: Path) -> None:
    """Evaluate the finished runs and put weights, manifest and figures into `out`."""
    staged = {name: folder for folder, run in trained.items() for name in run.exports}
    first = next(iter(trained))
    for name, folder in staged.items():  # side by side, as they will lie in `out`
        for suffix in (".onnx", ".safetensors"):
            if folder != first:
                shutil.copy2(folder / f"{name}{suffix}", first)
    table = figures(first, benchmarks)
    out.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        for suffix in (".onnx", ".safetensors"):
            write_atomically(out / f"{name}{suffix}", (first / f"{name}{suffix}").read_bytes())
        _, metadata = load_generator(out / f"{name}.safetensors")
        add_to_manifest(out, name, MODELS[name], metadata, default=name == "srgan-x4")
    card = out / "README.md"
    text = (
        card.read_text(encoding="utf-8") if card.exists() else "# Model card\n\n<!-- figures -->\n<!-- end -->\n"
    )
    text = TABLE.sub(lambda found: found[1] + table + found[2], text)
    write_atomically(card, text.encode())
    print(table)


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
    bundle(trained, options.benchmarks, options.out)


if __name__ == "__main__":
    main()
