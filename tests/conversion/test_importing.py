"""Generators by other programs: the same function here, and nothing that harms."""

from __future__ import annotations

import io
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.foreign import FEATURES, FOREIGN, Foreign, State, leftthomas, modified
from torch import Tensor

from srgan.conversion.importing import read_model, read_tensors
from srgan.conversion.loading import load_engine
from srgan.engines.openvino import OpenVinoEngine
from srgan.errors import SrganError, UsageError, WeightsError
from srgan.networks.layers import deployed
from srgan.networks.layouts import LAYOUTS, network_from
from srgan.networks.reading import load_network
from srgan.weights import ModelMetadata, name_of_file


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def saved(path: Path, content: Any, **settings: Any) -> Path:
    torch.save(content, path, **settings)
    return path


@pytest.mark.parametrize("program", FOREIGN)
def test_the_function_is_that_of_the_other_program(program: str) -> None:
    foreign = FOREIGN[program]()
    network = network_from(read_plain(foreign.state), program)
    assert network is not None
    facts = network.architecture
    assert (facts.scale, facts.blocks, facts.features) == (foreign.scale, foreign.blocks, FEATURES)
    for shape in ((1, 3, 24, 19), (2, 3, 1, 1), (1, 3, 2, 7)):
        lr = noise(*shape)
        with torch.inference_mode():
            expected = foreign.forward(foreign.state, lr)
            for ours in (network, deployed(network)):
                torch.testing.assert_close(ours(lr), expected, rtol=1e-4, atol=2e-5)
    assert expected.std() > 0.01  # there is something to see


@pytest.mark.parametrize("program", [name for name in FOREIGN if "16" not in name])
def test_the_halo_is_how_far_a_result_sees(program: str) -> None:
    """No pixel beyond it has a gradient, and one at its very edge has."""
    network = network_from(read_plain(FOREIGN[program]().state), program)
    assert network is not None
    halo, scale = network.architecture.halo_lr_px, network.architecture.scale
    side = 2 * halo + 5
    seen = 0
    for phase in (0, scale - 1):
        lr = noise(1, 3, side, side).double().requires_grad_()
        middle = (side // 2) * scale + phase
        network.double()(lr)[0, 0, middle, middle].backward()
        assert lr.grad is not None
        rows, columns = torch.nonzero(lr.grad[0].abs().sum(dim=0), as_tuple=True)
        seen = max([seen, *(int((axis - side // 2).abs().max()) for axis in (rows, columns))])
    assert seen == halo


def read_plain(state: State) -> State:
    """`state` as `read_tensors` gives it: without the counters."""
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def test_every_layout_is_tried() -> None:
    tried = {network_from(read_plain(make().state), "x").architecture.layout for make in FOREIGN.values()}  # type: ignore[union-attr]
    assert tried == {layout.name for layout in LAYOUTS}


WRAPPED: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "DataParallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "both": lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
    "BasicSR": lambda state: {"params": {name: value + 1 for name, value in state.items()}, "params_ema": state},
    "Lornatang": lambda state: {
        "epoch": 3,
        "best_psnr": 30.5,
        "state_dict": {name: value + 1 for name, value in state.items()},
        "ema_state_dict": {"n_averaged": torch.tensor(5)}
        | {f"module._orig_mod.{name}": value for name, value in state.items()},
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1e-4}]},
    },
    "mmagic": lambda state: {
        "meta": {"epoch": 1, "CLASSES": None},
        "state_dict": {
            "step_counter": torch.tensor(7),
            "discriminator.conv.weight": torch.zeros(3),
            "perceptual_loss.vgg.mean": torch.zeros(3),
            **{f"generator.{name}": value for name, value in state.items()},
        },
    },
    "Lightning": lambda state: {
        "state_dict": {f"net_g.{name}": value for name, value in state.items()} | {"net_d.w": torch.zeros(1)}
    },
    "sgrvinod": lambda state: {f"net.{name}": value for name, value in state.items()},
    "model": lambda state: {"model": state, "epoch": 100},
    "half precision": lambda state: {
        name: value.half() if value.is_floating_point() else value for name, value in state.items()
    },
    "parameters": lambda state: {
        name: torch.nn.Parameter(value, requires_grad=value.is_floating_point()) for name, value in state.items()
    },
}


@pytest.mark.parametrize("container", WRAPPED)
def test_the_generator_is_found_in_what_programs_save(tmp_path: Path, container: str) -> None:
    state = leftthomas(blocks=2).state
    read = read_tensors(saved(tmp_path / "g.pth", WRAPPED[container](state)))
    assert read.keys() == read_plain(state).keys()
    for name, tensor in read.items():
        torch.testing.assert_close(tensor.float(), state[name], rtol=0, atol=2e-3)
    assert network_from(read, "g.pth") is not None


def test_old_files_and_safetensors_are_read(tmp_path: Path) -> None:
    state = leftthomas(blocks=2).state
    save_file(state, tmp_path / "new.safetensors")
    old = saved(tmp_path / "old.pth", state, _use_new_zipfile_serialization=False)
    for path in (tmp_path / "new.safetensors", old):
        assert all(torch.equal(tensor, state[name]) for name, tensor in read_tensors(path).items())


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("netG_epoch_4_100.pth", "netG_epoch_4_100"),
        ("SRGAN_x4-ImageNet.pth.tar", "SRGAN_x4-ImageNet"),
        ("a b/ü ?.ONNX", "ü"),
        ("..pth", "model"),
    ],
)
def test_a_model_is_called_like_its_file(file: str, name: str) -> None:
    assert name_of_file(Path(file)) == name


def srgan(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "srgan", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def expected_levels(foreign: Foreign, levels: np.ndarray) -> np.ndarray:
    lr = torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        sr = foreign.forward(foreign.state, lr)[0].clamp(0, 1) * 255
    return sr.round().byte().permute(1, 2, 0).numpy()


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Foreign]:
    """A file by another program, imported by the command line, and what that program does."""
    folder = tmp_path_factory.mktemp("imported")
    foreign = leftthomas(blocks=2)
    file = saved(folder / "netG_epoch_4_100.pth", foreign.state)
    done = srgan("import", file, "-o", folder / "out", "--name", "mine")
    assert done.returncode == 0, done.stderr
    assert "leftthomas/SRGAN, x4, 12 pixels" in done.stdout
    assert done.stdout.splitlines()[1:] == [
        str(folder / "out" / f"mine.{kind}") for kind in ("safetensors", "onnx")
    ]
    return folder, foreign


def test_import_then_upscale(imported: tuple[Path, Foreign]) -> None:
    folder, foreign = imported
    levels = np.random.default_rng(0).integers(0, 256, (31, 45, 3), dtype=np.uint8)
    Image.fromarray(levels).save(folder / "a.png")
    done = srgan(
        "upscale", folder / "a.png", "-n", folder / "out" / "mine.onnx", "-t", "9", "-o", folder / "b.png"
    )
    assert done.returncode == 0, done.stderr
    result = np.asarray(Image.open(folder / "b.png"))
    expected = expected_levels(foreign, levels)
    assert result.shape == expected.shape
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert (result == expected).mean() > 0.999


def test_both_files_hold_the_network_and_where_it_came_from(imported: tuple[Path, Foreign]) -> None:
    folder, foreign = imported
    metadata = OpenVinoEngine(folder / "out" / "mine.onnx").metadata
    network, said = load_network(folder / "out" / "mine.safetensors")
    assert said == metadata
    assert (metadata.name, metadata.scale, metadata.halo_lr_px) == ("mine", 4, 12)
    assert metadata.recipe["imported_from"] == "netG_epoch_4_100.pth"
    lr = noise(1, 3, 9, 14)
    with torch.inference_mode():
        torch.testing.assert_close(network(lr), foreign.forward(foreign.state, lr), rtol=1e-4, atol=2e-5)


def test_strips_of_an_imported_network_equal_the_whole(imported: tuple[Path, Foreign]) -> None:
    engine = OpenVinoEngine(imported[0] / "out" / "mine.onnx")
    lr = noise(1, 3, 29, 17).numpy()
    assert engine.strip_facts is not None
    strips = [sr.copy() for _, sr in engine.strips(29, 17, 4, lambda start, stop: lr[:, :, start:stop])]
    np.testing.assert_allclose(np.concatenate(strips, axis=2), engine.run(lr), rtol=0, atol=2e-5)


@pytest.mark.parametrize("program", ["leftthomas until 2019", "aitorzip"])
def test_every_kind_of_activation_is_exported_and_cut_into_strips(tmp_path: Path, program: str) -> None:
    foreign = FOREIGN[program]()
    engine = OpenVinoEngine(read_model(saved(tmp_path / "g.pth", foreign.state), "g")["onnx"])
    lr = noise(1, 3, 29, 17)
    with torch.inference_mode():
        expected = foreign.forward(foreign.state, lr).clamp(0, 1).numpy()
    np.testing.assert_allclose(engine.run(lr.numpy()).clip(0, 1), expected, rtol=0, atol=1e-4)
    assert engine.strip_facts is not None
    strips = [sr.copy() for _, sr in engine.strips(29, 17, 4, lambda start, stop: lr.numpy()[:, :, start:stop])]
    np.testing.assert_allclose(np.concatenate(strips, axis=2), engine.run(lr.numpy()), rtol=0, atol=2e-5)


def test_weights_alone_can_be_a_model(tmp_path: Path) -> None:
    theirs = modified("BasicSR", (3,))
    engine, _ = load_engine(saved(tmp_path / "theirs.pth", {"params": theirs.state}), precision="fp32")
    lr = noise(1, 3, 12, 11)
    np.testing.assert_allclose(engine.run(lr.numpy()), theirs.forward(theirs.state, lr), rtol=1e-4, atol=2e-5)


def test_our_own_weights_alone_are_the_same_model(imported: tuple[Path, Foreign]) -> None:
    files = [imported[0] / "out" / f"mine.{kind}" for kind in ("safetensors", "onnx")]
    (ours, one), (known, other) = map(load_engine, files)
    assert one == other
    lr = noise(1, 3, 12, 11).numpy()
    np.testing.assert_array_equal(ours.run(lr), known.run(lr))


class Canary:
    """Pickled, it creates a file when it is unpickled by a loader that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def hostile(folder: Path) -> dict[str, tuple[str, bytes]]:
    """What is said of each file, and its content."""
    state = read_plain(leftthomas(blocks=2).state)
    weight = state["block2.conv1.weight"]

    def pickled(content: Any, **settings: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(content, buffer, **settings)
        return buffer.getvalue()

    def with_weight(tensor: Any) -> bytes:
        return pickled(state | {"block2.conv1.weight": tensor})

    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(300_000_000))
    whole = pickled(state)
    return {
        "stride bomb": ("claims more numbers", with_weight(torch.zeros(1).expand(10**5, 10**5))),
        "sparse": ("not a plain tensor", with_weight(weight.to_sparse())),
        "nan": ("not finite", with_weight(torch.full_like(weight, float("nan")))),
        "int8": ("torch.int8", with_weight(weight.to(torch.int8))),
        "complex": ("torch.complex64", with_weight(weight.to(torch.complex64))),
        "without values": ("not a plain tensor", with_weight(weight.to("meta"))),
        "no tensor": ("not a plain tensor", with_weight("text")),
        "thousands of keys": (
            "not a generator of",
            pickled({f"layer{index}.weight": torch.zeros(1) for index in range(5000)}),
        ),
        "tens of thousands of keys": ("more than any generator", pickled({str(i): weight for i in range(20_001)})),
        "claims to be huge": (
            "its shapes are not",
            pickled(
                {
                    "conv_first.weight": torch.zeros(512, 3, 9, 9),
                    **{f"body.{index}.conv1.weight": torch.zeros(1) for index in range(64)},
                    "upconv1.weight": torch.zeros(4, 1, 3, 3),
                    "conv_last.weight": torch.zeros(3, 1, 9, 9),
                }
            ),
        ),
        "another shape": ("its shapes are not", with_weight(weight[:, :2])),
        "a missing layer": ("its shapes are not", pickled(dict(list(state.items())[1:]))),
        "a slope for each channel": (
            "its shapes are not",
            pickled(state | {"block2.prelu.weight": torch.ones(6)}),
        ),
        "code": ("never run", pickle.dumps(Canary(folder / "canary"))),
        "code in a torch file": ("never run", pickled({"state_dict": state, "x": Canary(folder / "canary")})),
        "code in an old torch file": (
            "never run",
            pickled(Canary(folder / "canary"), _use_new_zipfile_serialization=False),
        ),
        "truncated": ("or is damaged", whole[: len(whole) // 2]),
        "empty": ("or is damaged", b""),
        "deflate bomb": ("or is damaged", bomb.getvalue()),
        "no weights": ("no weights", pickled({"epoch": 3, "state_dict": {}})),
        "a list": ("no weights", pickled([weight])),
        "numbers for names": ("without names", pickled({1: weight})),
        "a terminal's escapes": ("not a plain tensor", pickled({"\x1b[31m" * 500: 1, "x": weight})),
    }


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from srgan.errors import SrganError
from srgan.conversion.importing import read_model
sys.modules["spandrel"] = None
base = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (base + 2**31, base + 2**31))
for path in sys.argv[1:]:
    began = resource.getrusage(resource.RUSAGE_SELF)
    try:
        read_model(Path(path), "x")
        print("read")
    except SrganError as error:
        print(str(error).replace(path, "FILE", 1).replace("\\n", "NEWLINE"))
"""


def test_hostile_files_are_refused_in_a_line(tmp_path: Path) -> None:
    """With 2 GiB more than the program itself takes; one process, so that torch is imported once."""
    files = hostile(tmp_path)
    paths = []
    for number, (_, content) in enumerate(files.values()):
        paths.append(tmp_path / f"{number}.pth")
        paths[-1].write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, paths)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for (kind, (said, _)), line in zip(files.items(), lines, strict=True):
        assert line.startswith("FILE"), kind
        assert said in line, kind
        assert "NEWLINE" not in line, kind
        assert "weights_only" not in line, kind
        assert len(line) < 500, kind
    assert not (tmp_path / "canary").exists()
    assert {path.suffix for path in tmp_path.iterdir()} == {".pth"}  # nothing was written


def test_the_canary_would_sing(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()
    assert resource.RLIMIT_AS  # the limits above exist here


def test_files_of_this_program_point_to_export(tmp_path: Path, tiny_model: Path) -> None:
    from srgan.training.checkpoint import save_checkpoint

    save_checkpoint(tmp_path / "c.pt", {"x": torch.zeros(1)})
    with pytest.raises(UsageError, match="srgan export"):
        read_model(tmp_path / "c.pt", "x")
    with pytest.raises(UsageError, match="srgan upscale -n"):
        read_model(tiny_model, "x")


@pytest.mark.parametrize("content", [b"", b"junk", b"\x08\x07"])
def test_what_is_no_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"x\.onnx"):
        read_model(path, "x")


def test_safetensors_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content in (b"", b"junk", (10**12).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="cannot be read as safetensors"):
            read_model(path, "x")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_model(tmp_path / "missing.pth", "x")


@pytest.mark.parametrize(
    "change",
    [{"blocks": 10**9}, {"features": 0}, {"factors": [2, 2, 2, 2, 2, 2]}, {"head_kernel": 1001}, {"surprise": 1}],
)
def test_an_architecture_is_bounded_before_it_is_built(
    tmp_path: Path, imported: tuple[Path, Foreign], change: dict[str, Any]
) -> None:
    network, metadata = load_network(imported[0] / "out" / "mine.safetensors")
    wrong = ModelMetadata("x", 4, 12, metadata.architecture | change)
    save_file(network.state_dict(), tmp_path / "x.safetensors", {"srgan": wrong.to_json()})
    with pytest.raises(WeightsError, match="unknown to this version"):
        load_network(tmp_path / "x.safetensors")


def test_a_known_halo_is_not_overruled(tmp_path: Path) -> None:
    with pytest.raises(SrganError, match="leave --halo out"):
        read_model(saved(tmp_path / "g.pth", leftthomas(blocks=2).state), "g", halo_lr_px=3)
