"""Exported files: two runtimes against torch, at sizes the exporter never saw."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from srgan.commands import export as commands
from srgan.conversion import exporting as export
from srgan.conversion.exporting import (
    FP16_TOLERANCE,
    OLDEST_OPSET,
    PARITY_TOLERANCE,
    export_generator,
    onnx_from,
    parity,
    with_opset,
)
from srgan.engines.graphs import openvino_ir
from srgan.engines.openvino import OpenVinoEngine, run_openvino_ir
from srgan.errors import RecipeError, UnknownModelError, UsageError, WeightsError
from srgan.networks.generator import Generator
from srgan.networks.reading import load_generator, load_network
from srgan.training.checkpoint import save_checkpoint
from srgan.training.config import load_recipe
from srgan.weights import METADATA_KEY, ModelMetadata, add_to_manifest

KINDS = ("none", "batch")
SHAPES = [(1, 24, 20), (1, 1, 1), (2, 7, 33), (3, 16, 5), (1, 40, 41)]


def generator(normalisation: str) -> Generator:
    """As after some training: no parameter where it started, statistics that are not 0 and 1."""
    torch.manual_seed(11)
    made = Generator(2, 6, normalisation)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for buffer_name, buffer in made.named_buffers():
            if "running" in buffer_name:
                buffer.add_(0.3 * torch.rand_like(buffer))
    return made


def metadata(normalisation: str = "none") -> ModelMetadata:
    return ModelMetadata(
        name="mine-x4",
        scale=4,
        halo_lr_px=12,
        architecture={"blocks": 2, "features": 6, "normalisation": normalisation},
        recipe={"seed": 3, "text": "ünïcode"},
        data_sha256="ab" * 32,
        metrics={"validation/psnr_y": 30.25},
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Both files, by kind of normalisation."""
    folder = tmp_path_factory.mktemp("exported")
    return {kind: export_generator(generator(kind), metadata(kind), folder / kind) for kind in KINDS}


def expected(kind: str, lr: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return generator(kind).eval()(torch.from_numpy(lr)).numpy()


def noise(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).random((count, 3, height, width), dtype=np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_runtime_equals_torch(exported: dict[str, tuple[Path, Path]], kind: str) -> None:
    session = onnxruntime.InferenceSession(exported[kind][1].read_bytes(), providers=["CPUExecutionProvider"])
    for shape in SHAPES:
        lr = noise(*shape)
        (sr,) = session.run(["sr"], {"lr": lr})
        np.testing.assert_allclose(sr, expected(kind, lr), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_openvino_equals_torch(exported: dict[str, tuple[Path, Path]], kind: str) -> None:
    engine = OpenVinoEngine(exported[kind][1])
    for shape in SHAPES:
        lr = noise(*shape)
        np.testing.assert_allclose(engine.run(lr), expected(kind, lr), rtol=0, atol=1e-5)


def test_the_output_is_not_clamped(tmp_path: Path) -> None:
    bright = generator("none")
    with torch.no_grad():
        bright.tail.bias.fill_(2.0)  # type: ignore[union-attr]
    _, path = export_generator(bright, metadata(), tmp_path)
    assert OpenVinoEngine(path).run(noise(1, 8, 8)).min() > 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_outputs_and_dynamic_axes(exported: dict[str, tuple[Path, Path]], kind: str) -> None:
    model = onnx.load(exported[kind][1])
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["lr"]
    assert [value.name for value in model.graph.output] == ["sr"]
    for value in (*model.graph.input, *model.graph.output):
        sizes = value.type.tensor_type.shape.dim
        assert [bool(size.dim_param) for size in sizes] == [True, False, True, True]
        assert sizes[1].dim_value == 3
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("kind", KINDS)
def test_both_files_say_the_same_of_themselves(exported: dict[str, tuple[Path, Path]], kind: str) -> None:
    tensors, graph = exported[kind]
    with safe_open(tensors, framework="np") as file:
        said = file.metadata()[METADATA_KEY]
    (prop,) = onnx.load(graph).metadata_props
    assert (prop.key, prop.value) == (METADATA_KEY, said)
    assert ModelMetadata.from_json(said, "x") == metadata(kind) == OpenVinoEngine(graph).metadata


@pytest.mark.parametrize("kind", KINDS)
def test_safetensors_hold_the_generator(exported: dict[str, tuple[Path, Path]], kind: str) -> None:
    loaded, _ = load_generator(exported[kind][0])
    state = generator(kind).state_dict()
    assert loaded.state_dict().keys() == state.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_names_and_folder(exported: dict[str, tuple[Path, Path]]) -> None:
    paths = exported["none"]
    assert [path.name for path in paths] == ["mine-x4.safetensors", "mine-x4.onnx"]
    assert sorted(paths[0].parent.iterdir()) == sorted(paths)


def test_the_file_is_hardly_larger_than_its_weights(tmp_path: Path) -> None:
    made = Generator(4, 32)
    _, path = export_generator(made, metadata(), tmp_path)
    # The tail is stored as it is run: 12 output channels of 5×5 before the shuffle, not 3 of 9×9 after it.
    weights = 4 * sum(tensor.numel() for name, tensor in made.state_dict().items() if "tail" not in name)
    fixed = 4 * (made.skip.kernel.numel() + 12 * 4 * 32 * 25 + 12)
    assert weights < path.stat().st_size < weights + fixed + 30_000


def test_no_trace_of_the_machine_that_exported(exported: dict[str, tuple[Path, Path]]) -> None:
    """The exporter writes source paths on every node; a shared file should not carry them."""
    for kind in KINDS:
        content = exported[kind][1].read_bytes()
        assert str(Path(export.__file__).parent).encode() not in content
        assert b"site-packages" not in content
        assert b"stack_trace" not in content


def test_exporting_leaves_weights_and_random_numbers_alone(tmp_path: Path) -> None:
    made = generator("batch").train()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    export_generator(made, metadata("batch"), tmp_path)
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (export_generator(generator("none"), metadata(), tmp_path / name) for name in ("a", "b"))
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    made = generator("none")
    with torch.no_grad():
        made.tail.bias[1] = value  # type: ignore[index]
    with pytest.raises(WeightsError, match=r"^mine-x4: tail\.bias holds values that are not finite"):
        export_generator(made, metadata(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = generator("none")
    with torch.no_grad():
        other.tail.bias[0] += 3 * PARITY_TOLERANCE  # type: ignore[index]
    wrong = onnx_from(other, metadata())
    monkeypatch.setattr(export, "onnx_from", lambda *_: wrong)
    with pytest.raises(WeightsError, match=r"mine-x4: .* differs from torch by 0\.0003.*nothing was written"):
        export_generator(generator("none"), metadata(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parity_measures_the_largest_difference() -> None:
    made = generator("none").eval()
    model = onnx_from(made, metadata())
    assert parity(made, model) < 1e-5

    class Shifted(nn.Module):
        def forward(self, lr: torch.Tensor) -> torch.Tensor:
            sr: torch.Tensor = made(lr)
            sr[0, 2, 5, 9] += 0.25
            return sr

    assert parity(Shifted(), model) == pytest.approx(0.25, abs=1e-4)


def test_an_exporter_that_returns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: None)
    with pytest.raises(WeightsError, match="mine-x4: torch's ONNX exporter returned nothing"):
        onnx_from(generator("none"), metadata())


def test_the_model_is_one_file(exported: dict[str, tuple[Path, Path]]) -> None:
    """No weights beside it that could be lost: bytes alone are enough."""
    model = onnx.load(io.BytesIO(exported["none"][1].read_bytes()))
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_what_is_shared_names_no_folder_and_no_file(tmp_path: Path) -> None:
    recipe = {
        "start": "/home/me/runs/quokka.safetensors",
        "losses": {"perceptual": {"file": "/secret/vgg16.safetensors"}},
    }
    run = {
        "data": ["/secret/wedding"],
        "validation": ["photojudges"],
        "held_out": ["aunt.jpg"],
        "held_out_pictures": 1,
    }
    exported = export_generator(Generator(1, 4), replace(metadata(), recipe=recipe, run=run), tmp_path)
    for path in exported:
        for name in (b"/home/me", b"quokka", b"secret", b"wedding", b"photojudges", b"aunt", b"vgg16.safe"):
            assert name not in path.read_bytes()
    with safe_open(exported[0], framework="pt") as file:
        read = ModelMetadata.from_json(file.metadata()[METADATA_KEY], "it")
    assert read.recipe == {"start": "(file)", "losses": {"perceptual": {"file": "(file)"}}}
    assert read.run == {"held_out_pictures": 1}
    assert recipe["start"] == "/home/me/runs/quokka.safetensors"  # the caller's own is left alone


@pytest.mark.parametrize(
    ("start", "kept"), [("srgan-x4", "srgan-x4"), ("mine.pt", "(file)"), ("runs/a", "(file)")]
)
def test_a_bundled_model_that_a_run_began_with_is_named(start: str, kept: str) -> None:
    assert export.shared(replace(metadata(), recipe={"start": start})).recipe["start"] == kept


def by_onnx_runtime(content: bytes, lr: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (sr,) = session.run(["sr"], {"lr": lr})
    return np.asarray(sr)


@pytest.mark.parametrize("opset", [OLDEST_OPSET, 13, 17, 18, 22])
def test_any_opset_is_the_same_function(exported: dict[str, tuple[Path, Path]], opset: int) -> None:
    content = with_opset(exported["none"][1].read_bytes(), opset)
    model = onnx.load_model_from_string(content)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert opset > 17 or model.ir_version <= 8  # what runtimes of that time read
    for shape in SHAPES:
        lr = noise(*shape)
        np.testing.assert_allclose(by_onnx_runtime(content, lr), expected("none", lr), rtol=0, atol=1e-5)
    assert OpenVinoEngine(content).metadata == metadata("none")


@pytest.mark.parametrize("opset", [-1, 0, 7, 10, 1000])
def test_an_opset_that_cannot_be(exported: dict[str, tuple[Path, Path]], opset: int) -> None:
    with pytest.raises(UsageError, match=rf"--opset {opset}: this network can be had for 11 to \d+$"):
        with_opset(exported["none"][1].read_bytes(), opset)


def test_half_precision(tmp_path: Path, exported: dict[str, tuple[Path, Path]]) -> None:
    files = export.exported(generator("none"), metadata(), ("onnx", "openvino", "safetensors"), fp16=True)
    assert list(files) == ["onnx", "bin", "xml", "safetensors"]
    assert len(files["safetensors"]) < 0.7 * exported["none"][0].stat().st_size
    graph = onnx.load_model_from_string(files["onnx"])
    large = [tensor for tensor in graph.graph.initializer if np.prod(tensor.dims) > 100]
    assert large
    assert {tensor.data_type for tensor in large} == {onnx.TensorProto.FLOAT16}
    (tmp_path / "half.safetensors").write_bytes(files["safetensors"])
    loaded, _ = load_network(tmp_path / "half.safetensors")
    for shape in SHAPES:
        lr = noise(*shape)
        by_torch = loaded(torch.from_numpy(lr)).detach().numpy()
        by_openvino = run_openvino_ir(files["xml"], files["bin"], lr)
        for sr in (by_onnx_runtime(files["onnx"], lr), by_openvino, by_torch):
            np.testing.assert_allclose(sr, expected("none", lr), rtol=0, atol=FP16_TOLERANCE)
    assert not np.array_equal(by_torch, expected("none", lr))


def test_ir_of_openvino_is_the_same_function(exported: dict[str, tuple[Path, Path]]) -> None:
    xml, weights = openvino_ir(exported["none"][1].read_bytes())
    assert METADATA_KEY.encode() in xml
    for shape in SHAPES:
        lr = noise(*shape)
        np.testing.assert_allclose(run_openvino_ir(xml, weights, lr), expected("none", lr), rtol=0, atol=1e-5)


def test_half_precision_that_differs_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "FP16_TOLERANCE", 1e-7)  # half precision cannot be that good
    with pytest.raises(WeightsError, match="differs from torch"):
        export.exported(generator("none"), metadata(), ("safetensors",), fp16=True)


def test_export_from_weights_and_bundled_models(
    tmp_path: Path,
    exported: dict[str, tuple[Path, Path]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from srgan import weights

    bundled = tmp_path / "bundled"
    bundled.mkdir()
    for path in exported["none"]:
        (bundled / path.name).write_bytes(path.read_bytes())
    add_to_manifest(bundled, "mine-x4", "Mine.", metadata())
    monkeypatch.setattr(weights, "bundled_folder", lambda: bundled)
    for source in ("mine-x4", str(exported["none"][0])):
        out = tmp_path / str(len(source))
        commands.export(source, out, kinds=["safetensors", "safetensors"], fp16=True)
        assert capsys.readouterr().out == f"{out}/mine-x4-fp16.safetensors\n"
        network, said = load_network(out / "mine-x4-fp16.safetensors")
        assert said == replace(metadata(), name="mine-x4-fp16")
        assert isinstance(network, Generator)
    (bundled / "mine-x4.safetensors").write_bytes(b"changed")
    with pytest.raises(WeightsError, match="sha256"):
        commands.export("mine-x4", tmp_path)


@pytest.mark.parametrize(
    ("source", "settings", "said", "error"),
    [
        ("unknown", {}, "no model 'unknown'", UnknownModelError),
        ("x.onnx", {}, "ONNX file", UsageError),
        ("srgan-x4", {"kinds": ["tflite"]}, "choose from onnx, openvino, safetensors", UsageError),
        ("srgan-x4", {"kinds": ["openvino"], "opset": 13}, "--to onnx", UsageError),
        ("srgan-x4", {"calibrate": Path("absent")}, "give --calibrate a folder of photographs", UsageError),
        ("a/missing.pt", {}, "cannot be read", WeightsError),
    ],
)
def test_exports_that_make_no_sense(
    tmp_path: Path, source: str, settings: dict[str, Any], said: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match=said):
        commands.export(source, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


# Names that a file says of itself


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", 5, "two\nlines"])
def test_nothing_is_written_where_a_file_calls_itself_to(tmp_path: Path, name: object) -> None:
    """By the metadata of a safetensors file, and by the recipe in a checkpoint."""
    out = tmp_path / "a" / "b" / "out"
    tensors = tmp_path / "x.safetensors"
    text = metadata().to_json().replace('"mine-x4"', json.dumps(name))
    save_file(generator("none").state_dict(), tensors, {"srgan": text})
    with pytest.raises(WeightsError, match="its srgan metadata cannot be read"):
        commands.export(str(tensors), out)
    recipe = load_recipe("tiny").model_dump(mode="json")
    recipe["adversarial"]["export_name"] = name
    state = {"recipe": recipe, "position": {"stage": "adversarial", "step": 9}, "data_sha256": "", "ema": {}}
    save_checkpoint(tmp_path / "c.pt", state)
    with pytest.raises(RecipeError, match=r"adversarial\.export_name"):
        commands.export(str(tmp_path / "c.pt"), out)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["c.pt", "x.safetensors"]


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "", ".x"])
def test_nothing_is_written_where_a_name_of_the_command_line_leads(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="plain name"):
        commands.export("srgan-x4", tmp_path / "out", name)
    with pytest.raises(UsageError, match="plain name"):
        export.write_files({"onnx": b""}, tmp_path / "out", name)
    assert not list(tmp_path.iterdir())


def test_no_recipe_names_a_place() -> None:
    with pytest.raises(RecipeError, match="plain name"):
        load_recipe("tiny", ["adversarial.export_name=../../X"])


def test_a_file_of_somebody_else_stays(tmp_path: Path, exported: dict[str, tuple[Path, Path]]) -> None:
    """One of ours by that name is replaced; another's, one of ours by another name, and links are not."""
    ours = {path.suffix[1:]: path.read_bytes() for path in exported["none"]}
    ours["xml"], ours["bin"] = openvino_ir(ours["onnx"])
    export.write_files(ours, tmp_path, "mine-x4")
    export.write_files(ours, tmp_path, "mine-x4")
    for suffix, content in ours.items():
        path = tmp_path / f"mine-x4.{suffix}"
        path.replace(tmp_path / f"other.{suffix}")
        with pytest.raises(WeightsError, match="not the model other"):
            export.write_files({suffix: content}, tmp_path, "other")
        (tmp_path / f"other.{suffix}").replace(path)
    for suffix in ("onnx", "safetensors", "xml"):
        path = tmp_path / f"mine-x4.{suffix}"
        for foreign in (b"", b"a letter", b"\x08\x07", b"<net/>"):
            path.write_bytes(foreign)
            with pytest.raises(WeightsError, match="exists and is not the model mine-x4"):
                export.write_files(ours, tmp_path, "mine-x4")
            assert path.read_bytes() == foreign
        path.write_bytes(ours[suffix])
    link = tmp_path / "mine-x4.onnx"
    link.rename(tmp_path / "elsewhere.onnx")
    link.symlink_to("elsewhere.onnx")
    with pytest.raises(WeightsError, match="exists"):
        export.write_files(ours, tmp_path, "mine-x4")


def test_a_folder_that_cannot_be_made_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WeightsError, match="cannot be written"):
        export.write_files({"onnx": b""}, tmp_path / "file", "x")
