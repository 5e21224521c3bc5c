"""The engine for graphics processors: the same generator, run by PyTorch. Needs the `cuda` extra.

Whoever may do without torch imports this module late: where it is not installed, the import fails.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from srgan.engines.probing import measured_part
from srgan.engines.protocol import Precision
from srgan.errors import EngineError, OutOfMemoryError, PrecisionError, UsageError, WeightsError
from srgan.machine import available_bytes
from srgan.networks.foreign import ForeignNetwork
from srgan.networks.layers import deployed
from srgan.networks.reading import load_network
from srgan.texts import first_line
from srgan.weights import ModelMetadata, name_of_file

# In which type each precision computes the convolutions.
_HALF_TYPES: dict[Precision, torch.dtype | None] = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}

# A result's squares of 4×4 have the mean of the pixel that they came from, but for a few hundredths. A tile that
# is further off than this on average has collapsed: black, or all one value.
_COLLAPSED = 0.1

# Tiles that are run together: as many as have this many pixels. More do not make a graphics processor faster.
_BATCH_LR_PX = 512 * 512


class TorchEngine:
    """A generator, run by PyTorch on `device`: "cpu", "cuda", "cuda:N" or "mps".

    `source`: a safetensors file of this program, a network with its metadata, or one of another architecture,
    called `name`, whose halo is measured unless `halo_lr_px` says it. `precision`: "fp32", "fp16" or "bf16"; in
    the latter two the convolutions are in half precision and the last sum, which decides grey levels, is in
    float32. `blend`: a second file of the same architecture, and its share of every weight, 0..1.
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
    ) -> None:
        if precision not in _HALF_TYPES:
            raise UsageError(f"PyTorch runs in {', '.join(_HALF_TYPES)}, not in {precision}")
        self.precision = precision
        self._half = _HALF_TYPES[precision]
        self._device = _checked_device(device)
        self._lock = threading.Lock()
        if isinstance(source, ForeignNetwork):
            self._layout = torch.contiguous_format  # not all of its layers may take another
            self._network: nn.Module = self._placed(source)
            self.metadata = self._measured(source, name, halo_lr_px)
        else:
            self._layout = torch.channels_last  # how tensor cores and processors want their convolutions
            network, self.metadata = _blended(source, blend)
            self._network = self._placed(deployed(network).eval())

    def _placed(self, network: nn.Module) -> nn.Module:
        placed: nn.Module = network.to(self._device).to(memory_format=self._layout)
        return placed

    def _measured(self, network: ForeignNetwork, name: str, halo_lr_px: int | None) -> ModelMetadata:
        """Return what a network of another architecture does not say of itself, or says in its own words."""

        def run(lr: np.ndarray) -> np.ndarray:
            with _torch_errors(f"a tile of shape {lr.shape}"):
                return self._forward(lr, None)

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
        sr = self._checked(lr, self._half)
        if self._half is None and not _is_finite(sr):
            raise EngineError("the model returned values that are not finite; the weights are damaged")
        if self._half is not None and not (_is_finite(sr) and _follows(sr, lr)):
            raise PrecisionError(f"{self.precision} is not precise enough")
        return sr

    def run_precisely(self, lr: np.ndarray) -> np.ndarray:
        """Do what `run` does, in float32 whatever the precision is else."""
        sr = self._checked(lr, None)
        if not _is_finite(sr):
            raise EngineError("the model returned values that are not finite; the weights are damaged")
        return sr

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
            sr = self._forward(lr, half)
        scale = self.metadata.scale
        expected = (lr.shape[0], 3, lr.shape[2] * scale, lr.shape[3] * scale)
        if sr.shape != expected:
            raise EngineError(f"the model returned shape {sr.shape} instead of {expected}; its metadata is wrong")
        return sr

    def _forward(self, lr: np.ndarray, half: torch.dtype | None) -> np.ndarray:
        on_device = torch.from_numpy(lr).to(self._device).contiguous(memory_format=self._layout)
        autocast = torch.autocast(self._device.type, dtype=half, enabled=half is not None)
        # cuDNN would compute float32 in TF32, with three digits.
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False), autocast:
            sr: np.ndarray = self._network(on_device).float().cpu().contiguous().numpy()
        return sr


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


def _is_finite(sr: np.ndarray) -> bool:
    return math.isfinite(sr.min()) and math.isfinite(sr.max())


def _follows(sr: np.ndarray, lr: np.ndarray) -> bool:
    """Return whether the squares of `sr` that came from one pixel have, nearly, the mean of that pixel."""
    n, channels, height, width = lr.shape
    means = sr.reshape((n, channels, height, sr.shape[2] // height, width, -1)).mean(axis=(3, 5))
    return bool(np.abs(means - lr).mean(axis=(1, 2, 3)).max() < _COLLAPSED)
