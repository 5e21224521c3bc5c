"""The networks: shapes, reach, starting values, and the fixed bicubic skip against Pillow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from srgan.networks.generator import Generator
from srgan.networks.layers import Interpolation, SubPixelStep, Tail, TailForm, deployed, icnr_
from srgan.networks.reading import load_network
from srgan.training.discriminators import DISCRIMINATORS, Discriminator
from srgan.weights import bundled_folder


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def loud(generator: Generator) -> Generator:
    """Give every convolution strong positive-mean weights, so that nothing within the reach cancels out."""
    with torch.no_grad():
        for module in generator.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.uniform_(0.5, 1.0).div_(math.prod(module.weight.shape[1:]))
    return generator


@pytest.mark.parametrize(("count", "height", "width"), [(1, 1, 1), (2, 5, 7), (3, 24, 1), (1, 2, 33)])
def test_generator_enlarges_four_times(count: int, height: int, width: int) -> None:
    generator = Generator(blocks=1, features=4)
    assert generator(torch.rand(count, 3, height, width)).shape == (count, 3, 4 * height, 4 * width)


def test_default_generator_has_the_papers_size() -> None:
    # By hand: 9×9 convolutions 3->64 and 64->3; 33 of 3×3 with 64 channels; two of 64->256; a bias each; one
    # slope for each of the 1 + 16 + 2 PReLUs.
    ends = 2 * 3 * 64 * 81 + 64 + 3
    trunk = 33 * (64 * 64 * 9 + 64)
    steps = 2 * (64 * 256 * 9 + 256)
    assert parameters(Generator()) == ends + trunk + steps + 19
    assert 1.5e6 < parameters(Generator()) < 1.6e6


def test_output_is_linear_and_not_clamped() -> None:
    generator = Generator(blocks=1, features=4)
    with torch.no_grad():
        generator.tail.bias.fill_(3.0)  # type: ignore[union-attr]
    assert generator(torch.rand(1, 3, 6, 6)).min() > 1.5


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize(("blocks", "halo"), [(1, 10), (2, 12), (16, 40)])
def test_halo_by_hand(blocks: int, halo: int, scale: int) -> None:
    # At ×4: 4 (9×9) + 2 a block + 1 (trunk) + 1 (first ×2) + ½ (second ×2) + 1 (9×9 at ×4), rounded up.
    assert Generator(blocks=blocks, features=1, scale=scale).halo_lr_px == halo
    # ×2: 1 + 2; ×3: 1 + 4/3; ×4: 1 + ½ + 1; ×8: 1 + ½ + ¼ + ½.
    ends = {2: 3, 3: 7 / 3, 4: 2.5, 8: 2.25}[scale]
    assert halo == math.ceil(4 + 2 * blocks + 1 + ends)


@pytest.mark.parametrize(("blocks", "scale"), [(1, 2), (1, 3), (1, 4), (3, 4), (1, 8)])
def test_halo_is_true_and_tight(blocks: int, scale: int) -> None:
    generator = loud(Generator(blocks=blocks, features=4, scale=scale)).eval().double()
    halo = generator.halo_lr_px
    size = 2 * halo + 9
    lr = torch.rand(1, 3, size, size, dtype=torch.float64)
    poked = lr.clone()
    row, column = halo + 3, halo + 4
    poked[..., row, column] += 1.0
    with torch.inference_mode():
        changed = (generator(poked) - generator(lr)).abs().sum(dim=(0, 1)) > 0
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    # An LR pixel p is, at ×4, the HR pixels 4p..4p+3; reach counts from those. Farther than the halo: nothing; and
    # one LR pixel less would not do.
    for first, last, place in ((rows[0], rows[-1], row), (columns[0], columns[-1], column)):
        reach = max(scale * place - int(first), int(last) - (scale * place + scale - 1)) / scale
        assert halo - 1 < reach <= halo


def test_cutting_at_the_halo_changes_nothing_and_closer_does() -> None:
    generator = loud(Generator(blocks=2, features=4)).eval().double()
    halo = generator.halo_lr_px
    lr = torch.rand(1, 3, 3 * halo, 3 * halo, dtype=torch.float64)

    def core(context: int) -> torch.Tensor:
        tile = lr[..., halo - context : 2 * halo + context, halo - context : 2 * halo + context]
        return generator(tile)[..., 4 * context : 4 * (context + halo), 4 * context : 4 * (context + halo)]

    with torch.inference_mode():
        whole = generator(lr)[..., 4 * halo : 8 * halo, 4 * halo : 8 * halo]
        assert torch.allclose(core(halo), whole, rtol=0, atol=1e-12)
        assert not torch.allclose(core(halo - 1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_starts_near_bicubic(scale: int) -> None:
    torch.manual_seed(0)
    lr = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        difference = Generator(blocks=2, features=8, scale=scale)(lr) - Interpolation("bicubic", scale)(lr)
    assert 0 < difference.abs().mean() < 0.1


@pytest.mark.parametrize("branch", ["blocks.0.conv2", "blocks.15.conv2"])
def test_residual_branches_start_at_a_tenth(branch: str) -> None:
    torch.manual_seed(0)
    plain, quiet = Generator(normalisation="batch"), Generator()
    ratio = quiet.get_submodule(branch).weight.std() / plain.get_submodule(branch).weight.std()  # type: ignore[operator]
    assert ratio.item() == pytest.approx(0.1, rel=0.05)


def pillow_bicubic(picture: np.ndarray) -> np.ndarray:
    """Pillow's own ×4 bicubic of a float (H,W) picture."""
    height, width = picture.shape
    image = Image.fromarray(picture.astype(np.float32))
    return np.asarray(image.resize((4 * width, 4 * height), Image.Resampling.BICUBIC))


def test_bicubic_equals_pillow_in_the_interior(random: torch.Generator) -> None:
    lr = torch.rand(1, 3, 9, 13, generator=random)
    ours = Interpolation("bicubic", 4)(lr)[0].numpy()
    theirs = np.stack([pillow_bicubic(channel) for channel in lr[0].numpy()])
    inner = (slice(None), slice(8, -8), slice(8, -8))  # Pillow renormalises at the edges, we replicate
    np.testing.assert_allclose(ours[inner], theirs[inner], rtol=0, atol=1e-6)


def test_bicubic_replicates_edges(random: torch.Generator) -> None:
    lr = torch.rand(1, 3, 5, 6, generator=random)
    padded = np.pad(lr[0].numpy(), ((0, 0), (8, 8), (8, 8)), mode="edge")
    theirs = np.stack([pillow_bicubic(channel) for channel in padded])[:, 32:-32, 32:-32]
    np.testing.assert_allclose(Interpolation("bicubic", 4)(lr)[0].numpy(), theirs, rtol=0, atol=1e-6)


def test_bicubic_keeps_constants_and_channels_apart() -> None:
    lr = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, 4, 3)
    torch.testing.assert_close(
        Interpolation("bicubic", 4)(lr), lr[..., :1, :1].expand(1, 3, 16, 12), rtol=0, atol=1e-6
    )


def test_bicubic_kernel_is_not_learned_nor_saved() -> None:
    generator = Generator(blocks=1, features=4)
    assert not list(generator.skip.parameters())
    assert not [name for name in generator.state_dict() if name.startswith("skip")]


def test_icnr_sub_pixels_start_equal(random: torch.Generator) -> None:
    step = SubPixelStep(features=6)
    sr = step(torch.rand(2, 6, 5, 7, generator=random))
    blocks = sr.unfold(2, 2, 2).unfold(3, 2, 2)  # (N,C,H,W,2,2)
    first = blocks[..., :1, :1].expand_as(blocks)
    assert torch.equal(blocks, first)
    assert sr.std() > 0


def test_icnr_fills_groups_of_outputs_with_one_kernel_each() -> None:
    torch.manual_seed(1)
    weight = icnr_(torch.empty(12, 5, 3, 3), factor=2).view(3, 4, 5, 3, 3)
    assert torch.equal(weight, weight[:, :1].expand_as(weight))
    assert len({float(kernels[0, 0, 0, 0]) for kernels in weight}) == 3


def test_activation_commutes_with_the_shuffle(random: torch.Generator) -> None:
    step = SubPixelStep(features=4)
    with torch.no_grad():
        step.conv.weight.normal_(generator=random)
        step.act.weight.fill_(0.37)
    x = torch.randn(1, 4, 6, 5, generator=random)
    after = F.prelu(F.pixel_shuffle(step.conv(x), 2), torch.tensor([0.37]))
    assert torch.equal(step(x), after)
    assert (after < 0).any()


def test_batch_normalisation_variant() -> None:
    generator = Generator(blocks=2, features=4, normalisation="batch")
    norms = [name for name, module in generator.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms == ["blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "trunk.1"]
    assert generator.blocks[0].conv1.bias is None  # type: ignore[union-attr]
    lr = torch.rand(2, 3, 6, 6)
    assert not torch.equal(generator.train()(lr)[:1], generator.train()(lr[:1]))  # the batch's statistics
    generator.eval()
    torch.testing.assert_close(generator(lr)[:1], generator(lr[:1]))


@pytest.mark.parametrize("network", [Generator, Discriminator])
def test_unknown_normalisation_is_refused(network: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="unknown normalisation 'layer'"):
        network(normalisation="layer")


@pytest.mark.parametrize("normalisation", ["batch", "none", "spectral"])
@pytest.mark.parametrize("patch", [16, 48])
def test_discriminator_gives_one_logit_a_picture(patch: int, normalisation: str) -> None:
    discriminator = Discriminator(patch, features=2, normalisation=normalisation)
    assert discriminator(torch.rand(3, 3, patch, patch)).shape == (3, 1)


def test_discriminator_is_the_papers() -> None:
    convolutions = [m for m in Discriminator().modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert [c.stride[0] for c in convolutions] == [1, 2, 1, 2, 1, 2, 1, 2]
    assert [c.bias is None for c in convolutions] == [False] + 7 * [True]
    dense = [m for m in Discriminator().modules() if isinstance(m, nn.Linear)]
    assert [(d.in_features, d.out_features) for d in dense] == [(512 * 6 * 6, 1024), (1024, 1)]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in Discriminator().modules()) == 7


def test_discriminator_may_say_anything() -> None:
    """Logits, not probabilities: no sigmoid stands at the end."""
    discriminator = Discriminator(16, features=2, normalisation="none")
    with torch.no_grad():
        discriminator.dense[-1].bias.fill_(50.0)  # type: ignore[operator]
    assert (discriminator(torch.rand(2, 3, 16, 16)) > 10).all()


@pytest.mark.parametrize("patch", [8, 17, 90])
def test_discriminator_refuses_patches_that_its_strides_do_not_divide(patch: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 16.*not {patch}"):
        Discriminator(patch)


def test_spectral_normalisation_bounds_every_layer() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(16, features=2, normalisation="spectral").train()
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.mul_(9.0)
        for _ in range(60):  # power iteration settles
            discriminator(torch.rand(1, 3, 16, 16))
        layers = [m for m in discriminator.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        norms = [float(torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2)) for layer in layers]
    assert len(norms) == 10
    assert norms == pytest.approx([1.0] * 10, abs=0.05)


@pytest.mark.parametrize("kind", sorted(DISCRIMINATORS))
def test_every_discriminator_passes_a_gradient_to_the_picture(kind: str) -> None:
    torch.manual_seed(0)
    picture = torch.rand(2, 3, 32, 32, requires_grad=True)
    DISCRIMINATORS[kind](32, 2, "none")(picture).sum().backward()
    assert picture.grad is not None
    assert picture.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("normalisation", "scale"), [("none", 4), ("batch", 4), ("none", 2), ("none", 3), ("none", 8)]
)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (24, 20)])
def test_the_deployed_arrangement_is_the_same_function(
    normalisation: str, scale: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    generator = Generator(blocks=1, features=6, normalisation=normalisation, scale=scale)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(std=0.2)  # every tap and bias of the moved convolution must count
    generator.eval()
    lr = torch.rand(2, 3, *size)
    with torch.no_grad():
        expected, moved = generator(lr), deployed(generator)(lr)
    assert expected.abs().max() > 1
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


FORMS = [TailForm(moved, multiple) for moved in (True, False) for multiple in (1, 8)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (12, 9)])
def test_the_tail_is_the_plain_convolution_after_the_shuffle(
    size: tuple[int, int], factor: int, form: TailForm
) -> None:
    """Value and gradients in every form, against the network as Ledig et al. draw it."""
    tail = Tail(5, factor).double()
    tail.form = form
    before_shuffle = torch.randn(2, 5 * factor**2, *size, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(F.pixel_shuffle(before_shuffle, factor), tail.weight, tail.bias, padding=4)
    ours = tail(before_shuffle)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tail.constant()(before_shuffle), expected, rtol=1e-12, atol=1e-12)
    assert sorted(tail.state_dict()) == ["bias", "weight"]

    towards = torch.randn_like(expected)
    inputs = [before_shuffle, *tail.parameters()]
    pairs = zip(*(torch.autograd.grad((out * towards).sum(), inputs) for out in (ours, expected)), strict=True)
    for gradient, plain in pairs:
        torch.testing.assert_close(gradient, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_convolution_of_a_constant_tail_has_outputs_by_the_multiple(form: TailForm) -> None:
    tail = Tail(6)
    tail.form = form
    weights = [tuple(parameter.shape) for parameter in tail.constant().parameters()]
    outputs = {(True, 1): 12, (True, 8): 16, (False, 1): 3, (False, 8): 8}[form.moved, form.multiple]
    assert weights == [(outputs, 24, 5, 5) if form.moved else (outputs, 6, 9, 9), (outputs,)]


def test_the_bundled_generator_is_the_same_in_every_form() -> None:
    network, _ = load_network(bundled_folder() / "srgan-x4.safetensors")
    lr = torch.rand(1, 3, 24, 20, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = deployed(network)(lr)
        for form in FORMS:
            torch.testing.assert_close(deployed(network, form)(lr), expected, rtol=0, atol=1e-5)
