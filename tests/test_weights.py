"""Bundled and users' weights are found, described and checked before they are used."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from srgan import weights
from srgan.errors import UnknownModelError, UsageError, WeightsError
from srgan.weights import (
    ModelMetadata,
    add_to_manifest,
    bundled_folder,
    bundled_models,
    find_weights,
    model_name,
    name_of_file,
    read_file,
    suited,
)

METADATA = ModelMetadata(name="one-x4", scale=4, halo_lr_px=12, architecture={})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of bundled weights with two models, the second the default."""
    bundled = tmp_path / "weights"
    bundled.mkdir()
    (bundled / "one-x4.onnx").write_bytes(b"first")
    (bundled / "two-x4.onnx").write_bytes(b"second")
    (bundled / "two-x4.safetensors").write_bytes(b"tensors")
    add_to_manifest(bundled, "one-x4", "The first.", METADATA)
    add_to_manifest(bundled, "two-x4", "The second.", METADATA, default=True)
    monkeypatch.setattr(weights, "bundled_folder", lambda: bundled)
    return bundled


def change_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_manifest_holds_what_is_promised(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["default"] == "two-x4"
    assert manifest["models"]["two-x4"] == {
        "description": "The second.",
        "scale": 4,
        "halo_lr_px": 12,
        "faithful": False,
        "files": {
            "onnx": {
                "file": "two-x4.onnx",
                "bytes": 6,
                "sha256": "16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4",
            },
            "safetensors": {
                "file": "two-x4.safetensors",
                "bytes": 7,
                "sha256": manifest["models"]["two-x4"]["files"]["safetensors"]["sha256"],
            },
        },
    }


def test_first_model_is_the_default_until_another_is(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.onnx").write_bytes(name.encode())
        add_to_manifest(tmp_path, name, "", METADATA)
    assert json.loads((tmp_path / "manifest.json").read_text())["default"] == "a"


def test_an_entry_is_replaced_and_the_others_stay(folder: Path) -> None:
    (folder / "one-x4.onnx").write_bytes(b"better")
    add_to_manifest(folder, "one-x4", "Better.", METADATA)
    assert find_weights("one-x4").onnx == b"better"
    assert [(model.name, model.description) for model in bundled_models()] == [
        ("one-x4", "Better."),
        ("two-x4", "The second."),
    ]


def test_add_without_the_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="srgan export"):
        add_to_manifest(tmp_path, "one-x4", "", METADATA)
    assert list(tmp_path.iterdir()) == []


def test_find_by_name_and_default(folder: Path) -> None:
    found = find_weights("one-x4")
    assert (found.name, found.path, found.onnx) == ("one-x4", folder / "one-x4.onnx", b"first")
    assert find_weights().name == "two-x4"
    assert [(model.name, model.scale, model.is_default) for model in bundled_models()] == [
        ("one-x4", 4, False),
        ("two-x4", 4, True),
    ]


@pytest.mark.usefixtures("folder")
def test_find_a_users_file(tmp_path: Path) -> None:
    own = tmp_path / "Own.ONNX"
    own.write_bytes(b"own")
    assert find_weights(own) == find_weights(str(own))
    assert (find_weights(own).name, find_weights(own).onnx) == ("Own", b"own")


def test_a_users_file_needs_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "bundled_folder", lambda: tmp_path / "nowhere")
    own = tmp_path / "own.onnx"
    own.write_bytes(b"own")
    assert find_weights(own).onnx == b"own"
    with pytest.raises(WeightsError, match="install srgan again"):
        find_weights("one-x4")


@pytest.mark.parametrize("by", ["name", "path"])
@pytest.mark.parametrize("content", [b"fIrst", b"", b"first and more"])
def test_a_changed_file_is_refused(folder: Path, content: bytes, by: str) -> None:
    (folder / "one-x4.onnx").write_bytes(content)
    with pytest.raises(WeightsError, match="sha256"):
        find_weights("one-x4" if by == "name" else folder / "one-x4.onnx")
    assert find_weights("two-x4").onnx == b"second"


def test_a_missing_file(folder: Path) -> None:
    (folder / "one-x4.onnx").unlink()
    with pytest.raises(WeightsError, match="No such file"):
        find_weights("one-x4")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", ["three-x4", "", "one-x4.bin", "../one-x4", "weights/"])
def test_an_unknown_name_lists_the_known(name: str) -> None:
    with pytest.raises(UnknownModelError, match="one-x4, two-x4"):
        find_weights(name)


@pytest.mark.usefixtures("folder")
def test_an_unknown_path() -> None:
    with pytest.raises(UnknownModelError, match="no such file"):
        find_weights("nowhere/one-x4.onnx")


@pytest.mark.usefixtures("folder")
def test_safetensors_point_to_export() -> None:
    with pytest.raises(UsageError, match="srgan export"):
        find_weights("some.safetensors")


@pytest.mark.parametrize("file", ["../secret.onnx", "/etc/passwd", "sub/secret.onnx", "..\\secret.onnx", 3, None])
def test_a_manifest_cannot_reach_out_of_its_folder(folder: Path, file: object) -> None:
    (folder.parent / "secret.onnx").write_bytes(b"secret")
    models = json.loads((folder / "manifest.json").read_text())["models"]
    models["one-x4"]["files"]["onnx"]["file"] = file
    change_manifest(folder, models=models)
    with pytest.raises(WeightsError, match="entry of one-x4"):
        find_weights("one-x4")


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"models": []},
        {"models": {"one-x4": {}}},
        {"models": {"one-x4": {"description": 1, "scale": 4}}},
        {"default": "three-x4"},
        {"default": []},
    ],
)
def test_a_wrong_manifest(folder: Path, changes: dict[str, Any]) -> None:
    change_manifest(folder, **changes)
    with pytest.raises(WeightsError, match=r"manifest\.json"):
        bundled_models()
    with pytest.raises(WeightsError, match=r"manifest\.json"):
        find_weights("one-x4")


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '"text"', "\x00"])
def test_a_manifest_that_is_none(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(WeightsError, match="not a manifest"):
        find_weights()


def test_bundled_folder_of_this_checkout() -> None:
    assert bundled_folder() == Path(__file__).parents[1] / "weights"


def test_every_bundled_model_is_intact() -> None:
    if not (bundled_folder() / "manifest.json").exists():
        pytest.skip("no weights are bundled yet")
    models = bundled_models()
    assert sum(model.is_default for model in models) == 1
    for model in models:
        assert find_weights(model.name).onnx
        assert model.description


def test_metadata_survives_its_text() -> None:
    assert ModelMetadata.from_json(METADATA.to_json(), "x") == METADATA


@pytest.mark.parametrize(
    "change",
    [{"scale": 0}, {"scale": 17}, {"scale": 4.0}, {"halo_lr_px": -1}, {"halo_lr_px": 10**9}, {"format": 2}],
)
def test_metadata_out_of_range(change: dict[str, Any]) -> None:
    text = json.dumps(json.loads(METADATA.to_json()) | change)
    with pytest.raises(WeightsError, match="the file"):
        ModelMetadata.from_json(text, "the file")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"surprise": 1}'])
def test_metadata_that_is_none(text: str) -> None:
    with pytest.raises(WeightsError, match="the file"):
        ModelMetadata.from_json(text, "the file")


# Names


@pytest.mark.parametrize(
    "name", ["srgan-x4", "srresnet-x4+srgan-x4@0.25", "my model 2", "模型", "é" * 100, "a.b_c"]
)
def test_a_plain_name_is_kept(name: str) -> None:
    assert model_name(name) == name
    assert ModelMetadata(name, 4, 12, {}).name == name


NO_NAMES: list[object] = [
    *(
        "",
        ".",
        "..",
        "../../x",
        "/abs/x",
        "a/b",
        "a\\b",
        "C:x",
        ".hidden",
        "-n",
        "~x",
        " x",
        "x ",
        "x.",
        "NUL",
        "con.x",
    ),
    *(
        "two\nlines",
        "bell\a",
        "right\u202eleft",
        "\udcff",
        "x\0",
        "é" * 101,
        "x" * 201,
        5,
        None,
        True,
        ["x"],
        b"x",
    ),
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_plain_name_is_refused(folder: Path, name: Any) -> None:
    with pytest.raises(ValueError, match="name"):
        ModelMetadata(name, 4, 12, {})
    with pytest.raises(WeightsError, match="name"):
        add_to_manifest(folder, name, "", METADATA)
    if not isinstance(name, bytes):
        text = json.dumps({"name": name, "scale": 4, "halo_lr_px": 12, "architecture": {}})
        with pytest.raises(WeightsError, match=r"^x: its srgan metadata cannot be read \(.*name") as refused:
            ModelMetadata.from_json(text, "x")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("file", ["\udcff.onnx", "a/con.pth", "é" * 150 + ".pth", "-x-.pt", "тест два.ckpt"])
def test_every_file_gives_a_plain_name(file: str) -> None:
    assert model_name(name_of_file(Path(file)))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"name": "x", "scale": 4, "halo_lr_px": 0, "architecture": []}',
        '{"name": "x", "scale": true, "halo_lr_px": 0, "architecture": {}}',
        '{"name": "x", "scale": 4, "halo_lr_px": 0, "architecture": {}, "data_sha256": 3}',
        '{"name": "x", "scale": ' + "9" * 9999 + "}",
    ],
)
def test_metadata_of_other_types(text: str) -> None:
    with pytest.raises(WeightsError, match="the file") as refused:
        ModelMetadata.from_json(text, "the file")
    assert len(str(refused.value)) < 500


# Files that are too large, or none


def test_a_file_is_measured_before_it_is_read(tmp_path: Path) -> None:
    huge, pipe = tmp_path / "huge.onnx", tmp_path / "pipe.onnx"
    with huge.open("wb") as file:
        file.truncate(5 * 10**12)  # of which the disk holds nothing
    os.mkfifo(pipe)
    with pytest.raises(WeightsError, match="larger than 2 GiB"):
        find_weights(huge)
    for path in (pipe, tmp_path):
        with pytest.raises(WeightsError, match="not a file"):
            read_file(path)


@pytest.mark.parametrize(
    ("scale", "name"),
    [(None, "srgan-x4"), (1, "srgan-x2"), (2, "srgan-x2"), (2.1, "srgan-x4"), (4, "srgan-x4"), (8, "srgan-x4")],
)
def test_a_scale_has_a_model_that_suits_it(scale: float | None, name: str) -> None:
    scales = {"srresnet-x2": 2, "srgan-x2-photo": 2, "srgan-x4": 4, "srgan-x2": 2}
    assert suited("srgan-x4", scales, scale) == name
    assert suited("srgan-x2-photo", scales, scale) == "srgan-x2-photo"
    assert suited("mine", {"mine": 3}, scale) == "mine"
    assert suited("srgan-x4", {"srgan-x4": 4}, scale) == "srgan-x4"
    assert suited("srgan-x4", scales | {"srgan-x8": 8}, 5) == "srgan-x8"
