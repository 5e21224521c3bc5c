"""Training pictures of every depth and with transparency, by value: as 8-bit RGB, and what changed is told."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srgan import pictures
from srgan.commands import data
from srgan.training.config import load_recipe
from srgan.training.data import check as data_check
from srgan.training.data.cache import build_cache
from srgan.training.data.check import check, findings, summary
from srgan.training.data.sources import Source, parse_source

HEIGHT, WIDTH = 64, 80
ROUNDED = "16 bits rounded to 8"
ON_WHITE = "transparency laid on white"


def smooth(*channels: int, peak: int = 65535, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Levels whose low bytes are noise and whose high bytes are not: read as bytes they are half noise."""
    random = np.random.default_rng(7)
    y, x = np.mgrid[:height, :width]
    slope = (y / height + x / width) / 2
    planes = [slope * weight for weight in (0.9, 0.6, 0.3, 0.8)[: channels[0] if channels else 1]]
    levels = np.stack(planes, axis=2) if channels else planes[0]
    return np.clip(np.rint(levels * peak) + random.integers(0, 200, levels.shape), 0, peak).astype(np.uint16)


def to_8(levels: np.ndarray, peak: int = 65535) -> np.ndarray:
    rounded = np.rint(levels * (255 / peak)).astype(np.uint8)
    return rounded if rounded.ndim == 3 else np.dstack([rounded] * 3)


def png(path: Path, levels: np.ndarray) -> None:
    """Write 16-bit grey, RGB or RGBA, by the specification."""
    channels = levels.shape[2] if levels.ndim == 3 else 1
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def tiff(path: Path, levels: np.ndarray) -> None:
    """Write 16-bit RGB as one strip, by the specification."""
    height, width, channels = levels.shape
    body = levels.astype("<u2").tobytes()
    bits_at = 8 + len(body)
    entries = [
        *((256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, bits_at), (259, 3, 1, 1), (262, 3, 1, 2)),
        *((273, 4, 1, 8), (277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, len(body))),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    bits = struct.pack(f"<{channels}H", *[16] * channels)
    head = struct.pack("<2sHI", b"II", 42, bits_at + len(bits))
    path.write_bytes(head + body + bits + directory + bytes(4))


def ppm(path: Path, levels: np.ndarray, peak: int) -> None:
    kind = b"P6" if levels.ndim == 3 else b"P5"
    head = b"%s %d %d %d\n" % (kind, levels.shape[1], levels.shape[0], peak)
    path.write_bytes(head + levels.astype(">u2").tobytes())


def heic(path: Path, levels: np.ndarray) -> None:
    heif = pytest.importorskip("pillow_heif")
    encoded = heif.from_bytes(mode="RGB;16", size=(levels.shape[1], levels.shape[0]), data=levels.tobytes())
    encoded.save(path, quality=-1)


Make = Callable[[Path], np.ndarray]


def deep(name: str, write: Callable[[Path], None], expected: np.ndarray) -> tuple[str, Make]:
    def make(folder: Path) -> np.ndarray:
        write(folder / name)
        return expected

    return name, make


GREY, RGB = smooth(), smooth(3)
FLOATS = GREY.astype(np.float32) / 65535
DEEP = dict(
    [
        deep("grey.png", lambda path: png(path, GREY), to_8(GREY)),
        deep("rgb.png", lambda path: png(path, RGB), to_8(RGB)),
        deep("grey.tif", lambda path: Image.fromarray(GREY).save(path), to_8(GREY)),
        deep("rgb.tif", lambda path: tiff(path, RGB), to_8(RGB)),
        deep("float.tif", lambda path: Image.fromarray(FLOATS).save(path), to_8(GREY)),
        deep("grey.pgm", lambda path: ppm(path, GREY, 65535), to_8(GREY)),
        deep("rgb.ppm", lambda path: ppm(path, RGB, 65535), to_8(RGB)),
        deep("ten.ppm", lambda path: ppm(path, RGB // 64, 1023), to_8(RGB // 64, 1023)),
    ]
)


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_become_the_nearest_8(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    expected = DEEP[name](folder)
    cache = build_cache([folder], tmp_path / "cache")
    assert np.array_equal(cache.picture(0).numpy(), expected)
    assert ROUNDED in cache.notes[0]
    assert float(cache.energy.max()) < 8  # a slope: noise of the low bytes would be about 170


def test_10_bits_of_heic(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    heic(folder / "a.heic", RGB)
    cache = build_cache([folder], tmp_path / "cache")
    assert np.abs(cache.picture(0).numpy().astype(int) - to_8(RGB)).max() <= 4  # HEIC itself is not exact
    assert ROUNDED in cache.notes[0]


@pytest.mark.parametrize("name", DEEP)
def test_shipped_lr_of_more_than_8_bits(tmp_path: Path, name: str) -> None:
    for folder in ("hr", "lr"):
        (tmp_path / folder).mkdir()
    lr = DEEP[name](tmp_path / "lr")
    stem = Path(name).stem
    hr = to_8(smooth(3, height=4 * HEIGHT, width=4 * WIDTH))
    Image.fromarray(hr).save(tmp_path / "hr" / f"{stem}.png")
    cache = build_cache([parse_source(f"{tmp_path / 'hr'}:{tmp_path / 'lr'}")], tmp_path / "cache")
    packed = cache.lr_picture(0)
    assert packed is not None
    assert np.array_equal(packed.numpy(), lr)
    assert np.array_equal(cache.picture(0).numpy(), hr)
    assert f"LR: {ROUNDED}" in cache.notes[0]


def test_a_photograph_of_16_bits_is_what_it_looks_like(shared: Path, tmp_path: Path) -> None:
    path = shared / "repro" / "train16.png"
    if not path.exists():
        pytest.skip("no such file")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / path.name).write_bytes(path.read_bytes())
    packed = build_cache([folder], tmp_path / "cache").picture(0).numpy().astype(int)
    with Image.open(path) as opened:  # Pillow cuts the low bytes off
        assert np.abs(packed - np.asarray(opened.convert("RGB"))).max() <= 1


# Transparency: laid on white, for the colours under it are arbitrary


def over_white(colours: np.ndarray, alpha: np.ndarray, peak: int = 255) -> np.ndarray:
    opacity = alpha[..., None] / peak
    laid: np.ndarray = np.rint(colours * opacity + peak * (1 - opacity))
    return laid


def transparent() -> tuple[np.ndarray, np.ndarray]:
    """Colours that are noise where alpha hides them."""
    colours = to_8(RGB)
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:, 40:] = 0
    alpha[:, 30:40] = np.arange(10) * 25
    colours[:, 40:] = np.random.default_rng(1).integers(0, 256, (HEIGHT, 40, 3))
    return colours, alpha


def rgba(path: Path) -> np.ndarray:
    colours, alpha = transparent()
    Image.fromarray(np.dstack([colours, alpha])).save(path)
    return over_white(colours, alpha)


def grey_alpha(path: Path) -> np.ndarray:
    colours, alpha = transparent()
    Image.fromarray(np.dstack([colours[..., 0], alpha])).save(path)
    return over_white(np.dstack([colours[..., 0]] * 3), alpha)


def palette(path: Path) -> np.ndarray:
    colours, alpha = transparent()
    image = Image.fromarray(colours).quantize(200)
    indices = np.asarray(image).copy()
    indices[alpha == 0] = 5
    cleared = image.copy()
    cleared.putdata(indices.ravel().tolist())
    cleared.save(path, transparency=5)
    shown = np.asarray(cleared.convert("RGB"))
    return np.where((indices == 5)[..., None], 255, shown)


def rgba16(path: Path) -> np.ndarray:
    _, alpha8 = transparent()
    alpha = alpha8.astype(np.uint16) * 257
    png(path, np.dstack([RGB, alpha]))
    return np.rint(over_white(RGB, alpha, 65535) / 257)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("rgba.png", rgba),
        ("rgba.tif", rgba),
        ("grey.png", grey_alpha),
        ("palette.png", palette),
        ("palette.gif", palette),
        ("deep.png", rgba16),
    ],
)
def test_transparency_is_laid_on_white(tmp_path: Path, name: str, make: Make) -> None:
    for folder in ("hr", "lr"):
        (tmp_path / folder).mkdir()
    expected = make(tmp_path / "lr" / name)
    Image.fromarray(to_8(smooth(3, height=4 * HEIGHT, width=4 * WIDTH))).save(
        tmp_path / "hr" / Path(name).with_suffix(".png")
    )
    alone = build_cache([tmp_path / "lr"], tmp_path / "cache")
    assert np.array_equal(alone.picture(0).numpy(), expected)
    assert ON_WHITE in alone.notes[0]
    paired = build_cache([parse_source(f"{tmp_path / 'hr'}:{tmp_path / 'lr'}")], tmp_path / "cache")
    packed = paired.lr_picture(0)
    assert packed is not None
    assert np.array_equal(packed.numpy(), expected)
    assert f"LR: {ON_WHITE}" in paired.notes[0]


def test_alpha_that_hides_nothing_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    colours, alpha = transparent()
    Image.fromarray(np.dstack([colours, np.full_like(alpha, 255)])).save(folder / "a.png")
    cache = build_cache([folder], tmp_path / "cache")
    assert np.array_equal(cache.picture(0).numpy(), colours)
    assert cache.notes == [""]


# What else a picture may be


def test_animations_and_pages_give_their_first(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    first, second = to_8(RGB), 255 - to_8(RGB)
    images = [Image.fromarray(pixels) for pixels in (first, second)]
    images[0].save(folder / "a.png", save_all=True, append_images=images[1:], duration=50)
    images[0].save(folder / "b.tif", save_all=True, append_images=images[1:])
    cache = build_cache([folder], tmp_path / "cache")
    assert all(np.array_equal(cache.picture(index).numpy(), first) for index in (0, 1))
    assert cache.notes == ["only the first frame", "only the first page"]


def test_turned_and_cmyk_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned right by 90 degrees
    Image.fromarray(to_8(RGB)).save(folder / "turned.png", exif=exif)
    Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0)).save(folder / "x.jpg", quality=100)
    cache = build_cache([folder], tmp_path / "cache")
    assert np.array_equal(cache.picture(0).numpy(), np.rot90(to_8(RGB), -1))
    red, green, blue = cache.picture(1).numpy().reshape(-1, 3).mean(0)
    assert red > 200 > 80 > max(green, blue)
    assert "CMYK" in cache.notes[1]


def test_the_check_and_the_run_say_so(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data_check, "measured", lambda *_: None)
    folder = tmp_path / "in"
    folder.mkdir()
    png(folder / "deep.png", RGB)
    rgba(folder / "clear.png")
    Image.fromarray(to_8(smooth(3))[::-1].copy()).save(folder / "plain.png")
    result = check([Source(folder)], load_recipe(recipe), timed=False)
    assert result.unusual == {ROUNDED: 1, ON_WHITE: 1}
    data.check([folder], None, None, recipe)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"1 pictures: {ROUNDED}" in printed
    assert f"1 pictures: {ON_WHITE}" in printed
    log = summary(findings(build_cache([folder], tmp_path / "cache"), load_recipe(recipe)))
    assert f"1 pictures: {ROUNDED}" in log
    assert f"1 pictures: {ON_WHITE}" in log


def test_a_sheet_of_patches_shows_what_is_trained_on(tmp_path: Path, recipe: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    flat = np.full((HEIGHT, WIDTH, 3), 30_000, np.uint16)
    png(folder / "flat.png", flat)
    data.preview([folder], tmp_path / "sheet.png", recipe, count=1)
    sheet = pictures.decode(tmp_path / "sheet.png").pixels
    level = round(30_000 / 257)
    assert set(np.unique(sheet).tolist()) <= {level - 1, level, level + 1, 255}
    assert (sheet == level).mean() > 0.5
