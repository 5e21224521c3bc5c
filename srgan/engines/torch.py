"""The engine for graphics processors: the same generator, run by PyTorch. Needs the `cuda` extra.

Whoever may do without torch imports this module late: where it is not installed, the import fails.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srgan.engines.faithful import REACH_LR_PX, kernels
from srgan.engines.probing import measured_part
from srgan.engines.protocol import Precision
from srgan.errors import EngineError, OutOfMemoryError, PrecisionError, UsageError, WeightsError
from srgan.machine import available_bytes
from srgan.networks import tails
from srgan.networks.foreign import ForeignNetwork
from srgan.networks.layers import TailForm, deployed
from srgan.networks.reading import load_network
from srgan.texts import first_line
from srgan.weights import ModelMetadata, name_of_file

# In which type each precision computes the convolutions.
_HALF_TYPES: dict[Precision, torch.dtype | None] = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}

# What a level may be.
_LEVELS = (np.dtype(np.uint8), np.dtype(np.uint16))

# A result's squares of 4×4 have the mean of the pixel that they came from, but for a few hundredths. A tile that
# is further off than this on average has collapsed: black, or all one value.
_COLLAPSED = 0.1

# Tiles that are run together: as many as have this many pixels. More do not make a graphics processor faster.
_BATCH_LR_PX = 512 * 512

# Sides of the tile by which time and memory are measured, the next where the memory is too small for the one
# before: as large as tiles are, for what a convolution needs beside its result may depend on the size. Networks of
# other architectures may take seconds for the largest.
_PROBED_SIDES_LR_PX = (512, 256, 128)
_PROBED_SIDES_OF_OTHERS_LR_PX = (128,)

# By device, precision and network, what was measured in this process: the tail's form and bytes per LR pixel.
_learnt: dict[tuple[str, ...], tuple[TailForm, float | None]] = {}


class TorchEngine:
    """A generator, run by PyTorch on `device`: "cpu", "cuda", "cuda:N" or "mps".

    `source`: a safetensors file of this program, a network with its metadata, or one of another architecture,
    called `name`, whose halo is measured unless `halo_lr_px` says it. `precision`: "fp32", "fp16" or "bf16"; in
    the latter two the convolutions are in half precision, with sums in float32, and what decides grey levels, the
    bicubic skip and the last sum, is in float32. `blend`: a second file of the same architecture, and its share
    of every weight, 0..1. `faithful`: whether results are corrected until they reduce to what they were made from
    (`faithful.py`), in float32; None for yes where the model says it was trained on clean
    pictures.
    On CUDA the network is run once for each form of its last convolution, and the form that does best is taken;
    `bytes_per_lr_px` is then what a tile was seen to take of the device's memory, else None.
    Any number of threads may call `run`; they take turns, so that memory is needed once. Raises UsageError if
    there is no such device or precision, WeightsError if a file is damaged or the two differ.
    """

    def __init__(
        self,
        source: Path | tuple[nn.Module, ModelMetadata] | ForeignNetwork,
        *,
        device: str,
        precision: Precision = "fp32",
        blend: tuple[Path, float] | None = None,
        name: str = "the model",
        halo_lr_px: int | None = None,
        faithful: bool | None = False,
    ) -> None:
        if precision not in _HALF_TYPES:
            raise UsageError(f"PyTorch runs in {', '.join(_HALF_TYPES)}, not in {precision}")
        self.precision = precision
        self.weights_sha256 = ""  # who knows the file says it
        self.bytes_per_lr_px: float | None = None
        self._half = _HALF_TYPES[precision]
        self._device = _checked_device(device)
        self._lock = threading.Lock()
        self._copies = _Copies(self._device)
        self._network: nn.Module
        self._correct: _BackProjection | None = None
        if isinstance(source, ForeignNetwork):
            self._layout = torch.contiguous_format  # not all of its layers may take another
            self._network = self._placed(source)
            self.metadata = self._measured(source, name, halo_lr_px)
            self._make_faithful(faithful)
            self._learn_costs(lambda _: self._network, (TailForm(),), _PROBED_SIDES_OF_OTHERS_LR_PX)
        else:
            self._layout = torch.channels_last  # how tensor cores and processors want their convolutions
            network, self.metadata = _blended(source, blend)
            network.eval()
            self._make_faithful(faithful)
            self._learn_costs(
                lambda form: self._placed(deployed(network, form)),
                tails.forms(network, half=self._half is not None),
                _PROBED_SIDES_LR_PX,
            )

    def _make_faithful(self, faithful: bool | None) -> None:
        self.faithful = self.metadata.of_clean_pictures if faithful is None else faithful
        if self.faithful:
            self._correct = _BackProjection(self.metadata.scale, self._device)
            self.metadata = replace(self.metadata, halo_lr_px=self.metadata.halo_lr_px + REACH_LR_PX)

    def _placed(self, network: nn.Module) -> nn.Module:
        placed: nn.Module = network.to(self._device).to(memory_format=self._layout)
        return placed

    def _learn_costs(
        self, arranged: Callable[[TailForm], nn.Module], forms: tuple[TailForm, ...], sides: tuple[int, ...]
    ) -> None:
        """Take what `arranged` returns for the best of `forms`, and measure what memory it needs."""
        if not tails.is_measurable(self._device):
            self._network = arranged(TailForm())
            return
        weights = sum(parameter.numel() for parameter in arranged(forms[0]).parameters())
        key = (
            *(str(self._device), self.precision, str(self.metadata.architecture), str(weights)),
            str(self._correct is not None),
        )
        if key not in _learnt:
            _learnt[key] = self._probed(arranged, forms, sides)
        form, self.bytes_per_lr_px = _learnt[key]
        self._network = arranged(form)

    def _probed(
        self, arranged: Callable[[TailForm], nn.Module], forms: tuple[TailForm, ...], sides: tuple[int, ...]
    ) -> tuple[TailForm, float | None]:
        for side in sides:
            levels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
            on_device = torch.from_numpy(levels).to(self._device)
            costs = {}
            for form in forms:
                self._network = arranged(form)
                cost = tails.cost(partial(self._levels, on_device), self._device)
                if cost is not None:
                    costs[form] = cost
            if costs:
                best = tails.cheapest(costs)
                return best, costs[best].peak_bytes / side**2
        return forms[0], None

    def _measured(self, network: ForeignNetwork, name: str, halo_lr_px: int | None) -> ModelMetadata:
        """Return what a network of another architecture does not say of itself, or says in its own words."""

        def run(lr: np.ndarray) -> np.ndarray:
            with _torch_errors(f"a tile of shape {lr.shape}"):
                return self._forward(self._moved(torch.from_numpy(lr)), None).cpu().numpy()

        return measured_part(
            run,
            name_of_file(Path(name)),
            name,
            halo_lr_px,
            scale=network.scale,
            multiple=network.multiple_lr_px,
            kind=network.kind,
        )

    @property
    def batch_lr_px(self) -> int:
        """How many LR pixels are best run at once, in several tiles if they are small; 0 for tile by tile."""
        return 0 if self._device.type == "cpu" else _BATCH_LR_PX

    def run(self, lr: np.ndarray) -> np.ndarray:
        """Return SR (N,3,sH,sW) float32, not clamped, of `lr` (N,3,H,W) float32 in [0,1].

        Raises OutOfMemoryError if the device's memory is too small, PrecisionError if half precision will not do,
        EngineError if torch fails, or in float32 returns values that are not finite.
        """
        return self._checked(lr, self._half)

    def run_precisely(self, lr: np.ndarray) -> np.ndarray:
        """Do what `run` does, in float32 whatever the precision is else."""
        return self._checked(lr, None)

    def submit_levels(self, levels: np.ndarray) -> Callable[[], np.ndarray]:
        """Begin with `levels`, (N,H,W,3) or grey (N,H,W), uint8 or uint16; what it returns waits for the end.

        It gives (N,sH,sW,3) or (N,sH,sW) of the same type, clamped and rounded as everywhere; grey is the mean of
        the three channels. On CUDA what is submitted next is copied and computed meanwhile. Both raise what `run`
        raises.
        """
        if levels.ndim not in (3, 4) or levels.shape[3:] not in ((), (3,)) or levels.dtype not in _LEVELS:
            raise EngineError(f"expected (N,H,W,3) or (N,H,W) uint8 or uint16, got {levels.shape} {levels.dtype}")
        piece = f"a tile of shape {levels.shape}"
        with self._lock, _torch_errors(piece):
            finished = self._copies.overlapped(self._levels, torch.from_numpy(np.ascontiguousarray(levels)))

        def result() -> np.ndarray:
            with _torch_errors(piece):
                sr, distance = finished()
            self._judge(float(distance), self._half)
            upscaled: np.ndarray = sr.numpy()
            return upscaled

        return result

    def free_bytes(self) -> int:
        """Return how much of the device's memory may be taken."""
        if self._device.type == "cuda":
            kept = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
            return int(torch.cuda.mem_get_info(self._device)[0] + kept)
        if self._device.type == "mps":
            return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
        return available_bytes()

    def forget(self) -> None:
        """Give memory that torch keeps for later back to the device."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        elif self._device.type == "mps":
            torch.mps.empty_cache()

    def _checked(self, lr: np.ndarray, half: torch.dtype | None) -> np.ndarray:
        if lr.ndim != 4 or lr.shape[1] != 3 or lr.dtype != np.float32 or 0 in lr.shape:
            raise EngineError(f"expected (N,3,H,W) float32, got {lr.shape} {lr.dtype}")
        with self._lock, _torch_errors(f"a tile of shape {lr.shape}"):
            on_device, distance = self._sr(torch.from_numpy(lr), half)
            sr: np.ndarray = on_device.cpu().contiguous().numpy()
        self._judge(float(distance), half)
        return sr

    def _judge(self, distance: float, half: torch.dtype | None) -> None:
        """Raise EngineError or PrecisionError if a result is no number or, in half precision, far from its LR."""
        if half is None and not math.isfinite(distance):
            raise EngineError("the model returned values that are not finite; the weights are damaged")
        if half is not None and not distance < _COLLAPSED:  # nor is what is no number
            raise PrecisionError(f"{self.precision} is not precise enough")

    @torch.inference_mode()
    def _sr(self, lr: Tensor, half: torch.dtype | None) -> tuple[Tensor, Tensor]:
        """Return SR in float32 and how far the means of its squares are from `lr`, both on the device."""
        on_device = self._moved(lr)
        sr = self._forward(on_device, half)
        scale = self.metadata.scale
        expected = (lr.shape[0], 3, lr.shape[2] * scale, lr.shape[3] * scale)
        if sr.shape != expected:
            raise EngineError(
                f"the model returned shape {tuple(sr.shape)} instead of {expected}; its metadata is wrong"
            )
        # Not finite where any value is not; the largest of a batch, for each of its tiles must follow.
        distances = (F.avg_pool2d(sr, scale) - on_device).abs().mean(dim=(1, 2, 3))
        if self._correct is not None:  # behind what is judged: it would hide that a network has collapsed
            with torch.backends.cudnn.flags(allow_tf32=False):
                sr = self._correct(sr, on_device)
        return sr, distances.amax()

    def _moved(self, lr: Tensor) -> Tensor:
        return lr.to(self._device).contiguous(memory_format=self._layout)

    @torch.inference_mode()
    def _forward(self, on_device: Tensor, half: torch.dtype | None) -> Tensor:
        autocast = torch.autocast(self._device.type, dtype=half, enabled=half is not None)
        # cuDNN would compute float32 in TF32, with three digits.
        with torch.backends.cudnn.flags(allow_tf32=False), autocast:
            sr: Tensor = self._network(on_device).float()
        return sr

    @torch.inference_mode()
    def _levels(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return SR of `levels`, on the device, as `submit_levels` does, and what `_sr` says of it."""
        peak = torch.iinfo(levels.dtype).max
        values = levels.float() / peak
        grey = values.ndim == 3
        lr = values[:, None].expand(-1, 3, -1, -1) if grey else values.permute(0, 3, 1, 2)
        sr, distance = self._sr(lr, self._half)
        channels = (sr[:, 0] + sr[:, 1] + sr[:, 2]) / 3 if grey else sr.permute(0, 2, 3, 1)
        return (channels.clamp(0, 1) * peak).round().to(levels.dtype).contiguous(), distance


class _BackProjection(nn.Module):
    """What `faithful.made_faithful` adds to a graph: SR (N,3,sH,sW), corrected by LR (N,3,H,W)."""

    def __init__(self, scale: int, device: torch.device) -> None:
        super().__init__()
        self._scale = scale
        kernel = kernels(scale)
        self._reduce, self._inside, self._enlarge, *self._corrections = (
            [torch.from_numpy(weight).to(device) for weight in weights]
            for weights in (kernel.reduce, kernel.inside, kernel.enlarge, *kernel.corrections)
        )

    def forward(self, sr: Tensor, lr: Tensor) -> Tensor:
        """Return `sr`, not clamped, such that it reduces to `lr`."""
        inside = _convolved(torch.ones_like(lr), self._inside)
        corrected = F.pixel_unshuffle(sr, self._scale)
        for correction in self._corrections:
            corrected = corrected.clamp(0, 1)
            reduced = _convolved(corrected, self._reduce).div(inside).clamp(0, 1)
            corrected = corrected + _convolved(_convolved(lr - reduced, correction), self._enlarge)
        return F.pixel_shuffle(corrected, self._scale)


def _convolved(tensor: Tensor, weights: list[Tensor]) -> Tensor:
    for weight in weights:
        tensor = F.conv2d(tensor, weight, padding="same")
    return tensor


class _Copies:
    """What goes to a device and back while the device computes; elsewhere than on CUDA, one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            self._there, self._back = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def overlapped(
        self, compute: Callable[[Tensor], tuple[Tensor, ...]], tensor: Tensor
    ) -> Callable[[], list[Tensor]]:
        """Begin with `compute(tensor)` on the device; what is returned waits for the results, then brought here.

        All computing is in one stream, so that what it needs in between is needed once; pinned memory is torch's
        to keep and to give again.
        """
        if self._device.type != "cuda":
            results = [result.cpu() for result in compute(tensor.to(self._device))]
            return lambda: results
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._there):
            arrived = tensor.pin_memory().to(self._device, non_blocking=True)
        computing.wait_stream(self._there)
        arrived.record_stream(computing)
        made = compute(arrived)
        self._back.wait_stream(computing)
        with torch.cuda.stream(self._back):
            here = [torch.empty(part.shape, dtype=part.dtype, pin_memory=True) for part in made]
            for part, place in zip(made, here, strict=True):
                place.copy_(part, non_blocking=True)
                part.record_stream(self._back)
            done = self._back.record_event()

        def finished() -> list[Tensor]:
            done.synchronize()
            return here

        return finished


def accelerator() -> str | None:
    """Return "cuda" or "mps" if torch can use one, else None."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


def _checked_device(name: str) -> torch.device:
    kind, _, number = name.partition(":")
    if kind == "cuda" and (not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count()):
        raise UsageError(f"there is no device {name} that PyTorch could use; choose --device cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("there is no device mps that PyTorch could use; choose --device cpu")
    return torch.device(name)


def _blended(
    source: Path | tuple[nn.Module, ModelMetadata], blend: tuple[Path, float] | None
) -> tuple[nn.Module, ModelMetadata]:
    """Return the network of `source`, moved towards that of `blend` by its share, and its metadata."""
    network, metadata = load_network(source) if isinstance(source, Path) else source
    if blend is not None:
        other, share = load_network(blend[0])[0].state_dict(), blend[1]
        state = network.state_dict()
        if {name: tensor.shape for name, tensor in state.items()} != {name: t.shape for name, t in other.items()}:
            raise WeightsError(f"{metadata.name} and {blend[0].name} are of two architectures")
        network.load_state_dict({name: tensor.lerp(other[name], share) for name, tensor in state.items()})
    return network, metadata


@contextlib.contextmanager
def _torch_errors(piece: str) -> Iterator[None]:
    """Turn what torch raises while it works on `piece` into errors of this package."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(f"not enough memory for {piece}") from error
    except RuntimeError as error:
        if any(sign in str(error) for sign in ("out of memory", "can't allocate memory", "alloc_failed")):
            raise OutOfMemoryError(f"not enough memory for {piece}") from error
        raise EngineError(f"PyTorch failed on {piece}: {first_line(error)}") from error
