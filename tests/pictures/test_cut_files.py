"""Files that are cut short, or end in zeros: refused, or with `accept_damaged` taken as far as they are whole."""

from __future__ import annotations

import io
import re
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from srgan.errors import PictureError
from srgan.pictures import Picture, decode

HEIGHT, WIDTH = 96, 64

FORMATS: dict[str, dict[str, Any]] = {
    "WEBP": {},
    "WEBP lossless": {"lossless": True},
    "AVIF": {"quality": 100},
    "HEIF": {"quality": 100},
    "BMP": {},
    "PPM": {},
}


def noise(seed: int = 0, channels: tuple[int, ...] = (3,)) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 4, WIDTH // 4, *channels), np.uint8)
    return coarse.repeat(4, axis=0).repeat(4, axis=1)


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    if format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    buffer = io.BytesIO()
    image.save(buffer, format.split()[0], **options)
    return buffer.getvalue()


def whole_percent(picture: Picture) -> int:
    (words,) = [words for words in picture.warnings if "of its picture is whole" in words]
    return int(re.findall(r"(\d+)%", words)[0])


def rows_as_they_were(picture: Picture, original: Picture) -> float:
    """Return the share of rows, from the top or from the bottom, that are as in `original`."""
    same = (picture.pixels == original.pixels).reshape(picture.height, -1).all(1)
    return max(len(rows) if rows.all() else int(rows.argmin()) for rows in (same, same[::-1])) / len(same)


@pytest.mark.parametrize("ending", ["cut", "zeros"])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_said_to_be_whole_is_as_it_was(name: str, ending: str) -> None:
    content = saved(Image.fromarray(noise()), name, **FORMATS[name])
    original = decode(content)
    assert original.warnings == ()
    if ending == "zeros" and name in ("BMP", "PPM"):
        pytest.skip("zeros are black there: nothing tells")
    taken: list[int] = []
    refusals: list[str] = []
    for share in (0.7, 0.85, 0.97):
        length = int(share * len(content))
        damaged = content[:length] + (bytes(len(content) - length) if ending == "zeros" else b"")
        with pytest.raises(PictureError, match=r"is damaged or incomplete: it is cut short"):
            decode(damaged)
        try:
            picture = decode(damaged, accept_damaged=True)
        except PictureError as error:
            refusals.append(str(error))
            continue
        percent = whole_percent(picture)
        taken.append(percent)
        assert percent / 100 <= rows_as_they_were(picture, original)
        if name in ("BMP", "PPM", "WEBP lossless"):
            assert percent > 100 * share - 12
    assert all(re.search(r"\d+% of the file is there, of which no part", refusal) for refusal in refusals)
    assert len(taken) >= (1 if name == "HEIF" else 2)
    assert taken == sorted(taken)


def portable(kind: str) -> bytes:
    levels = noise(channels=()).astype(int)
    head = f"{kind} {WIDTH} {HEIGHT} "
    match kind:
        case "P4":
            return head.encode() + np.packbits(levels > 127, axis=1).tobytes()
        case "P2" | "P3":
            values = levels if kind == "P2" else noise()
            return (head + "300 " + " ".join(map(str, values.ravel()))).encode() + b"\n"
        case "P5":
            return head.encode() + b"65535\n" + (levels * 257).astype(">u2").tobytes()
        case "P6":
            return head.encode() + b"1000\n" + noise().astype(">u2").tobytes()
        case _:
            return b"Pf %d %d -1.0\n" % (WIDTH, HEIGHT) + (levels / 255).astype("<f4").tobytes()


@pytest.mark.parametrize("kind", ["P2", "P3", "P4", "P5", "P6", "Pf"])
def test_every_kind_of_netpbm(kind: str) -> None:
    content = portable(kind)
    original = decode(content)
    damaged = content[: int(0.6 * len(content))]
    with pytest.raises(PictureError, match=r"it is cut short$"):
        decode(damaged)
    picture = decode(damaged, accept_damaged=True)
    assert 50 <= whole_percent(picture) <= 100 * rows_as_they_were(picture, original)


def run_lengths() -> bytes:
    """A BMP file of 8 bits and run lengths (compression 1): rows of one colour each, in two runs."""
    palette = b"".join(bytes([level, level // 2, 255 - level, 0]) for level in range(256))
    rows = b"".join(bytes([40, 255 - row, WIDTH - 40, row, 0, 0]) for row in range(HEIGHT))
    data = rows[:-2] + b"\0\1"
    start = 14 + 40 + len(palette)
    sizes = struct.pack("<LllHHLLllLL", 40, WIDTH, HEIGHT, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<LHHL", start + len(data), 0, 0, start) + sizes + palette + data


@pytest.mark.parametrize("ending", ["cut", "zeros"])
def test_run_lengths(ending: str) -> None:
    content = run_lengths()
    assert (decode(content).pixels[0, ::40, 0] == decode(content).pixels[0, 0, 0]).sum() == 1
    damaged = content[:-200] + (bytes(200) if ending == "zeros" else b"")
    with pytest.raises(PictureError, match=r"it is cut short"):
        decode(damaged)
    with pytest.raises(PictureError, match=r"88% of the file is there, of which no part of a picture"):
        decode(damaged, accept_damaged=True)


@pytest.mark.parametrize("ending", ["cut", "zeros"])
def test_frames_of_webp_that_are_whole_are_kept(ending: str) -> None:
    images = [Image.fromarray(noise(seed)) for seed in range(4)]
    content = saved(images[0], "WEBP", save_all=True, append_images=images[1:], duration=50)
    frames = decode(content).frames
    length = content.rindex(b"ANMF") + 200  # in the fourth
    damaged = content[:length] + (bytes(len(content) - length) if ending == "zeros" else b"")
    with pytest.raises(PictureError, match=r"it is cut short"):
        decode(damaged)
    picture = decode(damaged, accept_damaged=True)
    assert any("only its first 3 frames are whole" in words for words in picture.warnings)
    for frame, before in zip(picture.frames, frames[:3], strict=True):
        np.testing.assert_array_equal(frame.pixels, before.pixels)


def test_an_animation_as_avif_is_taken_whole_or_not_at_all() -> None:
    images = [Image.fromarray(noise(seed)) for seed in range(3)]
    content = saved(images[0], "AVIF", save_all=True, append_images=images[1:], duration=50)
    for damaged in (content[:-100], content[:-100] + bytes(100)):
        for accept_damaged in (False, True):
            with pytest.raises(PictureError, match=r"it is cut short"):
                decode(damaged, accept_damaged=accept_damaged)


def test_a_webp_that_lacks_metadata_alone_is_taken_and_told() -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera" * 20
    content = saved(Image.fromarray(noise()), "WEBP", exif=exif.tobytes())
    picture = decode(content[:-30])
    np.testing.assert_array_equal(picture.pixels, decode(content).pixels)
    assert any("cut short behind its picture, which is whole" in words for words in picture.warnings)


@pytest.mark.parametrize("format", ["WEBP", "AVIF", "HEIF"])
@pytest.mark.parametrize(
    ("behind", "told"), [(bytes(300), 0), (b"SEFH" * 50, 200), (b"\0\0\0\x20free" + b"x" * 12, 16)]
)
def test_what_others_put_behind_a_picture_costs_no_pixel(format: str, behind: bytes, told: int) -> None:
    content = saved(Image.fromarray(noise()), format)
    picture = decode(content + behind)
    assert picture.warnings == (f"{told} bytes behind the picture in its file were not kept",) * bool(told)
    np.testing.assert_array_equal(picture.pixels, decode(content).pixels)


@pytest.mark.parametrize("options", [{}, {"quality": 10}, {"lossless": True}])
def test_zeros_of_the_encoders_own_cost_nothing(options: dict[str, Any]) -> None:
    """The lossy encoder ends in hundreds of zeros where all is black."""
    content = saved(Image.new("RGB", (1500, 1500)), "WEBP", **options)
    if not options:
        assert content.endswith(bytes(100))
    assert decode(content).warnings == ()


def test_hostile_lengths_take_no_memory() -> None:
    content = saved(Image.fromarray(noise()), "WEBP")
    for length in (2**31, 2**32 - 2):
        damaged = (
            content[:4] + struct.pack("<L", length) + content[8:16] + struct.pack("<L", length) + content[20:]
        )
        assert decode(damaged, accept_damaged=True).pixels.shape == (HEIGHT, WIDTH, 3)
