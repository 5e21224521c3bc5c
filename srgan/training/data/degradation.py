"""From HR to LR, on the device: the benchmarks' bicubic, or what cameras and the web do to a picture."""

from __future__ import annotations

import math
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from srgan.training.config import DegradationRecipe, PassRecipe
from srgan.training.device import fastest_convolutions, sent

# Context on each side that the bicubic kernel (support 2 LR pixels) needs to be exact.
_MARGIN_LR_PX = 2

# Context of the realistic degradation. Two sinc filters, the furthest reach there is, leave 0.01 grey levels of a
# patch's edges in its LR at ×4 with 24 (0.2 with 16), because what is missing is mirrored. One filter runs on HR
# and one on LR: more at ×8, no less below ×4.
_REALISTIC_MARGIN_HR_PX, _REALISTIC_MARGIN_LR_PX = 24, 6
_KERNEL_PX = 21  # Wang et al. 2021, section 3.1, the largest of theirs
_GROUP = 8  # pictures that share the sizes and kernels of their resizes, which one batch of tensors must

Range = tuple[float, float]


class Degradation(Protocol):
    """Makes LR from HR patches that carry `margin_hr_px` of context on every side.

    Call: (N,3,P+2m,P+2m) in [0,1] to lr (N,3,P/s,P/s), on 8-bit levels, and hr (N,3,P,P); P a multiple of the
    `scale` s.
    """

    margin_hr_px: int

    def __call__(self, hr_with_margin: Tensor) -> tuple[Tensor, Tensor]:
        """Return (lr, hr) of the same places."""


def make(recipe: DegradationRecipe, random: torch.Generator, scale: int = 4) -> Degradation:
    """Return the degradation by `scale` that `recipe` describes.

    All its randomness comes from `random`, a CPU generator: the same state gives the same LR on the same kind of
    device, and whoever stores the state can go on from there.
    """
    return Bicubic(scale) if recipe.kind == "bicubic" else Realistic(recipe, random, scale)


def held_out(recipe: DegradationRecipe, hr: Tensor, number: int, scale: int = 4) -> Tensor:
    """Return LR (1,3,H/s,W/s) of a whole picture (1,3,H,W), degraded alike whenever it is called with `number`.

    H and W are multiples of the `scale` s; the context that the degradation asks for is mirrored.
    """
    if recipe.kind == "bicubic":
        return bicubic(hr, scale)
    degrade = Realistic(recipe, torch.Generator().manual_seed(number), scale)
    lr, _ = degrade(F.pad(hr, 4 * (degrade.margin_hr_px,), mode="reflect"))
    return lr


class Bicubic:
    """The protocol of the benchmarks.

    Without the context the outer LR pixels of every patch would be made from a cut kernel, which no picture shows
    but at its own edges.
    """

    def __init__(self, scale: int = 4) -> None:
        self.scale, self.margin_hr_px = scale, _MARGIN_LR_PX * scale

    def __call__(self, hr_with_margin: Tensor) -> tuple[Tensor, Tensor]:
        """Return (lr, hr)."""
        margin, inner = self.margin_hr_px, _MARGIN_LR_PX
        lr = bicubic(hr_with_margin, self.scale)[..., inner:-inner, inner:-inner]
        return lr, hr_with_margin[..., margin:-margin, margin:-margin]


def bicubic(hr: Tensor, scale: int = 4) -> Tensor:
    """Reduce (N,3,H,W) in [0,1] `scale` times, rounded to 8-bit levels as an LR file would be.

    Antialiased bicubic with a = -0.5, the kernel of MATLAB's imresize and of Pillow. H and W must be multiples
    of `scale`. Source of the protocol: Ledig et al. 2017, section 3.2.
    """
    size = (hr.shape[-2] // scale, hr.shape[-1] // scale)
    lr = F.interpolate(hr, size=size, mode="bicubic", antialias=True, align_corners=False)
    return (lr * 255).round().clamp(0, 255) / 255


class Realistic:
    """Blur, resize, noise and JPEG, twice; Wang et al. 2021, "Real-ESRGAN", section 3 and figure 2."""

    def __init__(self, recipe: DegradationRecipe, random: torch.Generator, scale: int = 4) -> None:
        self._recipe, self._random, self.scale = recipe, random, scale
        self.margin_hr_px = max(_REALISTIC_MARGIN_HR_PX, _REALISTIC_MARGIN_LR_PX * scale)

    @torch.no_grad()
    def __call__(self, hr_with_margin: Tensor) -> tuple[Tensor, Tensor]:
        """Return (lr, hr), made in float32 wherever it is called: autocast would blur in eight bits."""
        with torch.autocast(hr_with_margin.device.type, enabled=False):
            return self._pairs(hr_with_margin)

    def _pairs(self, hr_with_margin: Tensor) -> tuple[Tensor, Tensor]:
        # Noise is drawn on the device, which is a hundred times faster on a GPU, from a seed drawn here.
        seed = int(torch.randint(2**62, (1,), generator=self._random))
        noise_random = torch.Generator(hr_with_margin.device).manual_seed(seed)
        groups = torch.split(hr_with_margin, _GROUP)
        with fastest_convolutions(searched=False):  # no size comes twice
            outer = torch.cat([self._degraded(group, noise_random) for group in groups])
        if self._recipe.clean + self._recipe.only_jpeg:
            outer = self._spared(outer, hr_with_margin)
        margin, inner = self.margin_hr_px, self.margin_hr_px // self.scale
        lr = (outer[..., inner:-inner, inner:-inner] * 255).round().clamp(0, 255) / 255
        return lr, hr_with_margin[..., margin:-margin, margin:-margin]

    def _degraded(self, x: Tensor, noise_random: torch.Generator) -> Tensor:
        """Degrade (N,3,H,W) to (N,3,H/s,W/s), margin and all."""
        recipe, random = self._recipe, self._random
        height, width = x.shape[-2] // self.scale, x.shape[-1] // self.scale
        x = self._pass(x, recipe.first, (x.shape[-2], x.shape[-1]), noise_random)
        if _happens(recipe.second_order, random):
            x = self._jpeg(x, self._qualities(x))
            x = self._pass(x, recipe.second, (height, width), noise_random)
        if _happens(0.5, random):  # both orders are met in the wild; section 3.4
            x = self._sinc(self._resized(x, (height, width)))
            return self._jpeg(x, self._qualities(x))
        x = self._jpeg(x, self._qualities(x))
        return self._sinc(self._resized(x, (height, width)))

    def _spared(self, lr: Tensor, hr: Tensor) -> Tensor:
        """Replace some pictures of `lr` by the plain reduction of `hr`, and some by the JPEG of that."""
        draw = sent(torch.rand(len(hr), generator=self._random), lr.device).view(-1, 1, 1, 1)
        plain = bicubic(hr, self.scale)
        until = self._recipe.clean + self._recipe.only_jpeg
        qualities = even_qualities(self._recipe.jpeg_quality, len(hr), self._random)
        lr = torch.where(draw < until, self._jpeg(plain, qualities), lr)
        return torch.where(draw < self._recipe.clean, plain, lr)

    def _pass(self, x: Tensor, recipe: PassRecipe, size: tuple[int, int], noise_random: torch.Generator) -> Tensor:
        random = self._random
        x = filtered(x, blur_kernels(recipe, len(x), random), _chosen(recipe.blur, len(x), random))
        factor = float(_uniform(recipe.resize, 1, random))
        x = self._resized(x, (max(1, round(size[0] * factor)), max(1, round(size[1] * factor))))
        return noised(x, recipe, random, noise_random)

    def _resized(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        mode = ("area", "bilinear", "bicubic")[int(torch.randint(3, (1,), generator=self._random))]
        aliased = _happens(self._recipe.aliased, self._random)
        if tuple(x.shape[-2:]) == size:
            return x
        if mode == "area":
            return F.interpolate(x, size=size, mode=mode)
        return F.interpolate(x, size=size, mode=mode, antialias=not aliased, align_corners=False).clamp(0, 1)

    def _sinc(self, x: Tensor) -> Tensor:
        cutoffs = _uniform(_SINC_CUTOFF, len(x), self._random)
        return filtered(x, sinc_kernels(cutoffs), _chosen(self._recipe.final_sinc, len(x), self._random))

    def _qualities(self, x: Tensor) -> Tensor:
        return _uniform(self._recipe.jpeg_quality, len(x), self._random).round()

    def _jpeg(self, x: Tensor, qualities: Tensor) -> Tensor:
        # Where the grid of blocks begins is chance: a patch is cut from anywhere in a file.
        top, left = torch.randint(16, (2,), generator=self._random).tolist()
        padded = F.pad(x, (left, 0, top, 0), mode="replicate")
        return jpeg(padded, qualities)[..., top:, left:]


# Cut-off of the sinc filter: below pi/3 nothing is left of a picture; Wang et al. 2021, appendix A.
_SINC_CUTOFF = (math.pi / 3, math.pi)
_GENERALISED_SHAPE = (0.5, 4.0)  # beta of the generalised Gaussian; likewise
_PLATEAU_SHAPE = (1.0, 2.0)  # beta of the plateau; likewise


def blur_kernels(recipe: PassRecipe, count: int, random: torch.Generator) -> Tensor:
    """Draw (count,21,21) kernels, each of sum 1: Gaussian, generalised Gaussian, plateau or sinc.

    Wang et al. 2021, section 3.1 and appendix A; the shapes are Liu et al. 2020, "Generalised Gaussian".
    """
    # Everything is drawn for every picture, used or not: the stream does not depend on what was chosen.
    sigma = _uniform(recipe.blur_sigma, 2 * count, random).view(2, count)
    sigma[1] = torch.where(_chosen(recipe.anisotropic, count, random), sigma[1], sigma[0])
    angle = _uniform((-math.pi, math.pi), count, random)
    kind = torch.rand(count, generator=random)
    generalised, plateau = _uniform(_GENERALISED_SHAPE, count, random), _uniform(_PLATEAU_SHAPE, count, random)
    sinc, cutoffs = _chosen(recipe.sinc, count, random), _uniform(_SINC_CUTOFF, count, random)

    is_generalised = kind < recipe.generalised
    is_plateau = ~is_generalised & (kind < recipe.generalised + recipe.plateau)
    kernels = gaussian_kernels(sigma[0], sigma[1], angle, torch.where(is_generalised, generalised, 1.0))
    kernels = _where(is_plateau, plateau_kernels(sigma[0], sigma[1], angle, plateau), kernels)
    return _where(sinc, sinc_kernels(cutoffs), kernels)


def gaussian_kernels(sigma_x: Tensor, sigma_y: Tensor, angle: Tensor, shape: Tensor) -> Tensor:
    """(N,) each to (N,21,21) of sum 1: exp(-q^shape / 2), q the squared distance in sigmas; 1 is Gaussian."""
    return _normalised(torch.exp(-0.5 * _squared_distance(sigma_x, sigma_y, angle) ** shape.view(-1, 1, 1)))


def plateau_kernels(sigma_x: Tensor, sigma_y: Tensor, angle: Tensor, shape: Tensor) -> Tensor:
    """(N,) each to (N,21,21) of sum 1: 1 / (1 + q^shape), q the squared distance in sigmas."""
    return _normalised(1 / (1 + _squared_distance(sigma_x, sigma_y, angle) ** shape.view(-1, 1, 1)))


def sinc_kernels(cutoffs: Tensor) -> Tensor:
    """(N,) cut-off frequencies in (0, pi] to (N,21,21) of sum 1: the circular low-pass filter, which rings.

    cutoff · J1(cutoff · r) / (2 pi r); Wang et al. 2021, eq. 6.
    """
    y, x = _grid()
    radius, cutoff = torch.hypot(x, y), cutoffs.view(-1, 1, 1)
    kernels = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius)
    centre = _KERNEL_PX // 2
    kernels[:, centre, centre] = cutoffs**2 / (4 * math.pi)  # the limit at r = 0
    return _normalised(kernels)


def filtered(x: Tensor, kernels: Tensor, chosen: Tensor) -> Tensor:
    """Filter those pictures of (N,3,H,W) that are `chosen`, (N,) bool, each with its own of (N,21,21)."""
    which = chosen.nonzero()[:, 0]
    if not len(which):
        return x
    rows = sent(which, x.device)
    some = x[rows]
    count, channels = some.shape[:2]
    # A mirrored edge needs as many pixels as the kernel reaches; smaller pictures than that are repeated.
    reach = _KERNEL_PX // 2
    mode = "reflect" if min(x.shape[-2:]) > reach else "replicate"
    padded = F.pad(some, (reach, reach, reach, reach), mode=mode).reshape(1, count * channels, *_grown(x, reach))
    weight = sent(kernels[which].to(x.dtype), x.device).repeat_interleave(channels, 0).unsqueeze(1)
    blurred = F.conv2d(padded, weight, groups=count * channels).view_as(some).clamp(0, 1)
    return x.index_copy(0, rows, blurred)


def noised(x: Tensor, recipe: PassRecipe, random: torch.Generator, noise_random: torch.Generator) -> Tensor:
    """Add Gaussian or Poisson noise, grey or coloured, to some of (N,3,H,W) in [0,1].

    `random` chooses, on the CPU; `noise_random`, on the device of `x`, draws the noise.
    """
    count, device = len(x), x.device
    noisy, gaussian, grey = (
        _chosen(chance, count, random) for chance in (recipe.noise, recipe.gaussian, recipe.grey_noise)
    )
    sigma, scale = (_uniform(bounds, count, random) for bounds in (recipe.gaussian_sigma, recipe.poisson_scale))
    for which, is_gaussian in ((noisy & gaussian, True), (noisy & ~gaussian, False)):
        rows = which.nonzero()[:, 0]
        if not len(rows):
            continue
        strengths = sent(torch.stack([grey, sigma / 255, scale / 255])[:, rows], device).view(3, -1, 1, 1, 1)
        is_grey, level, scaled = strengths[0] > 0, strengths[1], strengths[2]
        rows = sent(rows, device)
        some = x[rows]
        if is_gaussian:
            noise = level * torch.randn(some.shape, generator=noise_random, device=device)
        else:
            photons = 255 * torch.where(is_grey, _luma(some), some)
            noise = scaled * (torch.poisson(photons, generator=noise_random) - photons)
        noise = torch.where(is_grey, noise[:, :1], noise)  # one plane for all three colours
        x = x.index_copy(0, rows, (some + noise).clamp(0, 1))
    return x


def even_qualities(bounds: Range, count: int, random: torch.Generator) -> Tensor:
    """Draw (count,) whole qualities within `bounds`, on libjpeg's scale, their quantisation steps spread evenly.

    Evenly in logarithm: the step at 90 is to that at 95 as that at 60 is to that at 80. Drawn evenly themselves,
    three of four qualities within 40 to 95 would be below 82, where half of these lie: web pictures are mild.
    """
    high, low = (_percent(torch.tensor(quality)).clamp(min=1).log() for quality in bounds)  # 0 at quality 100
    percent = torch.exp(_uniform((float(low), float(high)), count, random))
    return torch.where(percent > 100, 5000 / percent, 100 - percent / 2).round()


def jpeg(x: Tensor, qualities: Tensor) -> Tensor:
    """Return (N,3,H,W) in [0,1] as a JPEG file of each one's quality would give it back, any H and W.

    `qualities`: (N,) in 1..100 on libjpeg's scale. Baseline JPEG (ITU T.81) with the standard's tables and chroma
    at half resolution (4:2:0), enlarged as libjpeg does; the entropy coding, which loses nothing, is left out.
    """
    height, width = x.shape[-2:]
    padded = F.pad(x, (0, -width % 16, 0, -height % 16), mode="replicate")
    to_ycc, to_rgb, luma_table, chroma_table, rounding = _jpeg_tables(x.device, x.dtype)
    percent = sent(_percent(qualities).floor().view(-1, 1, 1, 1, 1).to(x.dtype), x.device)
    ycc = torch.einsum("ij,njhw->nihw", to_ycc, padded * 255)  # centred: JPEG's level shift taken off all three
    ycc = torch.cat([ycc[:, :1] - 128, ycc[:, 1:]], 1).round()
    luma = _coded(ycc[:, :1], luma_table, percent)
    # Quarters are rounded down and up in turn, column by column: libjpeg's h2v2_downsample.
    bias = rounding.repeat(padded.shape[-1] // 4)
    chroma = _coded((F.avg_pool2d(ycc[:, 1:], 2) + bias).floor(), chroma_table, percent)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False).round()
    rgb = torch.einsum("ij,njhw->nihw", to_rgb, torch.cat([luma + 128, chroma], 1))
    return (rgb.round().clamp(0, 255) / 255)[..., :height, :width]


def _percent(qualities: Tensor) -> Tensor:
    """Quantisation steps in percent of the standard's tables; libjpeg's jpeg_quality_scaling."""
    return torch.where(qualities < 50, 5000 / qualities, 200 - 2 * qualities)


def _coded(planes: Tensor, table: Tensor, percent: Tensor) -> Tensor:
    """Quantise the cosine transform of each 8×8 block of (N,C,H,W) in -128..127, and go back."""
    count, channels, height, width = planes.shape
    steps = ((table * percent + 50) / 100).floor().clamp(1, 255)  # libjpeg's jpeg_quality_scaling
    blocks = planes.reshape(count, channels, height // 8, 8, width // 8, 8).permute(0, 1, 2, 4, 3, 5)
    transform = _cosines(planes.device, planes.dtype)
    frequencies = transform @ blocks @ transform.T
    steps = steps.unsqueeze(1)  # (N,1,1,1,8,8): one for every block of a picture
    blocks = transform.T @ ((frequencies / steps).round() * steps) @ transform
    blocks = blocks.permute(0, 1, 2, 4, 3, 5).reshape(count, channels, height, width)
    return blocks.round().clamp(-128, 127)


@cache
def _cosines(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The orthonormal 8×8 DCT-II matrix; ITU T.81, annex A.3.3."""
    k, n = torch.arange(8.0).view(-1, 1), torch.arange(8.0)
    matrix = torch.cos(math.pi * k * (2 * n + 1) / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.to(device, dtype)


@cache
def _jpeg_tables(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """RGB to YCbCr and back (JFIF 1.02), luma and chroma steps (ITU T.81, tables K.1 and K.2), rounding."""
    to_ycc = torch.tensor(
        [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]]
    )
    to_rgb = torch.tensor([[1.0, 0.0, 1.402], [1.0, -0.344136286, -0.714136286], [1.0, 1.772, 0.0]])
    luma = torch.tensor(
        [
            [16, 11, 10, 16, 24, 40, 51, 61],
            [12, 12, 14, 19, 26, 58, 60, 55],
            [14, 13, 16, 24, 40, 57, 69, 56],
            [14, 17, 22, 29, 51, 87, 80, 62],
            [18, 22, 37, 56, 68, 109, 103, 77],
            [24, 35, 55, 64, 81, 104, 113, 92],
            [49, 64, 78, 87, 103, 121, 120, 101],
            [72, 92, 95, 98, 112, 100, 103, 99],
        ]
    )
    chroma = torch.full((8, 8), 99)
    chroma[:4, :4] = torch.tensor([[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]])
    tables = (to_ycc, to_rgb, luma, chroma, torch.tensor([0.25, 0.5]))
    return tuple(table.to(device, dtype) for table in tables)


def _squared_distance(sigma_x: Tensor, sigma_y: Tensor, angle: Tensor) -> Tensor:
    """Squared distance from the centre, (N,21,21), in sigmas along axes turned by `angle`."""
    y, x = _grid()
    cosine, sine = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    along, across = (
        (cosine * x + sine * y) / sigma_x.view(-1, 1, 1),
        (cosine * y - sine * x) / sigma_y.view(-1, 1, 1),
    )
    return along**2 + across**2


def _grid() -> tuple[Tensor, ...]:
    axis = torch.arange(_KERNEL_PX, dtype=torch.float32) - _KERNEL_PX // 2
    return torch.meshgrid(axis, axis, indexing="ij")


def _normalised(kernels: Tensor) -> Tensor:
    return kernels / kernels.sum((1, 2), keepdim=True)


def _where(chosen: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, 1, 1), yes, no)


def _grown(x: Tensor, reach: int) -> tuple[int, int]:
    return x.shape[-2] + 2 * reach, x.shape[-1] + 2 * reach


def _luma(x: Tensor) -> Tensor:
    red, green, blue = x.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def _uniform(bounds: Range, count: int, random: torch.Generator) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(count, generator=random)


def _chosen(chance: float, count: int, random: torch.Generator) -> Tensor:
    return torch.rand(count, generator=random) < chance


def _happens(chance: float, random: torch.Generator) -> bool:
    return bool(_chosen(chance, 1, random))
