"""Times of animations: written as near as the format can to what the file says, and told where not."""

from __future__ import annotations

import io
import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from srgan.pictures import Picture, decode, encode, losses

FORMATS = ["png", "webp", "gif", "avif"]

# The longest that a frame is shown, by the widths of the fields: see the specifications of each format.
MOST_MS = {"png": 65_535_000, "webp": 2**24 - 1, "gif": 655_350, "avif": 2**32 - 1}


def animation(*durations_ms: float, plays: int = 0, same: int = 0) -> Picture:
    """Frames of different greys but for the first ones, `same` of them."""
    frames = [
        Picture(np.full((8, 8, 3), 37 * max(0, number - same + 1) % 256, np.uint8), duration_ms=duration)
        for number, duration in enumerate(durations_ms)
    ]
    return replace(frames[0], further=tuple(frames[1:]), plays=plays)


def by_pillow(content: bytes) -> list[float]:
    with Image.open(io.BytesIO(content)) as image:
        durations = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            image.load()
            durations.append(float(image.info["duration"]))
        return durations


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("absurd_ms", [2.0**24, 2.0**31, 2.0**32, 2.0**40, 2.0**63, float("inf")])
def test_a_frame_for_ages_costs_no_picture(format: str, absurd_ms: float) -> None:
    picture = animation(absurd_ms, 20, absurd_ms)
    content = encode(picture, format)
    expected = min(absurd_ms, MOST_MS[format])
    np.testing.assert_allclose(by_pillow(content), [expected, 20, expected], atol=500 if format == "png" else 0)
    told = [words for words in losses(picture, format) if "cannot show a frame for so long" in words]
    assert bool(told) == (absurd_ms > expected)
    assert all(f"{MOST_MS[format] / 1000:.10g} seconds" in words for words in told)


@pytest.mark.parametrize("format", FORMATS)
def test_usual_times_are_kept_and_nothing_is_told(format: str) -> None:
    picture = animation(10, 100, 65_540, 600_000)
    assert by_pillow(encode(picture, format)) == [10, 100, 65_540, 600_000]
    assert losses(picture, format) == ()


def test_thirty_frames_a_second_stay_so_in_png_and_are_told_elsewhere() -> None:
    picture = animation(1000 / 30, 1000 / 30)
    assert struct.pack(">HH", 1, 30) in encode(picture, "png")
    assert losses(picture, "png") == ()
    for format, words in {"webp": "thousandths", "avif": "thousandths", "gif": "hundredths"}.items():
        assert any(words in lost for lost in losses(picture, format))


def test_what_png_says_of_long_times_is_near() -> None:
    for seconds in (65.536, 100.001, 655.359, 16777.215, 65534.7):
        (written, _) = by_pillow(encode(animation(seconds * 1000, 10), "png"))
        assert abs(written / 1000 - seconds) <= 0.5 * seconds / 65535 + 0.001


def test_webp_bounds_the_sum_and_says_so() -> None:
    """Of 200 frames: 24 bits for each would be more than 31 bits together."""
    picture = animation(*[2.0**24 - 1] * 200)
    assert sum(by_pillow(encode(picture, "webp"))) <= 2**31 - 1
    assert any("10737.418 seconds" in words for words in losses(picture, "webp"))


@pytest.mark.parametrize("format", FORMATS)
def test_equal_frames_that_become_one_are_shown_as_long_as_that_can_be(format: str) -> None:
    picture = animation(400_000, 400_000, 10, same=2)
    shown = sum(by_pillow(encode(picture, format)))
    assert shown == (MOST_MS["gif"] + 10 if format == "gif" else 800_010)
    assert bool(losses(picture, format)) == (format == "gif")


@pytest.mark.parametrize(("format", "most"), [("gif", 2**16), ("webp", 2**16 - 1), ("png", 2**32 - 1)])
def test_more_plays_than_a_format_can_count_are_told(format: str, most: int) -> None:
    for asked in (most, most + 1, 2**40):
        picture = animation(20, 30, plays=asked)
        assert decode(encode(picture, format)).plays == most
        assert bool(losses(picture, format)) == (asked > most)
    assert any(f"play {most} times, and not {2**40} times" in words for words in losses(picture, format))
