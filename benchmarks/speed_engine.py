"""How fast the OpenVINO engine is beside the same generator in other runtimes, and beside what the machine can do.

    python benchmarks/speed_engine.py                       # 128x128 and 320x320, all cores
    python benchmarks/speed_engine.py --sizes 128 --rounds 3
    python benchmarks/speed_engine.py --threads 1 --cpu-time     # on a machine that has other work, too

Every contender computes the bundled generator in float32, but for this engine's own bfloat16 and int8, and before
anything is timed its result is compared with the engine's. "As published" has the last convolution after the
last shuffle, as in Ledig et al. 2017; all others have it before, as the bundled ONNX file. Each lives in a
process of its own, with at most half of the free memory, and they take turns, so that a busy moment of the
machine meets each of them. One that cannot be had is left out, with the reason. The peak is the fastest of three
large float32 matrix products, measured in the same turns: that of one library alone may be no peak at all.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plain_folder
import torch
from measuring import ROOT, in_turns, timed, write_figures

from srgan.engines.int8 import Int8Form
from srgan.engines.openvino import OpenVinoEngine
from srgan.engines.runtime import openvino, opset13
from srgan.machine import available_bytes, available_cores
from srgan.networks.generator import Generator
from srgan.networks.layers import deployed as for_inference
from srgan.texts import first_line
from srgan.weights import find_weights, int8_of

MODEL = ROOT / "weights" / "srgan-x4.onnx"
MATMUL_SIDE = 2048
PAUSE_S = 0.25  # before each turn: threads that have just worked may wait actively for more
LARGEST_DIFFERENCE = 1e-3  # of a range of 1: a quarter of a grey level
BFLOAT16, INT8 = "OpenVINO, this engine, bfloat16", "OpenVINO, this engine, int8"
LARGEST_LESS_PRECISE = {BFLOAT16: 0.03, INT8: 0.8}  # in a pixel of noise; in the mean 0.036 for int8

Run = Callable[[], np.ndarray]
Build = Callable[[np.ndarray, int], Run]


def main() -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 320], help="sides of the square LR pictures")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender; the median counts")
    parser.add_argument("--threads", type=int, default=available_cores(), help="cores that each contender uses")
    parser.add_argument("--cpu-time", action="store_true", help="count the process's time, not the clock's")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="contenders to leave out")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    found = [measure(size, options) for size in options.sizes]
    write_figures(options.json, {"threads": options.threads, "cpu_time": options.cpu_time, "sizes": found})


def measure(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of every turn of every contender at one size, or why there are none; print them."""
    contenders: dict[str, dict[str, Any]] = {}
    workers: dict[str, Worker] = {}
    most_bytes = available_bytes() // 2
    with contextlib.ExitStack() as stack:
        for name in [*CONTENDERS, *PRODUCTS]:
            if name in options.without:
                contenders[name] = {"missing": "left out by --without"}
                continue
            worker = Worker(name, most_bytes)
            stack.callback(worker.close)
            try:
                difference = worker.build(size, options.threads)
                workers[name] = worker
                contenders[name] = {"difference": difference}
            except BenchmarkError as error:
                contenders[name] = {"missing": str(error)}
        turns = in_turns(
            {name: partial(worker.turn, options.cpu_time) for name, worker in workers.items()}, options.rounds
        )
    for name, seconds in turns.items():
        contenders[name]["seconds"] = seconds
    found = {
        "size_lr_px": size,
        "operations": operations(size),
        "contenders": {name: contenders[name] for name in CONTENDERS},
        "product_operations": 2 * MATMUL_SIDE**3,
        "products": {name: turns[name] for name in PRODUCTS if name in turns},
    }
    report(found)
    return found


class BenchmarkError(Exception):
    """Why a contender cannot be measured."""


class Worker:
    """The process of one contender, with at most `most_bytes` of memory; between its turns it does nothing."""

    def __init__(self, name: str, most_bytes: int) -> None:
        self._name, self._most_bytes = name, most_bytes
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def build(self, size: int, threads: int) -> float:
        """Prepare the contender and return its largest difference from the engine; BenchmarkError if it cannot."""
        try:
            difference = self._pool.submit(_build, self._name, size, threads, self._most_bytes).result()
        except BrokenProcessPool:
            most = f"{self._most_bytes / 1e9:.0f} GB of memory, half of what is free"
            raise BenchmarkError(f"its process died; it had {most}") from None
        except Exception as error:  # whatever a runtime raises is its reason for being absent
            raise BenchmarkError(f"{type(error).__name__}: {first_line(error)}") from error
        if difference > LARGEST_LESS_PRECISE.get(self._name, LARGEST_DIFFERENCE):
            raise BenchmarkError(f"its result differs by {difference:.2g} of the range")
        return difference

    def turn(self, cpu_time: bool) -> float:
        """Return the seconds of one run."""
        time.sleep(PAUSE_S)
        return self._pool.submit(_turn, cpu_time).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


_run: Run  # of the contender whose process this is


def _build(name: str, size: int, threads: int, most_bytes: int) -> float:
    """Make this process that contender's: its first run, which compiles and warms up, and what it is off by."""
    global _run
    resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    torch.set_num_threads(threads)
    if name in PRODUCTS:
        matrix = np.random.default_rng(0).random((MATMUL_SIDE, MATMUL_SIDE), dtype=np.float32)
        _run = PRODUCTS[name](matrix, threads)
        _run()
        return 0.0
    lr = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
    right = OpenVinoEngine(MODEL, threads=threads).run(lr)
    _run = CONTENDERS[name](lr, threads)
    return float(np.abs(_run() - right).max())


def _turn(cpu_time: bool) -> float:
    return timed(_run, time.process_time if cpu_time else time.perf_counter)


def openvino_engine(lr: np.ndarray, threads: int, precision: str = "fp32") -> Run:
    """The engine of this package."""
    form = int8_of(find_weights(MODEL)) if precision == "int8" else None
    int8 = None if form is None else Int8Form.from_json(form, MODEL.name)
    engine = OpenVinoEngine(MODEL, threads=threads, precision=precision, int8=int8)
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
            example = torch.zeros(1, 3, 32, 32)  # the result takes any size
            pnnx.export(deployed(), "generator.pt", example, fp16=False)
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
        result: np.ndarray = np.array(extractor.extract("out0")[1])[None]
        return result

    return run


def eager(
    generator: Callable[[torch.Tensor], torch.Tensor], lr: np.ndarray, memory_format: torch.memory_format
) -> Run:
    """PyTorch as it is; the weights of `generator` lie in `memory_format`."""
    picture = torch.from_numpy(lr).to(memory_format=memory_format)

    @torch.inference_mode()
    def run() -> np.ndarray:
        result: np.ndarray = generator(picture).numpy()
        return result

    return run


def compiled(lr: np.ndarray, threads: int) -> Run:
    """torch.compile, its weights constants as its own advice for inference on processors is."""
    from torch._inductor import config

    config.freezing = True
    generator = deployed().to(memory_format=torch.channels_last)
    return eager(torch.compile(generator), lr, torch.channels_last)


def deployed() -> torch.nn.Module:
    """Return the bundled generator as it is exported."""
    published = plain_folder.load()
    generator = Generator()
    generator.load_state_dict(published.state_dict())
    return for_inference(generator.eval())


CONTENDERS: dict[str, Build] = {
    "OpenVINO, this engine": openvino_engine,
    BFLOAT16: partial(openvino_engine, precision="bf16"),
    INT8: partial(openvino_engine, precision="int8"),
    "ONNX Runtime": onnx_runtime,
    "ncnn": ncnn_net,
    "PyTorch eager, NCHW, as published": lambda lr, _: eager(plain_folder.load(), lr, torch.contiguous_format),
    "PyTorch eager, channels_last, as published": lambda lr, _: eager(
        plain_folder.load().to(memory_format=torch.channels_last), lr, torch.channels_last
    ),
    "PyTorch eager, NCHW": lambda lr, _: eager(deployed(), lr, torch.contiguous_format),
    "PyTorch eager, channels_last": lambda lr, _: eager(
        deployed().to(memory_format=torch.channels_last), lr, torch.channels_last
    ),
    "torch.compile, channels_last": compiled,
}


def openvino_product(matrix: np.ndarray, threads: int) -> Run:
    """OpenVINO's float32 product of a matrix with itself."""
    left = opset13.parameter(list(matrix.shape), np.float32)
    model = openvino.Model([opset13.matmul(left, opset13.constant(matrix), False, False)], [left], "product")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer([matrix], share_inputs=True)[0]


def torch_product(matrix: np.ndarray, threads: int) -> Run:
    """The same of PyTorch."""
    tensor = torch.from_numpy(matrix)
    return lambda: (tensor @ tensor).numpy()


PRODUCTS: dict[str, Build] = {
    "matrix product, OpenVINO": openvino_product,
    "matrix product, numpy": lambda matrix, _: lambda: matrix @ matrix,
    "matrix product, PyTorch": torch_product,
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
    print(f"{found['size_lr_px']}x{found['size_lr_px']} LR")
    for name, one in found["contenders"].items():
        if "missing" in one:
            print(f"{name:44} {one['missing']}")
            continue
        seconds = one["seconds"]
        ratio = statistics.median(theirs / own for theirs, own in zip(seconds, ours, strict=True))
        print(f"{name:44}{statistics.median(seconds):8.3f} s ({min(seconds):.3f}-{max(seconds):.3f}){ratio:7.2f}x")
    for name, seconds in found["products"].items():
        rate = found["product_operations"] / statistics.median(seconds) / 1e9
        print(f"{name:44}{statistics.median(seconds):8.3f} s, {rate:.0f} GFLOP/s", flush=True)


if __name__ == "__main__":
    main()
