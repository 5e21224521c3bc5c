"""GIF: what is seen of each frame, judged by ImageMagick; and files that end before their pictures do."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srgan.errors import PictureError
from srgan.pictures import Picture, decode, encode, losses
from srgan.pictures.formats.damage import NO_END


def animation(disposal: int, clear: bool = False) -> bytes:
    """Four frames; those behind the first are parts, by Pillow's optimiser or by their position."""
    images = []
    for index in range(4):
        levels = np.zeros((16, 24, 3), np.uint8)
        levels[4:10, 3 * index : 3 * index + 8] = [(200, 30, 40), (20, 180, 60), (30, 60, 210), (9, 9, 9)][index]
        image = Image.fromarray(levels).quantize(8)
        if clear:
            image.info["transparency"] = image.getpixel((23, 15))
        images.append(image)
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=images[1:],
        duration=[100, 0, 50, 70],
        disposal=[1, disposal, disposal, 1],
    )
    return buffer.getvalue()


def coalesced(content: bytes) -> list[np.ndarray]:
    """(H,W,4) of each frame, by ImageMagick."""
    program = Path("/usr/bin/convert")
    if not program.exists() and not shutil.which("magick"):
        pytest.skip("no ImageMagick")
    command = [str(program)] if program.exists() else ["magick"]
    sheet = subprocess.run(
        [*command, "gif:-", "-coalesce", "-background", "none", "-append", "png32:-"],
        input=content,
        capture_output=True,
        check=True,
    ).stdout
    with Image.open(io.BytesIO(sheet)) as image:
        return np.split(np.asarray(image.convert("RGBA")), 4)


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("disposal", [0, 1, 2, 3])
def test_frames_are_those_of_imagemagick(disposal: int, clear: bool) -> None:
    content = animation(disposal, clear)
    frames = decode(content).frames
    assert [frame.duration_ms for frame in frames] == [100, 0, 50, 70]
    for frame, expected in zip(frames, coalesced(content), strict=True):
        alpha = np.full(expected.shape[:2], 255) if frame.alpha is None else frame.alpha
        np.testing.assert_array_equal(alpha, expected[..., 3])
        np.testing.assert_array_equal(frame.pixels[alpha > 0], expected[alpha > 0][:, :3])


def test_a_gif_that_ends_in_zeros_is_damaged_and_not_shorter() -> None:
    content = animation(1)
    for share in (0.4, 0.6, 0.8):
        cut = int(len(content) * share)
        with pytest.raises(PictureError, match="damaged"):
            decode(content[:cut] + bytes(len(content) - cut))
    assert len(decode(content[:-1] + bytes(3) + b";").frames) == 4  # some programs pad


@pytest.mark.parametrize("name", ["gif-half-zeros.gif"])
def test_the_file_that_was_taken_for_a_shorter_one(name: str, shared: Path) -> None:
    path = shared / "repro" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    with pytest.raises(PictureError, match="damaged"):
        decode(path)


def test_few_colours_are_held_and_many_are_told() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    three = np.array([(1, 2, 3), (250, 7, 90), (30, 200, 31)], np.uint8)[grey % 3]
    many = np.dstack([np.tile(grey, 2), np.tile(grey.T, 2), np.repeat(grey, 2, axis=1)])
    half = np.where(grey < 8, 0, 255).astype(np.uint8)
    exact = [
        Picture(grey),
        Picture(three),
        Picture(np.dstack([grey] * 3)),
        Picture(three, half),
        Picture(grey, half),
    ]
    for picture in exact:
        again = decode(encode(picture, "gif"))
        assert losses(picture, "gif") == ()
        seen = np.ones(grey.shape, bool) if picture.alpha is None else picture.alpha > 0
        levels = picture.pixels if picture.pixels.ndim == 3 else np.dstack([picture.pixels] * 3)
        found = again.pixels if again.pixels.ndim == 3 else np.dstack([again.pixels] * 3)
        np.testing.assert_array_equal(found[seen], levels[seen])
    for picture in (Picture(many), replace(Picture(three), further=(Picture(many),))):
        assert any("256 colours" in words for words in losses(picture, "gif"))


def moving(count: int = 5) -> tuple[bytes, list[np.ndarray]]:
    """Return an animation of noise, and its frames as they are seen."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).quantize(64) for _ in range(count)]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=50)
    return buffer.getvalue(), [np.asarray(image.convert("RGB")) for image in images]


def test_an_animation_that_is_cut_is_refused_and_its_whole_frames_are_taken() -> None:
    content, frames = moving()
    starts = [match.start() for match in re.finditer(rb"!\xf9\x04", content)]
    for place, count in ((starts[3], 3), (starts[3] - 50, 2), (starts[2] + 3, 2), (len(content) - 1, 5)):
        cut = content[:place]
        for behind in (b"", bytes(500)):
            with pytest.raises(PictureError, match="damaged or incomplete: it is cut short"):
                decode(cut + behind)
            picture = decode(cut + behind, accept_damaged=True)
            assert len(picture.frames) == count
            for seen, expected in zip(picture.frames, frames, strict=False):
                np.testing.assert_array_equal(seen.pixels, expected)
            assert picture.warnings == (
                f"it is damaged or cut short: only its first {count} frames are whole; what followed was not kept",
            )


@pytest.mark.parametrize("interlace", [0, 1])
def test_a_picture_that_is_cut_is_taken_as_far_as_it_goes(interlace: int) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)).quantize(200)
    buffer = io.BytesIO()
    image.save(buffer, "GIF", interlace=interlace)
    content = buffer.getvalue()
    whole = decode(content).pixels
    codes = 13 + 3 * 256
    for share in (0.3, 0.6, 0.95):
        cut = content[: int(codes + (len(content) - codes) * share)]
        with pytest.raises(PictureError, match="damaged or incomplete: it is cut short"):
            decode(cut)
        picture = decode(cut, accept_damaged=True)
        right = (picture.pixels == whole).all(axis=2).mean()
        told = int(picture.warnings[0].split("%")[0].rsplit(" ", 1)[-1])
        assert told <= 100 * right < told + 2
    assert decode(content[:-1]).warnings == (NO_END,)
    np.testing.assert_array_equal(decode(content[:-1]).pixels, whole)


@pytest.mark.parametrize("content", [moving(2)[0], moving(1)[0]])
def test_the_shape_of_pixels_is_told(content: bytes) -> None:
    for told, words in ((0, None), (49, None), (113, "128:64"), (17, "32:64")):
        edited = content[:12] + bytes([told]) + content[13:]
        expected = f"its pixels are not square ({words}), which was not kept"
        assert decode(edited).warnings == ((expected,) if words else ())
