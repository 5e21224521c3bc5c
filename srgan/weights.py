"""Weights of generators: what a file says of itself, where bundled ones lie, and whether a file is intact."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from srgan.errors import UnknownModelError, UsageError, WeightsError
from srgan.files import write_atomically
from srgan.texts import did_you_mean, first_line

MANIFEST = "manifest.json"  # in the folder of the weights: what lies there and the hash of each file
METADATA_KEY = "srgan"  # of the ONNX file's metadata_props and of the safetensors header

# Files of weights without a graph: only PyTorch can make a network of them.
TENSOR_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".tar")

MAX_BYTES = 2 * 2**30  # a training checkpoint of the largest networks in use, and all that ONNX can hold

_MOST_INT8_BYTES = 2**30  # 37 KB for our generators

# The scale that a model's name says, as in srgan-x4-photo.
SCALE_IN_NAME = re.compile(r"(?<=-x)\d+(?=-|$)")

# Files are called so, with a suffix of up to 12 bytes, and file systems take 255.
_MOST_NAME_BYTES = 200
_OTHER_PLACES = re.compile(r'[/\\:*?"<>|]|^[.~-]|^\s|[.\s]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)


def model_name(name: object) -> str:
    """Return `name` if it is one that a model may have, wherever it comes from: files are called so.

    It is text of 1 to 200 bytes that can be printed in a line and names a file in the folder at hand on every
    system: no folder, no drive, no device, no option. Raises ValueError for anything else.
    """
    if not isinstance(name, str):
        raise ValueError(f"a name is text, not {type(name).__name__}")
    if not name or not name.isprintable() or len(name.encode()) > _MOST_NAME_BYTES or _OTHER_PLACES.search(name):
        raise ValueError(f"{name[:80]!r} is not a plain name of 1 to {_MOST_NAME_BYTES} bytes")
    return name


def usable_name(name: str) -> str:
    """Return `name`, which a person gave; raises UsageError if no model may have it."""
    try:
        return model_name(name)
    except ValueError as error:
        raise UsageError(f"{error}; the folder is --output") from error


def name_of_file(path: Path) -> str:
    """Return the name of a model from that of its file: netG_epoch_4_100 of netG_epoch_4_100.pth.tar."""
    name = re.sub(r"(\.(pth|pt|ckpt|tar|safetensors|onnx))+$", "", path.name, flags=re.IGNORECASE)
    plain = re.sub(r"[^\w.+-]+", "-", name).encode(errors="replace")[:_MOST_NAME_BYTES].decode(errors="ignore")
    try:
        return model_name(plain.strip("-."))
    except ValueError:
        return "model"


@dataclass(frozen=True)
class ModelMetadata:
    """What a weights file says of itself; stored as JSON under `METADATA_KEY`.

    `name`: as `model_name` has it, else ValueError. `scale`: output pixels per input pixel. `halo_lr_px`: how far
    an output pixel can see, in LR pixels; context of this width makes tiling exact. `architecture`: keyword
    arguments of the generator. `recipe`: the training recipe, whole. `data_sha256`: hash of the list of training
    pictures. `metrics`: figures of the run's own validation. `run`: how it was trained, beside the recipe. Of
    neither a file says which folders and files were meant. `multiple_lr_px`: of what tiles must begin at, where
    the network works in windows; else 1.
    """

    name: str
    scale: int
    halo_lr_px: int
    architecture: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)
    data_sha256: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    format: int = 1
    multiple_lr_px: int = 1
    run: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a name that is none."""
        model_name(self.name)

    @property
    def of_clean_pictures(self) -> bool:
        """Whether the recipe says that it was trained on pictures reduced by the benchmarks' bicubic alone."""
        degradation = self.recipe.get("degradation")
        return isinstance(degradation, dict) and degradation.get("kind") == "bicubic"

    def to_json(self) -> str:
        """Return the metadata as one line of JSON with sorted keys."""
        values = asdict(self)
        if self.multiple_lr_px == 1:  # as it was before there were others
            del values["multiple_lr_px"]
        if not self.run:  # likewise
            del values["run"]
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, source: str) -> ModelMetadata:
        """Read what `to_json` wrote; `source` names the file in the error.

        Raises WeightsError if it is not that, or its numbers are out of range.
        """
        try:
            metadata = cls(**json.loads(text))
        except (TypeError, ValueError, RecursionError) as error:
            raise WeightsError(f"{source}: its srgan metadata cannot be read ({first_line(error)})") from error
        if metadata.format != 1:
            raise WeightsError(
                f"{source}: format {metadata.format!r:.40} is newer than this program; update srgan"
            )
        for name, kind in (("architecture", dict), ("recipe", dict), ("metrics", dict), ("data_sha256", str)):
            if not isinstance(getattr(metadata, name), kind):
                raise WeightsError(f"{source}: its srgan metadata cannot be read ({name} is of another type)")
        for name, least, most in (("scale", 1, 16), ("halo_lr_px", 0, 1024), ("multiple_lr_px", 1, 256)):
            value = getattr(metadata, name)
            if type(value) is not int or not least <= value <= most:
                raise WeightsError(f"{source}: {name} {value!r:.40} is not between {least} and {most}")
        return metadata


@dataclass(frozen=True)
class Weights:
    """A generator's ONNX file, read and found intact.

    `name`: of the bundled model, or the stem of a user's file. `path`: where it was read. `onnx`: its bytes, the
    very ones that were checked. `sha256`: their hash.
    """

    name: str
    path: Path
    onnx: bytes
    sha256: str


@dataclass(frozen=True)
class LossyRule:
    """Which pictures another than the default model takes when none is named.

    `model`: that one, trained on what compression leaves. `below_quality`: of JPEG files on libjpeg's scale, where
    it is better more often than not. `formats`: of other files compressed with loss, keys of `pictures.FORMATS`.
    `model_sha256`: hash of the file of that model, which is opened with the first such picture.
    """

    model: str
    model_sha256: str
    below_quality: int
    formats: tuple[str, ...]

    def takes(self, format: str, quality: int | None) -> bool:
        """Return whether a picture is for that model; `quality`: its `Picture.lossy_quality`."""
        if quality is None:
            return False
        return quality < self.below_quality if quality else format in self.formats


@dataclass(frozen=True)
class BundledModel:
    """What the manifest says of a bundled model, before its files are opened.

    `is_faithful`: whether its results are corrected until they reduce to what they were made from, if nobody says
    otherwise.
    """

    name: str
    description: str
    scale: int
    is_default: bool
    is_faithful: bool


def find_weights(model: str | Path | None = None) -> Weights:
    """Return the weights of a bundled model by name, of an ONNX file by path, or of the default model.

    A file that the manifest lists is compared with its sha256, every time. Raises UnknownModelError if there is
    no such name or file, UsageError for a file of weights alone, WeightsError if a file is missing, unreadable or
    not what the manifest says.
    """
    if model is not None and is_file_name(model):
        name, path, sha256 = _users_file(Path(model))
    else:
        name, path, sha256 = _bundled_file(model)
    onnx = read_file(path)
    return Weights(name, path, onnx, _check_sha256(path, onnx, sha256))


def read_file(path: Path, limit_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a model's file. Raises WeightsError if it cannot be, or is too large to be one."""
    try:
        check_file(path, limit_bytes)
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    except MemoryError as error:
        raise WeightsError(f"{path}: there is not enough memory for it") from error


def check_file(path: Path, limit_bytes: int = MAX_BYTES) -> None:
    """Raise WeightsError if `path` is not a file, or larger than a model can be; OSError if it is not there."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # to read a pipe would be to wait for who writes into it
        raise WeightsError(f"{path}: cannot be read: it is not a file")
    if status.st_size > limit_bytes:
        raise WeightsError(f"{path}: larger than {limit_bytes >> 30} GiB; save the generator's weights alone")


def is_file_name(model: str | Path) -> bool:
    """Return whether `model` is the path of a model's file rather than the name of a bundled model."""
    return Path(model).suffix.lower() in (".onnx", *TENSOR_SUFFIXES)


def tensors_of(weights: Weights) -> Path:
    """Return the safetensors file of the same model, which lies beside its ONNX file.

    Raises WeightsError if there is none, or a bundled one is not what the manifest says.
    """
    path = weights.path.with_suffix(".safetensors")
    if not path.is_file():
        raise WeightsError(f"{path}: not there, but PyTorch needs it; `srgan export` writes both files")
    if path.resolve().parent == bundled_folder().resolve():
        _, listed, sha256 = _bundled_file(weights.name, "safetensors")
        _check_sha256(listed, read_file(listed), sha256)
    return path


def int8_path(path: Path) -> Path:
    """Return where the int8 form of the ONNX file `path` lies: NAME.int8.json beside NAME.onnx."""
    return path.with_suffix(".int8.json")


def int8_of(weights: Weights) -> bytes | None:
    """Return the int8 form of a model as it lies beside its ONNX file, or None if none does.

    Raises WeightsError if it cannot be read, or a bundled one is not what the manifest says.
    """
    path = int8_path(weights.path)
    if not path.is_file():
        return None
    content, sha256 = read_file(path, _MOST_INT8_BYTES), None
    if path.resolve().parent == bundled_folder().resolve():
        _, _, sha256 = _bundled_file(weights.name, "int8")
    _check_sha256(path, content, sha256)
    return content


def bundled_tensors(name: str) -> Path:
    """Return the safetensors file of a bundled model. Raises what `find_weights` raises."""
    return tensors_of(find_weights(name))


def balance_models() -> tuple[str, str]:
    """Return the bundled models that `balance` 0 and 1 stand for: one training begun from the other's weights.

    Raises UsageError if the manifest names no such pair.
    """
    pair = _read_manifest(bundled_folder()).get("balance")
    if not (isinstance(pair, list) and len(pair) == 2):
        raise UsageError("these weights have no pair of models to balance")
    return str(pair[0]), str(pair[1])


def partner_of(model: str | None) -> str | None:
    """Return the bundled model, trained for content alone, that a bundled one is compared and mixed with.

    `model`: its name, None for the default. None if it is not bundled, or there is none of its scale.
    """
    try:
        faithful, _ = balance_models()
    except UsageError:
        return None
    models = bundled_models()
    scales = {listed.name: listed.scale for listed in models}
    name = next(listed.name for listed in models if listed.is_default) if model is None else model
    return faithful if scales.get(name, 0) == scales[faithful] else None


def lossy_rule() -> LossyRule | None:
    """Return what the manifest of the bundled weights says of pictures compressed with loss, if it does.

    Raises WeightsError if there is no readable manifest.
    """
    manifest = _read_manifest(bundled_folder())
    rule = manifest.get("lossy")
    try:
        if not rule:
            return None
        sha256 = manifest["models"][rule["model"]]["files"]["onnx"]["sha256"]
        return LossyRule(str(rule["model"]), str(sha256), int(rule["below_quality"]), tuple(rule["formats"]))
    except (TypeError, KeyError, ValueError) as error:
        raise WeightsError(f"{bundled_folder() / MANIFEST}: what it says of lossy pictures is wrong") from error


def bundled_models() -> list[BundledModel]:
    """Return what the manifest lists, in its order. Raises WeightsError if there is no readable manifest."""
    manifest = _read_manifest(bundled_folder())
    return [
        BundledModel(
            name,
            entry["description"],
            entry["scale"],
            is_default=name == manifest["default"],
            is_faithful=entry.get("faithful") is True,
        )
        for name, entry in manifest["models"].items()
    ]


def suited(default: str, scales: Mapping[str, int], scale: float | None) -> str:
    """Return which model enlarges `scale` times best, where no model is named: `default` or its like.

    `scales`: of all models, by name. Names that differ in nothing but the scale that they say are alike: srgan-x2
    and srgan-x4. The least of them that is enough is taken, or the largest; for None it is `default`.
    """
    kind = SCALE_IN_NAME.sub("", default)
    alike = {of: name for name, of in scales.items() if SCALE_IN_NAME.sub("", name) == kind}
    if scale is None or default not in alike.values():
        return default
    return alike[min((of for of in alike if of >= scale), default=max(alike))]


def is_bundled(sha256: str) -> bool:
    """Return whether a file with this hash is one that the manifest of the bundled weights vouches for."""
    try:
        models = _read_manifest(bundled_folder())["models"].values()
        return any(sha256 == file["sha256"] for model in models for file in model["files"].values())
    except (WeightsError, TypeError, KeyError, AttributeError):
        return False


def bundled_folder() -> Path:
    """Return the folder of the bundled weights: inside an installed package, or beside it in a checkout."""
    package = Path(str(importlib.resources.files("srgan")))
    installed = package / "bundled"
    return installed if installed.is_dir() else package.parent / "weights"


def add_to_manifest(
    folder: Path, name: str, description: str, metadata: ModelMetadata, *, default: bool = False
) -> None:
    """Write or replace the entry of `name` in the manifest of `folder`, from its files there.

    The files are `NAME.onnx`, which must exist, `NAME.safetensors` and `NAME.int8.json`, which may. `default`:
    make it the model that is used when none is named; the first of a new manifest always is. The manifest is
    written whole or not at all. Raises WeightsError if there is no ONNX file, the existing manifest cannot be
    read, or `name` is none that a model may have.
    """
    try:
        model_name(name)
    except ValueError as error:
        raise WeightsError(f"{folder}: {error}") from error
    if not (folder / f"{name}.onnx").is_file():
        raise WeightsError(f"{folder}: no {name}.onnx there; run `srgan export` first")
    manifest: dict[str, Any] = {"format": 1, "default": name, "models": {}}
    if (folder / MANIFEST).exists():
        manifest = _read_manifest(folder)
    if default:
        manifest["default"] = name
    files = {}
    for kind, suffix in (("onnx", "onnx"), ("safetensors", "safetensors"), ("int8", "int8.json")):
        path = folder / f"{name}.{suffix}"
        if path.is_file():
            content = read_file(path)
            files[kind] = {
                "file": path.name,
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
    manifest["models"][name] = {
        "description": description,
        "scale": metadata.scale,
        "halo_lr_px": metadata.halo_lr_px,
        "faithful": metadata.of_clean_pictures,
        "files": files,
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / MANIFEST, text.encode())


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        if manifest["format"] != 1:
            raise WeightsError(f"{path}: format {manifest['format']} is newer than this program; update srgan")
        for entry in manifest["models"].values():
            if not (isinstance(entry["description"], str) and isinstance(entry["scale"], int)):
                raise TypeError("a description or scale of the wrong type")
        if manifest["default"] not in manifest["models"]:
            raise ValueError("its default is not one of its models")
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}; install srgan again") from error
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise WeightsError(f"{path}: not a manifest of weights ({error!r}); install srgan again") from error
    return manifest


def _check_sha256(path: Path, content: bytes, expected: str | None) -> str:
    """Return the sha256 of `content`; raise WeightsError if another is expected."""
    sha256 = hashlib.sha256(content).hexdigest()
    if expected is not None and sha256 != expected:
        raise WeightsError(
            f"{path}: its sha256 is not the one in {MANIFEST}, so the file is damaged or was exchanged; "
            "install srgan again"
        )
    return sha256


def _bundled_file(model: str | Path | None, kind: str = "onnx") -> tuple[str, Path, str]:
    """Return name, path and sha256 of a bundled model's file; None means the default model."""
    folder = bundled_folder()
    manifest = _read_manifest(folder)
    name = manifest["default"] if model is None else str(model)
    if name not in manifest["models"]:
        names = ", ".join(manifest["models"])
        raise UnknownModelError(
            f"no model {name!r}: choose one of {names}, or give the path of a file (.onnx, .safetensors, .pth)"
            f"{did_you_mean(name, manifest['models'])}"
        )
    try:
        listed = manifest["models"][name]["files"][kind]
        file, sha256 = listed["file"], listed["sha256"]
        # A plain name only: a manifest must not reach out of its own folder.
        if Path(file).name != file or "\\" in file or not isinstance(sha256, str):
            raise ValueError(f"{file!r} is not the name of a file in this folder")
    except (TypeError, KeyError, ValueError) as error:
        raise WeightsError(f"{folder / MANIFEST}: the entry of {name} is wrong ({error!r})") from error
    return name, folder / file, sha256


def _users_file(path: Path) -> tuple[str, Path, str | None]:
    """Return name and path of a user's ONNX file, with a sha256 only if it is in fact a bundled one."""
    if path.suffix.lower() in TENSOR_SUFFIXES:
        raise UsageError(
            f"{path}: weights alone are not run here; make an .onnx file of them with `srgan export {path}` if "
            f"srgan wrote them, or with `srgan import {path}`"
        )
    if not path.is_file():
        raise UnknownModelError(f"{path}: no such file; `srgan models` lists the bundled models")
    if path.resolve().parent == bundled_folder().resolve():
        return _bundled_file(path.stem)
    return path.stem, path, None
