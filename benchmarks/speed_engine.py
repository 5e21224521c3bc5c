"""How fast the OpenVINO engine is beside the same generator in other runtimes, and beside what the machine can do.

    python benchmarks/speed_engine.py                       # 320x320, all cores
    python benchmarks/speed_engine.py --size 128 --rounds 3
    python benchmarks/speed_engine.py --threads 1 --cpu-time     # on a machine that has other work, too

Every contender computes the bundled generator in float32, and before anything is timed its result is compared with
the engine's. "As published" has the last convolution after the last shuffle, as in Ledig et al. 2017; all others
have it before, as the bundled ONNX file. All take turns in one process, so that a busy moment of the machine meets
each of them, and medians are compared. One that cannot be had is left out, with the reason. The peak is the
fastest of three large float32 matrix products, measured in the same turns: that of one library alone may be no
peak at all.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import plain_folder
import torch
from measuring import ROOT, first_line, in_turns, timed, write_figures
from openvino import opset13

from srgan.engine import OpenVinoEngine, available_cores
from srgan.training.models import DeployedGenerator, Generator

MODEL = ROOT / "weights" / "srgan-x4.onnx"
MATMUL_SIDE = 2048
PAUSE_S = 0.25
LARGEST_DIFFERENCE = 1e-3  # of a range of 1: a quarter of a grey level

Run = Callable[[], np.ndarray]
Build = Callable[[np.ndarray, int], Run]


def main() -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=320, help="side of the square LR picture in pixels")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender; the median counts")
    parser.add_argument("--threads", type=int, default=available_cores(), help="cores that each contender uses")
    parser.add_argument("--cpu-time", action="store_true", help="count the process's time, not the clock's")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="contenders to leave out")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    found = measure(options)
    report(found)
    write_figures(options.json, found)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of every turn of every contender, or why there are none."""
    torch.set_num_threads(options.threads)
    lr = np.random.default_rng(0).random((1, 3, options.size, options.size), dtype=np.float32)
    right = openvino_engine(lr, options.threads)()
    contenders: dict[str, dict[str, Any]] = {}
    runs: dict[str, Run] = {}
    for name, build in CONTENDERS.items():
        if name in options.without:
            contenders[name] = {"missing": "left out by --without"}
            continue
        try:
            run = build(lr, options.threads)
            difference = float(np.abs(run() - right).max())  # and it is compiled and warm now
        except Exception as error:  # noqa: BLE001  # whatever a runtime raises is its reason for being absent
            contenders[name] = {"missing": f"{type(error).__name__}: {first_line(error)}"}
            continue
        if difference > LARGEST_DIFFERENCE:
            contenders[name] = {"missing": f"its result differs by {difference:.2g} of the range"}
            continue
        contenders[name] = {"difference": difference}
        runs[name] = run
    clock = time.process_time if options.cpu_time else time.perf_counter
    matrix_products = products(options.threads)
    with torch.inference_mode():
        for product in matrix_products.values():
            product()
        turns = in_turns(
            {name: lambda run=run: timed(run, clock) for name, run in (runs | matrix_products).items()},
            options.rounds,
            PAUSE_S,
        )
    for name in runs:
        contenders[name]["seconds"] = turns[name]
    return {
        "size_lr_px": options.size,
        "threads": options.threads,
        "clock": "CPU" if options.cpu_time else "wall",
        "operations": operations(options.size),
        "contenders": contenders,
        "product_operations": 2 * MATMUL_SIDE**3,
        "products": {name: turns[name] for name in matrix_products},
    }


def openvino_engine(lr: np.ndarray, threads: int) -> Run:
    """The engine of this package."""
    engine = OpenVinoEngine(MODEL, threads=threads)
    return lambda: engine.run(lr)


def onnx_runtime(lr: np.ndarray, threads: int) -> Run:
    """ONNX Runtime on the same file."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(MODEL, settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: lr})[0]


def ncnn_net(lr: np.ndarray, threads: int) -> Run:
    """ncnn, converted from TorchScript by its own tool."""
    import ncnn
    import pnnx

    with tempfile.TemporaryDirectory() as folder:
        before = Path.cwd()
        os.chdir(folder)  # the tool leaves files where it is
        try:
            picture = torch.from_numpy(lr)
            pnnx.export(deployed(), "generator.pt", picture, fp16=False)
            net = ncnn.Net()
            net.opt.num_threads = threads
            for half in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
                setattr(net.opt, half, False)
            if net.load_param("generator.ncnn.param") or net.load_model("generator.ncnn.bin"):
                raise RuntimeError("pnnx could not convert the generator")
        finally:
            os.chdir(before)

    def run() -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(lr[0]))
        return np.array(extractor.extract("out0")[1])[None]

    return run


def eager(generator: torch.nn.Module, lr: np.ndarray, memory_format: torch.memory_format) -> Run:
    """PyTorch as it is."""
    generator = generator.to(memory_format=memory_format)
    picture = torch.from_numpy(lr).to(memory_format=memory_format)

    @torch.inference_mode()
    def run() -> np.ndarray:
        return generator(picture).numpy()

    return run


def compiled(lr: np.ndarray, threads: int) -> Run:
    """torch.compile, its weights constants as its own advice for inference on processors is."""
    from torch._inductor import config

    config.freezing = True
    generator = deployed().to(memory_format=torch.channels_last)
    return eager(torch.compile(generator), lr, torch.channels_last)


def deployed() -> Generator:
    """Return the bundled generator as it is exported."""
    published = plain_folder.load()
    generator = Generator()
    generator.load_state_dict(published.state_dict())
    return DeployedGenerator(generator.eval()).eval()


CONTENDERS: dict[str, Build] = {
    "OpenVINO, this engine": openvino_engine,
    "ONNX Runtime": onnx_runtime,
    "ncnn": ncnn_net,
    "PyTorch eager, NCHW, as published": lambda lr, _: eager(plain_folder.load(), lr, torch.contiguous_format),
    "PyTorch eager, channels_last, as published": lambda lr, _: eager(
        plain_folder.load(), lr, torch.channels_last
    ),
    "PyTorch eager, NCHW": lambda lr, _: eager(deployed(), lr, torch.contiguous_format),
    "PyTorch eager, channels_last": lambda lr, _: eager(deployed(), lr, torch.channels_last),
    "torch.compile, channels_last": compiled,
}


def products(threads: int) -> dict[str, Callable[[], object]]:
    """Return the matrix products that stand for what the machine can do."""
    matrix = np.random.default_rng(0).random((MATMUL_SIDE, MATMUL_SIDE), dtype=np.float32)
    tensor = torch.from_numpy(matrix)
    left = opset13.parameter(list(matrix.shape), np.float32)
    model = openvino.Model([opset13.matmul(left, opset13.constant(matrix), False, False)], [left], "product")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    return {
        "matrix product, OpenVINO": lambda: request.infer([matrix], share_inputs=True),
        "matrix product, numpy": lambda: matrix @ matrix,
        "matrix product, PyTorch": lambda: tensor @ tensor,
    }


def operations(size: int) -> float:
    """Floating-point operations of the convolutions in one pass: two for each multiplication and addition."""
    generator = Generator()
    total = 0

    def count(convolution: torch.nn.Conv2d, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += 2 * output.numel() * convolution.weight[0].numel()

    for module in generator.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        generator(torch.zeros(1, 3, 16, 16))
    return total * (size / 16) ** 2


def report(found: dict[str, Any]) -> None:
    """Print one line for each contender."""
    ours = found["contenders"]["OpenVINO, this engine"]["seconds"]
    print(f"{found['size_lr_px']}x{found['size_lr_px']} LR, {found['threads']} threads, {found['clock']} seconds")
    for name, one in found["contenders"].items():
        if "missing" in one:
            print(f"{name:44} {one['missing']}")
            continue
        seconds = one["seconds"]
        ratio = statistics.median(theirs / own for theirs, own in zip(seconds, ours, strict=True))
        print(f"{name:44}{statistics.median(seconds):8.3f} s ({min(seconds):.3f}-{max(seconds):.3f}){ratio:7.2f}x")
    for name, seconds in found["products"].items():
        rate = found["product_operations"] / statistics.median(seconds) / 1e9
        print(f"{name:44}{statistics.median(seconds):8.3f} s, {rate:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
