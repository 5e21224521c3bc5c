"""What a folder job costs beside its inference: wall time over the sum of inference alone.

    python benchmarks/speed_batch.py                        # 200 pictures of 120x90 with the bundled default model
    python benchmarks/speed_batch.py --pictures 50 --jpeg

Both take turns on parts of the folder, so that a busy moment of the machine meets each of them. Inference
alone: the same pictures, decoded beforehand, through `Upscaler.upscale` one after the other. The job decodes,
upscales, encodes and writes, with the disk's flushes. 1.00 means that all of that is hidden behind the inference.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
from measuring import timed, write_figures

from srgan import Upscaler
from srgan.folder.batch import DEFAULT_WORKERS, run
from srgan.folder.planning import Naming, plan
from srgan.pictures import Picture, decode, encode, resized

WIDTH, HEIGHT = 120, 90


def main() -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--parts", type=int, default=10, help="turns")
    parser.add_argument("--workers", type=int, default=DEFAULT_WORKERS, help="as -j of the command")
    parser.add_argument("--jpeg", action="store_true", help="JPEG in and out instead of PNG")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--sample", type=Path, default=Path(__file__).parent.parent / "examples" / "chelsea.png")
    options = parser.parse_args()
    upscaler = Upscaler()
    turns = []
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / f"{number}" for number in range(options.parts)]
        for part in parts:
            make(part, options)
        upscaler.upscale(decode(next(parts[0].iterdir())))  # the model is compiled for this size
        for part in parts:
            inference = inference_alone(part, upscaler)
            whole = folder_job(part, upscaler, options.workers)
            turns.append({"inference": inference, "job": whole})
            print(
                f"{part.name}: inference {inference:.2f} s, job {whole:.2f} s, ratio {whole / inference:.3f}",
                flush=True,
            )
    ratios = [turn["job"] / turn["inference"] for turn in turns]
    print(f"median ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    figures = {
        "pictures": options.pictures,
        "size": f"{WIDTH}x{HEIGHT}",
        "workers": options.workers,
        "turns": turns,
    }
    write_figures(options.json, figures)


def make(folder: Path, options: argparse.Namespace) -> None:
    """Write a part of the pictures: places in the sample, reduced, so that they compress as photographs do."""
    folder.mkdir()
    sample = decode(options.sample)
    rng = np.random.default_rng(len(str(folder)))
    for number in range(options.pictures // options.parts):
        top, left = (int(rng.integers(0, side - 100)) for side in (sample.height, sample.width))
        crop = Picture(np.ascontiguousarray(sample.pixels[top : top + 100, left : left + 100]))
        suffix = "jpg" if options.jpeg else "png"
        (folder / f"{number:04}.{suffix}").write_bytes(encode(resized(crop, HEIGHT, WIDTH), suffix))


def inference_alone(folder: Path, upscaler: Upscaler) -> float:
    """Return the seconds that the pictures take once they are in memory."""
    pictures = [decode(path) for path in sorted(folder.iterdir()) if path.is_file()]
    return timed(lambda: [upscaler.upscale(picture) for picture in pictures])


def folder_job(folder: Path, upscaler: Upscaler, workers: int) -> float:
    """Return the seconds of the whole job on a loaded model."""

    def job() -> None:
        for report in run(plan([folder], folder / "out", Naming(f"x{upscaler.scale}")), upscaler, workers=workers):
            assert report.status == "written", report.error

    return timed(job)


if __name__ == "__main__":
    main()
