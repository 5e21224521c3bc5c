"""One making of a file: the same odd files through all front ends give the same results, warnings and refusals."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from srgan_service.http.routes import warnings_header
from support.engines import NearestEngine
from support.serving import Running, ended, serving

from srgan.errors import FormatError, UsageError
from srgan.folder.making import AUTO, Order, decide, format_of_name, known_format, make, stripped
from srgan.pictures import FORMATS, Picture, decode, encode
from srgan.upscale import Request, Upscaler

UPSCALER = Upscaler(engine=NearestEngine())
RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 7, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (6, 7), np.uint8)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def heic() -> bytes:
    pytest.importorskip("pillow_heif").register_heif_opener()
    return saved(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), "HEIF")


def pages() -> bytes:
    images = [Image.fromarray(COLOURS), Image.fromarray(COLOURS[::-1])]
    return saved(images[0], "TIFF", save_all=True, append_images=images[1:])


def bigtiff() -> bytes:
    return saved(Image.fromarray(COLOURS), "TIFF", big_tiff=True)


def animation() -> bytes:
    frames = [Image.fromarray(COLOURS), Image.fromarray(COLOURS[::-1])]
    return saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=[35, 50], lossless=True)


def metadata() -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    return saved(Image.fromarray(COLOURS), "JPEG", exif=exif, dpi=(300, 300), comment=b"a comment")


# Odd files, each with the name it is sent under and the format that is asked for.
ODD: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "plain": ("a.png", lambda: encode(Picture(COLOURS), "png"), "auto"),
    "HEIC, which is read only": ("a.heic", heic, "auto"),
    "HEIC as AVIF": ("a.heic", heic, "avif"),
    "PNG that is called JPEG": ("a.jpg", lambda: encode(Picture(COLOURS), "png"), "auto"),
    "transparency as JPEG": ("a.png", lambda: encode(Picture(COLOURS, ALPHA), "png"), "jpg"),
    "transparency as GIF": ("a.png", lambda: encode(Picture(COLOURS, ALPHA), "png"), "gif"),
    "16 bits as JPEG": ("a.png", lambda: encode(Picture(COLOURS.astype(np.uint16) * 257), "png"), "jpg"),
    "16 bits": ("a.tif", lambda: encode(Picture(COLOURS.astype(np.uint16) * 257), "tiff"), "auto"),
    "pages": ("a.tif", pages, "auto"),
    "pages as PNG": ("a.tif", pages, "png"),
    "animation": ("a.webp", animation, "auto"),
    "animation as GIF": ("a.webp", animation, "gif"),
    "animation as JPEG": ("a.webp", animation, "jpg"),
    "metadata as BMP": ("a.jpg", metadata, "bmp"),
    "metadata": ("a.jpg", metadata, "auto"),
    "grey": ("a.png", lambda: encode(Picture(COLOURS[..., 0]), "png"), "auto"),
    "no picture": ("a.jpg", lambda: b"this is no picture, whatever its name says", "auto"),
    "BigTIFF": ("a.tif", bigtiff, "auto"),
    "cut": ("a.png", lambda: encode(Picture(COLOURS), "png")[:-40], "auto"),
}


@dataclass(frozen=True)
class Outcome:
    """What a front end gave: the file, or why there is none; and what it told."""

    content: bytes | None
    warnings: tuple[str, ...]
    refusal: str | None


def command(
    folder: Path, model: Path, name: str, content: bytes, format: str, long_side_px: int | None = None
) -> Outcome:
    """By the command line, a file in a folder."""
    (folder / "in").mkdir(parents=True)
    (folder / "in" / name).write_bytes(content)
    report = folder / "report.json"
    options = [] if long_side_px is None else ["--long-side", str(long_side_px)]
    srgan("upscale", folder / "in", "-o", folder / "out", "-n", model, "-f", format, "--json", report, *options)
    (file,) = json.loads(report.read_text())["files"]
    made = Path(file["target"]).read_bytes() if file["target"] else None
    refusal = file["error"] and nameless(file["error"].removeprefix(f"{folder / 'in' / name}: "))
    # Only a file has a name that can be wrong.
    warnings = tuple(warning for warning in file["warnings"] if "so the result is named" not in warning)
    return Outcome(made, warnings, refusal)


def pipe(folder: Path, model: Path, name: str, content: bytes, format: str) -> Outcome:
    """Through pipes."""
    folder.mkdir(parents=True)
    report = folder / "report.json"
    done = srgan("upscale", "-", "-n", model, "-f", format, "--json", report, data=content)
    (file,) = json.loads(report.read_text())["files"]
    return Outcome(done.stdout or None, tuple(file["warnings"]), file["error"] and nameless(file["error"]))


def request(client: httpx.Client, content: bytes, format: str, long_side_px: int | None = None) -> Outcome:
    """As a request; its warnings come in a header, which shortens and respells them."""
    answer = client.post(f"/v1/upscale?{query(format, long_side_px)}", content=content)
    if answer.status_code != 200:
        return Outcome(None, (), nameless(answer.json()["detail"]))
    header = answer.headers.get("X-Warnings", "")
    return Outcome(answer.content, tuple(re.findall(r'"((?:[^"\\]|\\.)*)"', header)), None)


def job(running: Running, name: str, content: bytes, format: str, long_side_px: int | None = None) -> Outcome:
    """As a job."""
    files = {"image": (name, content)}
    accepted = running.client.post(f"/v1/jobs?{query(format, long_side_px)}", files=files)
    if accepted.status_code >= 400:
        return Outcome(None, (), nameless(accepted.json()["detail"]))
    finished = ended(running, accepted.headers["location"])
    (file,) = finished["files"]
    if file["error"]:
        return Outcome(None, (), nameless(file["error"]["detail"]))
    result = running.client.get(f"/v1/jobs/{finished['id']}/result")
    return Outcome(result.content, tuple(file["warnings"]), None)


def query(format: str, long_side_px: int | None) -> str:
    size = "" if long_side_px is None else f"&long_side={long_side_px}"
    return f"metadata=keep&format={format}{size}"


def nameless(message: str) -> str:
    """A refusal without what the front end calls the picture: its name, or it."""
    return message.removeprefix("-: ").removeprefix("the picture: ").removeprefix("it ")


def srgan(*arguments: str | Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run([sys.executable, "-m", "srgan", *arguments], input=data, capture_output=True)
    assert b"Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Running]:
    data_dir = str(tmp_path_factory.mktemp("data"))
    with serving(model=str(tiny_model), jobs=True, data_dir=data_dir, job_poll_s=0.05) as server:
        yield server


@pytest.mark.parametrize("kind", ODD)
def test_all_front_ends_make_the_same_of_odd_files(
    kind: str, tmp_path: Path, tiny_model: Path, running: Running
) -> None:
    name, build, format = ODD[kind]
    content = build()
    by_folder = command(tmp_path / "folder", tiny_model, name, content, format)
    assert (by_folder.content is None) == (by_folder.refusal is not None)
    assert pipe(tmp_path / "pipe", tiny_model, name, content, format) == by_folder
    assert job(running, name, content, format) == by_folder
    by_request = request(running.client, content, format)
    assert (by_request.content, by_request.refusal) == (by_folder.content, by_folder.refusal)
    assert spelt(by_request.warnings) == spelt(by_folder.warnings)


# Of 8 and 12 megapixels: four times as much would take minutes, so a small result is asked for.
LARGE = {"a33.tif", "avif_12MP_oom.avif"}


def test_all_front_ends_make_the_same_of_files_that_came_out_wrong_once(
    shared: Path, tmp_path: Path, tiny_model: Path, running: Running
) -> None:
    files = [path for path in sorted((shared / "repro").iterdir()) if path.suffix != ".onnx"]
    assert {path.name for path in files} >= LARGE
    for number, path in enumerate(files):
        content, name = path.read_bytes(), f"a{path.suffix}"
        long_side_px = 200 if path.name in LARGE else None
        by_folder = command(tmp_path / f"{number}", tiny_model, name, content, "auto", long_side_px)
        assert (by_folder.content is None) == (by_folder.refusal is not None), path
        assert job(running, name, content, "auto", long_side_px) == by_folder, path
        by_request = request(running.client, content, "auto", long_side_px)
        if path.name in LARGE and by_request.refusal and "/v1/jobs" in by_request.refusal:
            continue  # by what it has measured the service takes it for a job
        assert (by_request.content, by_request.refusal) == (by_folder.content, by_folder.refusal), path
        assert spelt(by_request.warnings) == spelt(by_folder.warnings), path


def spelt(warnings: tuple[str, ...]) -> str:
    """As the header spells them."""
    return warnings_header([warning.replace("\\", "") for warning in warnings]).get("X-Warnings", "")


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra cluster")
def test_a_cluster_makes_the_same_of_odd_files(tmp_path: Path, tiny_model: Path) -> None:
    """All files in one run, since to start a cluster takes longer than the rest."""
    (tmp_path / "in").mkdir()
    for number, kind in enumerate(kind for kind, (_, _, format) in ODD.items() if format == "auto"):
        name, build, _ = ODD[kind]
        (tmp_path / "in" / f"{number}-{name}").write_bytes(build())
    reports = {}
    for runner in ("local", "ray"):
        out, report = tmp_path / runner, tmp_path / f"{runner}.json"
        srgan(
            *map(
                str,
                ["upscale", tmp_path / "in", "-o", out, "-n", tiny_model, "--runner", runner, "--json", report],
            )
        )
        files = json.loads(report.read_text())["files"]
        reports[runner] = {
            file["source"]: (
                file["target"] and Path(file["target"]).read_bytes(),
                file["target"] and Path(file["target"]).name,
                file["warnings"],
                file["error"],
            )
            for file in files
        }
    assert len(reports["local"]) > 8
    assert reports["ray"] == reports["local"]


# The function itself


def test_what_a_format_cannot_hold_is_refused_where_it_was_asked_for_and_else_becomes_png() -> None:
    picture = Picture(COLOURS, format="heic")
    decision = decide(picture, Order(), UPSCALER)
    assert (decision.format, decision.warnings) == ("png", ("HEIC is read but not written, so the result is PNG",))
    with pytest.raises(FormatError, match="JPEG cannot hold transparency; choose another format, or auto"):
        decide(Picture(COLOURS, ALPHA), Order(format="jpg"), UPSCALER)
    with pytest.raises(FormatError, match="HEIC is read but not written, and PNG cannot hold several pages"):
        decide(Picture(COLOURS, format="heic", further=(Picture(COLOURS),)), Order(), UPSCALER)
    too_wide = Picture(np.zeros((1, 5000, 3), np.uint8), format="webp")
    assert decide(too_wide, Order(), UPSCALER).format == "png"


def test_nothing_is_upscaled_before_it_is_known_that_it_can_be_written() -> None:
    engine = NearestEngine()
    with pytest.raises(FormatError):
        decide(Picture(COLOURS, ALPHA), Order(format="jpg"), Upscaler(engine=engine))
    assert engine.calls == []


def test_a_result_is_named_after_its_true_format() -> None:
    decision = decide(Picture(COLOURS, format="webp"), Order(), UPSCALER)
    named, place = decision.named(Path("a_x4.jpg"))
    assert place == Path("a_x4.webp")
    assert named.warnings == ("the file is in truth WEBP, so the result is named a_x4.webp",)
    same, place = decision.named(Path("a_x4.WEBP"))
    assert (same, place) == (decision, Path("a_x4.WEBP"))
    # What has been said already is not said in other words.
    decision = decide(Picture(COLOURS, format="heic"), Order(), UPSCALER)
    assert decision.named(Path("a_x4.heic")) == (decision, Path("a_x4.png"))


def test_the_inference_alone_is_in_the_turn() -> None:
    inside: list[str] = []

    class Turn:
        def __enter__(self) -> None:
            inside.append("entered")

        def __exit__(self, *_: object) -> None:
            inside.append("left")

    class Seen(NearestEngine):
        def run(self, lr: np.ndarray) -> np.ndarray:
            inside.append("inference")
            return super().run(lr)

    upscaler = Upscaler(engine=Seen())
    made = make(decide(Picture(COLOURS), Order(), upscaler), upscaler, turn=Turn())
    assert inside == ["entered", "inference", "left"]
    assert (decode(made.content).pixels == made.picture.pixels).all()


def test_metadata_is_kept_or_stripped_and_what_is_stripped_is_not_told_as_lost() -> None:
    picture = Picture(COLOURS, texts=(("Title", "a title"),), dpi=(300.0, 300.0))
    kept = make(decide(picture, Order(format="webp"), UPSCALER), UPSCALER)
    assert kept.warnings == ("WEBP cannot hold the texts of the file",)
    bare = make(decide(picture, Order(format="webp", metadata="strip"), UPSCALER), UPSCALER)
    assert bare.warnings == ()
    assert stripped(picture).texts == ()


def test_an_order_has_one_fingerprint_for_what_decides_on_a_result() -> None:
    order = Order(Request(2), format="png", quality=80)
    others = [
        Order(Request(3), format="png", quality=80),
        Order(Request(2), format="jpg", quality=80),
        Order(Request(2), format="png", quality=81),
        Order(Request(2), format="png", quality=80, metadata="strip"),
        Order(Request(2), format="png", quality=80, hdr="drop"),
    ]
    prints = {each.fingerprint("model", 4) for each in (order, *others)} | {order.fingerprint("another", 4)}
    assert len(prints) == 7
    assert order.fingerprint("model", 4) == Order(Request(2), format="png", quality=80).fingerprint("model", 4)
    # The model's own scale is the same asked for or not, and only its own.
    assert Order(Request(4)).fingerprint("model", 4) == Order().fingerprint("model", 4)
    assert Order(Request(4)).fingerprint("model", 2) != Order().fingerprint("model", 2)


@pytest.mark.parametrize("settings", [{"quality": 0}, {"quality": 101}, {"format": "bogus"}, {"format": "jpeg"}])
def test_orders_that_make_no_sense(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Order(**settings)  # type: ignore[arg-type]


def test_names_of_formats() -> None:
    assert [known_format(name) for name in ("auto", "jpeg", "TIF", "png")] == [AUTO, "jpg", "tiff", "png"]
    assert format_of_name(Path("a.TIFF"), AUTO) == format_of_name(Path("a.tif"), "tiff") == "tiff"
    assert {known_format(format) for format in FORMATS} == set(FORMATS)
    with pytest.raises(UsageError, match="unknown format 'heic'"):
        known_format("heic")
    with pytest.raises(UsageError, match="the name says png but -f says jpg"):
        format_of_name(Path("a.png"), "jpg")
