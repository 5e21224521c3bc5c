"""The upscaler: exact tiles, faithful levels, no state, no papering over."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.engines import METADATA, NearestEngine
from support.threads import at_once

from srgan import upscale
from srgan.engines.openvino import OpenVinoEngine
from srgan.errors import EngineError, PictureTooLargeError, SrganError, UnknownModelError, UsageError
from srgan.pictures import Picture, encode, resized
from srgan.upscale import MAX_SIDE_PX, Request, Upscaler


class FailingEngine(NearestEngine):
    """Fails from its second tile on."""

    def run(self, lr: np.ndarray) -> np.ndarray:
        if self.calls:
            raise EngineError("out of order")
        return super().run(lr)


def levels(height: int, width: int, channels: int | None = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# Tiled equals whole


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 211), (101, 103)])
@pytest.mark.parametrize("tile", [1, 7, 64])
def test_tiled_equals_whole_in_odd_sizes(tiny_engine: OpenVinoEngine, size: tuple[int, int], tile: int) -> None:
    if tile == 1 and min(size) > 1:
        size = (31, 33)  # a tile for every pixel is slow
    picture = Picture(levels(*size))
    whole = Upscaler(engine=tiny_engine, tile_lr_px="off").upscale(picture).pixels
    tiled = Upscaler(engine=tiny_engine, tile_lr_px=tile).upscale(picture).pixels
    assert whole.shape == (4 * size[0], 4 * size[1], 3)
    assert np.abs(tiled.astype(int) - whole).max() <= 1


# Levels


@pytest.mark.parametrize("channels", [None, 3])
def test_levels_survive_the_way_through_float(channels: int | None) -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = every if channels is None else np.stack([every, every.T, 255 - every], -1)
    result = Upscaler(engine=NearestEngine()).upscale(Picture(pixels))
    np.testing.assert_array_equal(result.pixels, pixels.repeat(4, 0).repeat(4, 1))


def test_values_are_clamped_and_rounded() -> None:
    class Shifted(NearestEngine):
        def run(self, lr: np.ndarray) -> np.ndarray:
            return super().run(lr) + np.float32(0.6 / 255)

    pixels = np.array([[0, 100, 255]], np.uint8)
    result = Upscaler(engine=Shifted()).upscale(Picture(pixels))
    np.testing.assert_array_equal(result.pixels[0, ::4], [1, 101, 255])


def test_grey_stays_grey_and_equals_equal_channels(tiny_engine: OpenVinoEngine) -> None:
    grey = levels(20, 20, None)
    result = Upscaler(engine=tiny_engine).upscale(Picture(grey))
    assert result.is_grey
    as_rgb = tiny_engine.run(np.stack([grey] * 3)[None].astype(np.float32) / 255)[0]
    np.testing.assert_allclose(result.pixels, as_rgb.mean(axis=0).clip(0, 1) * 255, atol=0.5 + 1e-3)


def test_what_a_picture_carries_is_kept() -> None:
    picture = Picture(levels(5, 4), None, b"profile", b"exif", "webp", ("a warning",))
    result = Upscaler(engine=NearestEngine()).upscale(picture)
    assert (result.icc, result.exif, result.format, result.warnings) == (
        b"profile",
        b"exif",
        "webp",
        ("a warning",),
    )


@pytest.mark.parametrize("channels", [None, 3])
def test_16_bits_survive_the_way_through_float(channels: int | None) -> None:
    shape = (64, 64) if channels is None else (64, 64, channels)
    pixels = np.random.default_rng(0).integers(0, 65536, shape, np.uint16)
    result = Upscaler(engine=NearestEngine()).upscale(Picture(pixels, pixels.reshape(64, 64, -1)[..., 0]))
    assert result.alpha is not None
    np.testing.assert_array_equal(result.alpha, pixels.reshape(64, 64, -1)[..., 0].repeat(4, 0).repeat(4, 1))
    opaque = Upscaler(engine=NearestEngine()).upscale(Picture(pixels))
    np.testing.assert_array_equal(opaque.pixels, pixels.repeat(4, 0).repeat(4, 1))


def test_16_bits_are_finer_than_8(tiny_engine: OpenVinoEngine) -> None:
    ramp = np.linspace(20_000, 21_000, 48).astype(np.uint16)[None].repeat(16, 0)
    fine = Upscaler(engine=tiny_engine).upscale(Picture(ramp)).pixels
    assert len(np.unique(fine)) > 100
    coarse = Upscaler(engine=tiny_engine).upscale(Picture((ramp // 257).astype(np.uint8))).pixels
    assert np.abs(fine / 257 - coarse).max() < 2


def test_colours_that_are_all_grey_take_no_tint(tiny_engine: OpenVinoEngine) -> None:
    grey = levels(20, 20, None)
    result = Upscaler(engine=tiny_engine).upscale(Picture(np.repeat(grey[..., None], 3, axis=2)))
    expected = Upscaler(engine=tiny_engine).upscale(Picture(grey)).pixels
    assert result.pixels.shape == (80, 80, 3)
    for channel in range(3):
        np.testing.assert_array_equal(result.pixels[..., channel], expected)


# Frames and pages


def test_every_frame_and_page_is_upscaled() -> None:
    frames = [Picture(levels(5, 4, seed=index), duration_ms=10.0 * index, dpi=(72, 36)) for index in range(3)]
    frames[1] = Picture(levels(7, 3, None, seed=1), levels(7, 3, None, seed=2) // 2 + 100)
    seen: list[float] = []
    whole = replace(frames[0], plays=2, further=tuple(frames[1:]))
    result = Upscaler(engine=NearestEngine()).upscale(whole, progress=seen.append)
    assert [(frame.height, frame.width) for frame in result.frames] == [(20, 16), (28, 12), (20, 16)]
    for one, other in zip(frames, result.frames, strict=True):
        np.testing.assert_array_equal(other.pixels, one.pixels.repeat(4, 0).repeat(4, 1))
        assert other.duration_ms == one.duration_ms
    assert result.plays == 2
    assert result.dpi == (288, 144)
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_all_frames_count_towards_the_limit() -> None:
    frame = Picture(levels(25, 40))
    upscaler = Upscaler(engine=NearestEngine(), max_output_megapixels=0.016)
    with pytest.raises(PictureTooLargeError, match="in 2 frames"):
        upscaler.upscale(replace(frame, further=(frame,)))


def test_what_is_too_large_already_is_reduced_and_that_is_said() -> None:
    engine = NearestEngine()
    result = Upscaler(engine=engine).upscale(Picture(levels(20, 10)), Request(long_side_px=10))
    assert result.pixels.shape == (10, 5, 3)
    assert "reduced without the model" in result.warnings[-1]
    assert engine.calls == []


# Transparency


def disc(ground: tuple[int, int, int], size: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A hard-edged disc of two colours on a transparent ground with a colour of its own."""
    rows, columns = np.mgrid[0:size, 0:size] - (size - 1) / 2
    inside = rows**2 + columns**2 < (size / 3) ** 2
    colour = np.where((rows < 0)[..., None], (200, 120, 40), (150, 60, 90)).astype(np.uint8)
    return np.where(inside[..., None], colour, np.array(ground, np.uint8)), inside * np.uint8(255), inside


@pytest.mark.parametrize("ground", [(0, 0, 0), (255, 255, 255), (0, 255, 0)])
def test_the_rim_takes_no_colour_from_the_transparent_ground(
    tiny_engine: OpenVinoEngine, ground: tuple[int, int, int]
) -> None:
    pixels, alpha, _ = disc(ground)
    upscaler = Upscaler(engine=tiny_engine)
    result = upscaler.upscale(Picture(pixels, alpha))
    neutral = upscaler.upscale(Picture(disc((175, 90, 65))[0], alpha))
    # Whatever the hidden colour was, it is gone before the generator sees the picture.
    np.testing.assert_array_equal(result.pixels, neutral.pixels)


@pytest.mark.parametrize("behind", [0, 255])
@pytest.mark.parametrize("ground", [0, 255])
def test_a_composited_rim_stays_between_the_colours_and_the_ground(ground: int, behind: int) -> None:
    from PIL import Image

    class Bicubic(NearestEngine):
        """What a generator near its start does; it overshoots at an edge of 200 levels by more than ten."""

        def run(self, lr: np.ndarray) -> np.ndarray:
            planes = [
                Image.fromarray(plane).resize((4 * lr.shape[3], 4 * lr.shape[2]), Image.Resampling.BICUBIC)
                for plane in lr[0]
            ]
            return np.stack([np.asarray(plane) for plane in planes])[None]

    pixels, alpha, inside = disc((ground,) * 3)
    pixels[inside] = (200, 120, 40)
    result = Upscaler(engine=Bicubic(replace(METADATA, halo_lr_px=2))).upscale(Picture(pixels, alpha))
    assert result.alpha is not None
    opacity = result.alpha[..., None] / 255
    composite = result.pixels * opacity + behind * (1 - opacity)
    low, high = np.minimum((200, 120, 40), behind), np.maximum((200, 120, 40), behind)
    assert (composite >= low - 1).all()
    assert (composite <= high + 1).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("model", ["tiny", "srgan-x4", "srresnet-x4"])
def test_no_rim_departs_from_its_colours_and_the_ground(
    tiny_engine: OpenVinoEngine, model: str, dtype: type
) -> None:
    """A hard-edged opaque disc, in any case, on black and on white; not a level outside of what it was made of."""
    peak = np.iinfo(dtype).max // 255
    upscaler = Upscaler(engine=tiny_engine) if model == "tiny" else Upscaler(model)
    for ground in (0, 255):
        pixels, alpha, inside = disc((ground,) * 3, size=24)
        pixels[inside] = (200, 120, 40)
        result = upscaler.upscale(Picture(pixels.astype(dtype) * peak, alpha.astype(dtype) * peak))
        assert result.alpha is not None
        assert result.pixels.dtype == result.alpha.dtype == dtype
        opacity = (result.alpha / np.iinfo(dtype).max)[..., None]
        deep = np.pad(inside, 1)
        deep = np.all([deep[y : y + 24, x : x + 24] for y in range(3) for x in range(3)], axis=0)
        rim = ~deep.repeat(4, 0).repeat(4, 1)
        for behind in (0, 255):
            composite = (result.pixels / peak * opacity + behind * (1 - opacity))[rim]
            low, high = np.minimum((200, 120, 40), behind), np.maximum((200, 120, 40), behind)
            assert (composite >= low - 1e-6).all()
            assert (composite <= high + 1e-6).all()


def test_opaque_and_clear_areas_stay_exactly_so(tiny_engine: OpenVinoEngine) -> None:
    pixels, alpha, inside = disc((0, 0, 0))
    result = Upscaler(engine=tiny_engine).upscale(Picture(pixels, alpha)).alpha
    assert result is not None
    padded = np.pad(inside, 1, mode="edge")
    around = np.stack([padded[y : y + 40, x : x + 40] for y in range(3) for x in range(3)])
    deep, outside = around.all(0).repeat(4, 0).repeat(4, 1), ~around.any(0).repeat(4, 0).repeat(4, 1)
    assert (result[deep] == 255).all()
    assert (result[outside] == 0).all()
    # Between two opaque pixels nothing is clear: no lines and no specks along the rim.
    across = (inside[:, 1:] & inside[:, :-1])[1:] & (inside[:, 1:] & inside[:, :-1])[:-1]
    assert (result[2:-2, 2:-2][across.repeat(4, 0).repeat(4, 1)] == 255).all()
    assert len(np.unique(result)) > 10  # and the rim between them is drawn


@pytest.mark.parametrize("value", [0, 128, 255])
def test_even_transparency_needs_no_inference(value: int) -> None:
    engine = NearestEngine()
    picture = Picture(levels(6, 5), np.full((6, 5), value, np.uint8))
    result = Upscaler(engine=engine).upscale(picture)
    assert result.alpha is not None
    assert result.alpha.shape == (24, 20)
    assert (result.alpha == value).all()
    assert len(engine.calls) == 1
    np.testing.assert_array_equal(result.pixels, picture.pixels.repeat(4, 0).repeat(4, 1))


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("size", [(1, 7), (13, 10), (32, 32)])
def test_visible_colours_are_not_changed_by_the_bleeding(size: tuple[int, int], channels: int | None) -> None:
    pixels, alpha = levels(*size, channels), levels(*size, None, seed=1) // 86 * np.uint8(100)
    bled = upscale._bled(pixels, alpha)
    np.testing.assert_array_equal(bled[alpha > 0], pixels[alpha > 0])
    low, high = pixels[alpha > 0].min(axis=0), pixels[alpha > 0].max(axis=0)
    assert ((bled >= low) & (bled <= high)).all()


def test_the_colour_of_a_faint_pixel_comes_from_its_neighbours() -> None:
    pixels = np.full((4, 4, 3), 200, np.uint8)
    alpha = np.full((4, 4), 255, np.uint8)
    pixels[1, 1], alpha[1, 1] = 0, 1  # black by rounding, as programs that premultiply leave it
    assert (upscale._bled(pixels, alpha) >= 199).all()


def test_a_picture_that_is_faint_all_over_keeps_its_colours() -> None:
    pixels = np.full((9, 9, 3), (250, 10, 90), np.uint8)
    np.testing.assert_array_equal(upscale._bled(pixels, np.full((9, 9), 3, np.uint8)), pixels)
    clear = np.zeros((9, 9), np.uint8)
    np.testing.assert_array_equal(upscale._bled(pixels, clear), pixels)


# Scale


@pytest.mark.parametrize(
    ("scale", "size"),
    [(4, (28, 20)), (None, (28, 20)), (2, (14, 10)), (3.5, (24, 18)), (1, (7, 5)), (6, (42, 30))],
)
def test_any_scale(scale: float | None, size: tuple[int, int]) -> None:
    picture = Picture(np.full((7, 5, 3), 77, np.uint8), levels(7, 5, None))
    result = Upscaler(engine=NearestEngine()).upscale(picture, scale)
    assert result.pixels.shape == (*size, 3)
    assert (result.pixels == 77).all()
    assert result.alpha is not None
    assert result.alpha.shape == size


@pytest.mark.parametrize("scale", [0, -4, 0.5, 16.1, float("nan"), float("inf")])
def test_scales_out_of_range(scale: float) -> None:
    with pytest.raises(UsageError, match="out of range"):
        Upscaler(engine=NearestEngine()).upscale(Picture(levels(4, 4)), scale)


@pytest.mark.parametrize(
    ("request_", "size", "label"),
    [
        (Request(), (28, 20), "x4"),
        (Request(scale=2.5), (18, 12), "x2.5"),
        (Request(long_side_px=21), (21, 15), "21px"),
        (Request(width_px=10), (14, 10), "10w"),
        (Request(height_px=14), (14, 10), "14h"),
        (Request(width_px=100, height_px=14), (14, 10), "100x14"),
        (Request(width_px=10, height_px=100), (14, 10), "10x100"),
        (Request(long_side_px=3), (3, 2), "3px"),
        (Request(long_side_px=1), (1, 1), "1px"),
        (Request(long_side_px=112), (112, 80), "112px"),
    ],
)
def test_any_size(request_: Request, size: tuple[int, int], label: str) -> None:
    picture = Picture(np.full((7, 5, 3), 77, np.uint8), levels(7, 5, None))
    upscaler = Upscaler(engine=NearestEngine())
    assert upscaler.output_size(picture, request_) == size
    assert request_.label(4) == label
    result = upscaler.upscale(picture, request_)
    assert (result.height, result.width) == size
    assert result.alpha is not None
    assert result.alpha.shape == size
    assert (result.pixels == 77).all()


@settings(max_examples=300)
@given(*[st.integers(1, 9000)] * 4)
def test_a_box_is_never_left_and_always_reached(height: int, width: int, box_height: int, box_width: int) -> None:
    request = Request(width_px=box_width, height_px=box_height)
    if max(box_height, box_width) > 16 * min(height, width):
        return  # may be out of range
    got = request.output_size(height, width, 4)
    assert got[0] <= box_height
    assert got[1] <= box_width
    assert got[0] == box_height or got[1] == box_width
    long_side = Request(long_side_px=box_width).output_size(height, width, 4)
    assert max(long_side) == box_width


@pytest.mark.parametrize(
    "sizes",
    [
        {"scale": 2, "long_side_px": 10},
        {"scale": 2, "height_px": 10},
        {"long_side_px": 10, "width_px": 10},
        {"width_px": 0},
        {"height_px": -1},
        {"long_side_px": MAX_SIDE_PX + 1},
        {"strength": -0.1},
        {"strength": 1.1},
        {"strength": float("nan")},
        {"scale": float("nan")},
    ],
)
def test_requests_that_make_no_sense(sizes: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"choose one"):
        Request(**sizes)  # type: ignore[arg-type]


def test_a_size_far_above_the_picture_is_refused() -> None:
    with pytest.raises(UsageError, match=r"113px is 16\.1 times the 5x7 pixels"):
        Upscaler(engine=NearestEngine()).upscale(Picture(levels(7, 5)), Request(long_side_px=113))


# Strength


@pytest.mark.parametrize("scale", [None, 2.5, 6])
@pytest.mark.parametrize("channels", [None, 3])
def test_no_strength_is_bicubic_and_needs_no_inference(channels: int | None, scale: float | None) -> None:
    engine = FailingEngine()
    engine.calls.append(())
    picture = Picture(levels(13, 9, channels), np.full((13, 9), 99, np.uint8))
    result = Upscaler(engine=engine).upscale(picture, Request(scale, strength=0))
    expected = resized(picture, result.height, result.width)
    np.testing.assert_array_equal(result.pixels, expected.pixels)
    np.testing.assert_array_equal(result.alpha, expected.alpha)


def test_strength_lies_between_bicubic_and_the_model(tiny_engine: OpenVinoEngine) -> None:
    upscaler = Upscaler(engine=tiny_engine)
    picture = Picture(levels(13, 9), levels(13, 9, None, seed=1))
    none, half, full = (upscaler.upscale(picture, Request(strength=s)) for s in (0, 0.5, 1))
    np.testing.assert_array_equal(full.pixels, upscaler.upscale(picture).pixels)
    assert np.abs(full.pixels.astype(int) - none.pixels).max() > 20
    for plane in ("pixels", "alpha"):
        mean = (getattr(none, plane).astype(float) + getattr(full, plane)) / 2
        np.testing.assert_allclose(getattr(half, plane), mean, atol=0.5)


def test_a_result_above_the_limit_is_refused_before_any_work() -> None:
    engine = NearestEngine()
    upscaler = Upscaler(engine=engine, max_output_megapixels=0.016)
    assert upscaler.upscale(Picture(levels(25, 40))).pixels.shape == (100, 160, 3)
    engine.calls.clear()
    for height, scale in ((26, None), (26, 1.0), (24, 4.2)):
        with pytest.raises(PictureTooLargeError, match="megapixels"):
            upscaler.upscale(Picture(levels(height, 40)), scale)
    assert engine.calls == []


# Failure, threads, progress


def test_an_engine_that_fails_fails_the_picture() -> None:
    with pytest.raises(EngineError, match="out of order"):
        Upscaler(engine=FailingEngine(), tile_lr_px=4).upscale(Picture(levels(9, 9)))


def test_progress_rises_to_one_and_can_stop_the_work() -> None:
    seen: list[float] = []
    picture = Picture(levels(9, 9), levels(9, 9, None))
    Upscaler(engine=NearestEngine(), tile_lr_px=4).upscale(picture, progress=seen.append)
    assert seen == sorted(set(seen))
    assert len(seen) == 18  # nine tiles of colour and nine of transparency
    assert seen[-1] == 1

    def stop(fraction: float) -> None:
        raise SrganError("enough")

    engine = NearestEngine()
    with pytest.raises(SrganError, match="enough"):
        Upscaler(engine=engine, tile_lr_px=4).upscale(picture, progress=stop)
    assert len(engine.calls) == 1


def test_pictures_of_two_threads_never_meet(tiny_engine: OpenVinoEngine) -> None:
    upscaler = Upscaler(engine=tiny_engine, tile_lr_px=16)
    pictures = [Picture(levels(30 + 10 * (index % 2), 40, seed=index)) for index in range(8)]
    expected = [upscaler.upscale(picture).pixels for picture in pictures]
    results = at_once(lambda picture: upscaler.upscale(picture).pixels, pictures)
    for one, got in zip(expected, results, strict=True):
        np.testing.assert_array_equal(got, one)


def test_loads_a_model_by_path(tiny_model: Path) -> None:
    upscaler = Upscaler(tiny_model)
    assert (upscaler.scale, upscaler.metadata.name) == (4, "tiny-x4")
    assert upscaler.upscale(Picture(levels(3, 2))).pixels.shape == (12, 8, 3)
    with pytest.raises(UnknownModelError):
        Upscaler("nowhere.onnx")


# Whatever kind of picture


def test_a_result_is_of_the_kind_of_its_source(tmp_path: Path) -> None:
    upscaler = Upscaler(engine=NearestEngine())
    pixels = levels(5, 7)
    expected = pixels.repeat(4, 0).repeat(4, 1)
    path = tmp_path / "photo.png"
    path.write_bytes(encode(Picture(pixels), "png"))
    for source in (path, str(path), path.read_bytes(), Picture(pixels)):
        result = upscaler.upscale(source)
        assert isinstance(result, Picture)
        np.testing.assert_array_equal(result.pixels, expected)
    np.testing.assert_array_equal(np.asarray(upscaler.upscale(Image.fromarray(pixels))), expected)
    for dtype in (np.uint8, np.uint16, np.float32):
        array: np.ndarray = Picture(pixels).to_array(dtype)
        result_array: np.ndarray = upscaler.upscale(array)
        assert result_array.dtype == dtype
        np.testing.assert_allclose(result_array, array.repeat(4, 0).repeat(4, 1), atol=1e-5)
    with_alpha = levels(5, 7, 4)
    assert upscaler.upscale(with_alpha).shape == (20, 28, 4)
    assert upscaler.upscale(pixels[..., 0]).shape == (20, 28)


def test_size_and_strength_can_be_said_by_name() -> None:
    upscaler = Upscaler(engine=NearestEngine())
    pixels = levels(6, 8)
    fractions: list[float] = []
    result = upscaler.upscale(pixels, scale=2, strength=0.5, progress=fractions.append)
    expected = upscaler.upscale(Picture(pixels), Request(scale=2, strength=0.5)).pixels
    np.testing.assert_array_equal(result, expected)
    assert fractions[-1] == 1
    with pytest.raises(UsageError, match="once"):
        upscaler.upscale(pixels, 2, strength=0.5)
    with pytest.raises(UsageError, match="0 to 1"):
        upscaler.upscale(pixels, strength=2)


@pytest.mark.parametrize("thing", [None, 5, [[1, 2]], {"a": 1}])
def test_what_is_no_picture_is_refused_with_what_is(thing: object) -> None:
    with pytest.raises(UsageError, match=r"give a path, .* Pillow image or a Picture"):
        Upscaler(engine=NearestEngine()).upscale(thing)  # type: ignore[call-overload]


def test_an_upscaler_can_be_sent_to_another_process() -> None:
    upscaler = Upscaler("srgan-x4", tile_lr_px=32, max_output_megapixels=1)
    again = pickle.loads(pickle.dumps(upscaler))
    assert again.model_sha256 == upscaler.model_sha256
    pixels = levels(9, 11)
    np.testing.assert_array_equal(again.upscale(pixels), upscaler.upscale(pixels))
    with pytest.raises(PictureTooLargeError):
        again.upscale(np.zeros((300, 300), np.uint8))
    assert len(pickle.dumps(upscaler)) < 2000  # what to load, and not the weights


# Memory


def broad(height: int, width: int) -> Picture:
    """A picture of that size that takes no memory."""
    return Picture(np.broadcast_to(np.zeros(3, np.uint8), (height, width, 3)))


def test_the_memory_that_is_counted_is_that_of_picture_result_and_what_follows() -> None:
    upscaler = Upscaler(engine=NearestEngine())
    lr, sr = 3000 * 4000 * 3, 3000 * 4000 * 16 * 3
    assert upscaler.memory(broad(3000, 4000)).held == lr + sr
    assert upscaler.memory(broad(3000, 4000), beside_bytes=10**9).held == lr + sr + 10**9
    # At another size the model's own result lies between, beside Pillow's copies of both.
    assert upscaler.memory(broad(3000, 4000), 2.0).held == lr + sr // 4 + sr + 8 * (sr + sr // 4) // 3


def test_a_bound_of_memory_counts_all_of_it() -> None:
    with pytest.raises(
        UsageError, match=r"800 MB .* too little for 4000x3000 .* result and its file \d+ MB are needed"
    ):
        Upscaler(engine=NearestEngine(), memory_bytes=800_000_000).memory(
            broad(3000, 4000), beside_bytes=300_000_000
        )
    upscaler = Upscaler(engine=NearestEngine(), memory_bytes=800_000_000)
    need = upscaler.memory(broad(1500, 2000), beside_bytes=300_000_000)
    assert need.held + need.working <= 800_000_000
    picture = Picture(np.arange(48 * 40 * 3, dtype=np.uint8).reshape(48, 40, 3))
    with pytest.raises(UsageError, match="too little"):
        upscaler.upscale(picture, beside_bytes=800_000_000)
    np.testing.assert_array_equal(
        upscaler.upscale(picture).pixels, picture.pixels.repeat(4, axis=0).repeat(4, axis=1)
    )


def test_a_bound_for_which_every_picture_is_too_large_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="too little for 1x1 pixels"):
        Upscaler(engine=NearestEngine(), memory_bytes=1000)


@pytest.mark.parametrize(
    ("scale", "given"),
    [
        (3, [(5, 7)]),
        (4, [(5, 7)]),
        (5, [(5, 7), (7, 9)]),  # 25x35: a quarter of that, rounded up
        (8, [(5, 7), (10, 14)]),  # to x2, then x4
        (16, [(5, 7), (20, 28)]),
    ],
)
def test_beyond_its_scale_the_model_runs_again_on_what_that_needs(
    scale: int, given: list[tuple[int, int]]
) -> None:
    engine, progress = NearestEngine(), list[float]()
    pixels, upscaler = levels(5, 7), Upscaler(engine=engine)
    result = upscaler.upscale(Picture(pixels), scale, progress.append)
    assert [shape[2:] for shape in engine.calls] == given
    assert result.pixels.shape == (5 * scale, 7 * scale, 3)
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    if scale == 16:
        np.testing.assert_array_equal(result.pixels, pixels.repeat(16, 0).repeat(16, 1))
    need, largest = upscaler.memory(Picture(pixels), scale), max(height * width for height, width in given)
    assert need.held >= pixels.nbytes + result.pixels.nbytes + (0 if len(given) == 1 else largest * 3)
    alone = upscaler.memory(Picture(levels(*given[-1])), 4)
    assert need.working == alone.working
    # Transparency goes the same way.
    alpha = np.repeat(np.array([[0, 255]], np.uint8), [3, 4], axis=1).repeat(5, 0)
    clear = Upscaler(engine=NearestEngine()).upscale(Picture(pixels, alpha), scale).alpha
    assert clear is not None
    assert not clear[:, : 2 * scale].any()
    assert (clear[:, 4 * scale :] == 255).all()
