"""How fast the OpenVINO engine is beside the same generator in eager PyTorch, and beside what the machine can do.

    python benchmarks/speed_engine.py                       # 320x320, all cores
    python benchmarks/speed_engine.py --size 128 --model weights/srgan-x4.onnx
    python benchmarks/speed_engine.py --threads 1 --cpu-time     # on a machine that has other work, too

All contenders take turns in one run, so that a busy moment of the machine meets each of them, and medians are
compared. The peak is the fastest of three large float32 matrix products, measured in the same turns: that of one
library alone may be no peak at all. "As published" has its last convolution after the last shuffle, as in Ledig et
al. 2017. The weights do not change the speed: without --model, a generator with random ones is exported.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import torch
from openvino import opset13

from srgan.engine import OpenVinoEngine, available_cores
from srgan.training.export import onnx_from
from srgan.training.models import DeployedGenerator, Generator
from srgan.weights import ModelMetadata

MATMUL_SIDE = 2048
PRODUCT = "matrix product"


def main() -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=320, help="side of the square LR picture in pixels")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender; the median counts")
    parser.add_argument("--threads", type=int, default=available_cores(), help="cores that each contender uses")
    parser.add_argument("--cpu-time", action="store_true", help="count the process's time, not the clock's")
    parser.add_argument("--model", type=Path, help="an .onnx file by `srgan export`")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds, flops = measure(options)
    report(options, seconds, flops)


def measure(options: argparse.Namespace) -> tuple[dict[str, list[float]], float]:
    """Return the seconds of every turn of every contender, and the operations of one forward pass."""
    torch.manual_seed(0)
    metadata = ModelMetadata("speed-x4", scale=4, halo_lr_px=40, architecture={})
    if options.model:
        metadata = OpenVinoEngine(options.model).metadata
    generator = Generator(**metadata.architecture).eval()
    content = options.model.read_bytes() if options.model else onnx_from(DeployedGenerator(generator), metadata)
    engine = OpenVinoEngine(content, threads=options.threads)
    channels_last = Generator(**metadata.architecture).eval().to(memory_format=torch.channels_last)

    lr = np.random.default_rng(0).random((1, 3, options.size, options.size), dtype=np.float32)
    nchw = torch.from_numpy(lr)
    nhwc = nchw.to(memory_format=torch.channels_last)
    matrix = np.random.default_rng(0).random((MATMUL_SIDE, MATMUL_SIDE), dtype=np.float32)
    tensor = torch.from_numpy(matrix)
    published = Generator(**metadata.architecture).eval()
    published.tail.forward = lambda x: torch.nn.functional.conv2d(  # type: ignore[method-assign]
        torch.nn.functional.pixel_shuffle(x, 2), published.tail.weight, published.tail.bias, padding=4
    )
    product = openvino_product(matrix, options.threads)
    contenders: dict[str, Callable[[], object]] = {
        "OpenVINO": lambda: engine.run(lr),
        "PyTorch, as published": lambda: published(nchw),
        "PyTorch, NCHW": lambda: generator(nchw),
        "PyTorch, channels_last": lambda: channels_last(nhwc),
        f"{PRODUCT}, OpenVINO": lambda: product.infer([matrix], share_inputs=True),
        f"{PRODUCT}, numpy": lambda: matrix @ matrix,
        f"{PRODUCT}, PyTorch": lambda: tensor @ tensor,
    }
    now = time.process_time if options.cpu_time else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with torch.inference_mode():
        for turn in range(options.rounds + 1):
            for name, run in contenders.items():
                started = now()
                run()
                if turn:  # the first one compiles and warms up
                    seconds[name].append(now() - started)
    return seconds, operations(generator, options.size)


def openvino_product(matrix: np.ndarray, threads: int) -> openvino.InferRequest:
    """Return OpenVINO's float32 product of a matrix of that size with `matrix`."""
    left = opset13.parameter(list(matrix.shape), np.float32)
    model = openvino.Model([opset13.matmul(left, opset13.constant(matrix), False, False)], [left], "product")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    return openvino.Core().compile_model(model, "CPU", settings).create_infer_request()


def operations(generator: Generator, size: int) -> float:
    """Floating-point operations of the convolutions in one pass: two for each multiplication and addition."""
    total = 0

    def count(convolution: torch.nn.Conv2d, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += 2 * output.numel() * convolution.weight[0].numel()

    hooks = [
        module.register_forward_hook(count)
        for module in generator.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    with torch.inference_mode():
        generator(torch.zeros(1, 3, 16, 16))
    for hook in hooks:
        hook.remove()
    return total * (size / 16) ** 2


def report(options: argparse.Namespace, seconds: dict[str, list[float]], flops: float) -> None:
    """Print the machine and one line for each contender."""
    median = {name: statistics.median(times) for name, times in seconds.items()}
    peak = max(2 * MATMUL_SIDE**3 / seconds for name, seconds in median.items() if name.startswith(PRODUCT))
    megapixels = (4 * options.size) ** 2 / 1e6
    print(
        f"{processor()}, {options.threads} threads, Python {platform.python_version()}, torch {torch.__version__}"
    )
    print(f"{options.size}x{options.size} LR, {flops / 1e9:.0f} GFLOP, medians of {options.rounds} turns\n")
    print(f"{'':26}{'seconds':>9}{'range':>16}{'s/MP':>8}{'GFLOP/s':>9}{'of peak':>9}{'OpenVINO is':>13}")
    for name, times in seconds.items():
        is_product = name.startswith(PRODUCT)
        rate = (2 * MATMUL_SIDE**3 if is_product else flops) / median[name]
        span = f"{min(times):.3f}-{max(times):.3f}"
        line = f"{name:26}{median[name]:9.3f}{span:>16}"
        if is_product:
            print(f"{line}{'':8}{rate / 1e9:9.0f}{rate / peak:9.0%}")
        else:
            ratio = median[name] / median["OpenVINO"]
            print(f"{line}{median[name] / megapixels:8.2f}{rate / 1e9:9.0f}{rate / peak:9.0%}{ratio:12.2f}x")


def processor() -> str:
    """Name of the processor, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
