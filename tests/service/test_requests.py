"""The HTTP service from the outside: pictures, problems, admission, fairness, cancellation."""

from __future__ import annotations

import gc
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import httpx
import numpy as np
import onnx
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from srgan_service.http.routes import warnings_header
from srgan_service.settings import Settings
from srgan_service.work.service import upload_megapixels
from support import ultra_hdr
from support.engines import NearestEngine
from support.serving import Blocked, Running, answer_on, head, levels, png, problem, serving, settings_of, until

from srgan.errors import GuardError
from srgan.pictures import Background, Picture, decode, encode, laid_on
from srgan.upscale import Request, Upscaler


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(limit_bytes=1_000_000, limit_megapixels=0.01, limit_side_px=500, tile_lr_px=16) as server:
        yield server


def upscaled(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return decode(answer.content).pixels


def nearest(pixels: np.ndarray, times: int = 4) -> np.ndarray:
    return pixels.repeat(times, 0).repeat(times, 1)


# Pictures


def test_a_raw_body_comes_back_larger(running: Running) -> None:
    answer = running.client.post("/v1/upscale", content=png(), headers={"Content-Type": "image/png"})
    np.testing.assert_array_equal(upscaled(answer), nearest(levels(6, 5)))
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-model"] == "nearest-x4"
    assert answer.headers["content-disposition"] == 'inline; filename="picture_x4.png"'


@pytest.mark.parametrize(("name", "kind"), [("JPEG", "jpeg"), ("jpg", "jpeg"), ("tif", "tiff"), ("PNG", "png")])
def test_formats_are_called_as_on_the_command_line(running: Running, name: str, kind: str) -> None:
    by_query = running.client.post(f"/v1/upscale?format={name}", content=png())
    by_form = running.client.post("/v1/upscale?format=AUTO", files={"image": png()})
    both = running.client.post(f"/v1/upscale?format={name}", files={"image": png()}, data={"format": name.lower()})
    assert [answer.headers["content-type"] for answer in (by_query, both)] == [f"image/{kind}"] * 2
    assert by_form.headers["content-type"] == "image/png"
    problem(running.client.post("/v1/upscale?format=jxl", content=png()), 422, "invalid-parameter")


def bigtiff(byteorder: Literal["<", ">"]) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, levels(6, 5), bigtiff=True, byteorder=byteorder, photometric="rgb")
    return file.getvalue()


def test_a_bigtiff_file_is_a_picture(running: Running) -> None:
    content = bigtiff("<")
    assert content[:4] == b"II+\0"
    for answer in (
        running.client.post("/v1/upscale", content=content),
        running.client.post("/v1/upscale", files={"image": content}),
    ):
        np.testing.assert_array_equal(upscaled(answer), nearest(levels(6, 5)))
        assert answer.headers["content-type"] == "image/tiff"
    refused = problem(running.client.post("/v1/upscale", content=bigtiff(">")), 415, "unsupported-format")
    assert "big-endian BigTIFF" in refused["detail"]


def test_bigtiff_of_another_program_is_a_picture(shared: Path) -> None:
    path = shared / "repro" / "BigTIFF.tif"
    if not path.exists():
        pytest.skip(f"no {path}")
    with serving() as server:
        answer = server.client.post("/v1/upscale?format=png", content=path.read_bytes())
    np.testing.assert_array_equal(upscaled(answer), nearest(tifffile.imread(path)))


@pytest.mark.parametrize("field", ["image", "file"])
def test_a_form_comes_back_larger(running: Running, field: str) -> None:
    files = {field: ("../../etc/passwd\r\nX: 1", png(), "image/png")}
    answer = running.client.post("/v1/upscale", files=files, data={"scale": "2", "format": "webp"})
    assert upscaled(answer).shape == (12, 10, 3)
    assert answer.headers["content-type"] == "image/webp"
    disposition = answer.headers["content-disposition"]  # no folder, and nothing that ends the header or the name
    plain, exact = "passwd_0D_0AX_ 1_x2.webp", "passwd%250D%250AX_%201_x2.webp"
    assert disposition == f"inline; filename=\"{plain}\"; filename*=UTF-8''{exact}"


@pytest.mark.parametrize(
    ("query", "size"),
    [("scale=2.5", (15, 12)), ("long_side=12", (12, 10)), ("width=50", (60, 50)), ("height=9&width=50", (9, 8))],
)
def test_sizes(running: Running, query: str, size: tuple[int, int]) -> None:
    assert upscaled(running.client.post(f"/v1/upscale?{query}", content=png())).shape[:2] == size


def test_pictures_are_those_of_the_library(tiny_model: Path) -> None:
    from PIL import Image

    pixels, alpha = levels(40, 30), levels(40, 30, 1)[..., 0]
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.dstack([pixels, alpha])).save(buffer, "PNG", exif=exif)
    grey = encode(Picture(pixels[..., 0]), "png")
    wishes = {
        "": Request(),
        "?strength=0.4&scale=3": Request(scale=3, strength=0.4),
        "?model=tiny-x4&format=tiff": Request(),
    }
    upscaler = Upscaler(tiny_model)
    with serving(model=str(tiny_model), tile_lr_px=16) as server:
        for content in (buffer.getvalue(), grey):
            for query, request in wishes.items():
                answer = server.client.post(f"/v1/upscale{query}", content=content)
                expected = upscaler.upscale(decode(content), request)
                got = decode(answer.content)
                assert np.abs(got.pixels.astype(int) - expected.pixels).max() <= 1  # tiles: float rounding
                assert (got.alpha is None) == (expected.alpha is None)
                if got.alpha is not None and expected.alpha is not None:
                    assert np.abs(got.alpha.astype(int) - expected.alpha).max() <= 1


def test_the_format_is_that_of_the_upload_unless_it_cannot_be(running: Running) -> None:
    from PIL import Image

    def types(image: Image.Image, format: str, query: str = "") -> str:
        buffer = io.BytesIO()
        image.save(buffer, format)
        answer = running.client.post(f"/v1/upscale{query}", content=buffer.getvalue())
        assert answer.status_code == 200, answer.text
        return answer.headers["content-type"]

    rgb = Image.fromarray(levels(8, 8))
    for format in ("png", "jpeg", "webp", "avif", "tiff", "bmp"):
        assert types(rgb, format) == f"image/{format}"
    assert types(rgb, "ppm") == "image/x-portable-anymap"
    assert types(rgb, "gif") == "image/gif"
    assert types(rgb, "png", "?format=jpg&quality=50") == "image/jpeg"


def test_where_and_when_a_picture_was_taken_stays_here_unless_asked_for(running: Running) -> None:
    from PIL import Image, ImageCms, PngImagePlugin

    sample = Image.fromarray(levels(8, 8))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F] = "Maker of secret cameras"
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "a secret comment")
    for format, options in (("PNG", {"pnginfo": info}), ("JPEG", {"comment": b"a secret comment"})):
        buffer = io.BytesIO()
        Image.fromarray(levels(8, 8)).save(buffer, format, exif=exif, icc_profile=profile, **options)
        content = buffer.getvalue() + b"a secret tail"
        answer = running.client.post("/v1/upscale", content=content)
        assert answer.status_code == 200
        assert b"ecret" not in answer.content
        assert decode(answer.content).icc == profile
        assert decode(answer.content).exif == b""
        kept = running.client.post("/v1/upscale?metadata=keep", content=content)
        assert b"secret cameras" in decode(kept.content).exif
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>a secret place</x:xmpmeta>"
    for format in ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "GIF"):
        buffer = io.BytesIO()
        told_as = {"exif": exif} if format == "TIFF" else {"exif": exif, "xmp": xmp}
        sample.save(buffer, format, **({"comment": b"a secret comment"} if format == "GIF" else told_as))
        assert b"ecret" in buffer.getvalue()
        for target in ("auto", "png", "jpg", "tiff"):
            answer = running.client.post(f"/v1/upscale?format={target}", content=buffer.getvalue())
            assert answer.status_code == 200
            assert b"ecret" not in answer.content, (format, target)


def test_what_is_two_kinds_of_file_comes_back_as_one(running: Running) -> None:
    """A picture with a script, an archive, a page or a document in it: nothing is left but the picture."""
    from PIL import Image

    archive, gif = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("run.js", "alert(1)")
    Image.fromarray(levels(8, 8)).save(gif, "GIF", comment=b"*/=1;alert(1)//")
    commented = running.client.post("/v1/upscale", content=gif.getvalue())
    assert commented.status_code == 200
    assert b"alert" not in commented.content
    script = gif.getvalue()[:6] + b"/*" + gif.getvalue()[8:]  # its width begins a comment: 10,799 pixels
    problem(running.client.post("/v1/upscale", content=script), 413, "too-many-pixels")
    plain = png(8, 8)
    expected = running.client.post("/v1/upscale", content=plain).content
    for other in (archive.getvalue(), b"<script>alert(1)</script>", b"%PDF-1.7 alert(1)"):
        answer = running.client.post("/v1/upscale", content=plain + other)
        assert answer.content == expected
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-content-type-options"] == "nosniff"
        problem(running.client.post("/v1/upscale", content=other + plain), 415, "unsupported-format")


def told(answer: httpx.Response) -> list[str]:
    """The strings of X-Warnings (RFC 9651)."""
    quoted = re.findall(r'"((?:[^"\\]|\\.)*)"', answer.headers.get("x-warnings", ""))
    return [re.sub(r"\\(.)", r"\1", text) for text in quoted]


def test_what_a_format_cannot_hold_is_said(running: Running) -> None:
    deep = encode(Picture((levels(6, 5).astype(np.uint16) << 8) + 1), "png")
    assert told(running.client.post("/v1/upscale", content=deep)) == []
    (warning,) = told(running.client.post("/v1/upscale?format=jpg", content=deep))
    assert "8 bits per channel" in warning
    noise = encode(Picture(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)), "png")
    smaller = told(running.client.post("/v1/upscale?width=30&format=gif", content=noise))
    assert [word in text for word, text in zip(("reduced", "256 colours"), smaller, strict=True)] == [True, True]
    odd = encode(Picture(levels(6, 5), icc=b"nonsense" * 30), "png")
    assert told(running.client.post("/v1/upscale", content=odd)) == [
        "its colour profile is none that can be passed on, so it was left out"
    ]


@settings(max_examples=25)
@given(st.lists(st.text(max_size=250), max_size=10))
def test_the_header_of_warnings_is_plain_and_short(warnings: list[str]) -> None:
    header = warnings_header(warnings).get("X-Warnings", "")
    assert header.isascii()
    assert header.isprintable()
    assert len(header) <= 8 * 410
    got = told(httpx.Response(200, headers={"X-Warnings": header}))
    assert got == [re.sub(r"[^ -~]", "?", text)[:200] for text in warnings[:8]]


def test_a_balance_is_that_of_the_command_line(running: Running) -> None:
    content = png(20, 16)
    with serving(settings_of(model="srgan-x4")) as server:
        assert server.client.get("/v1/models").json()["balance"] == ["srresnet-x4", "srgan-x4"]
        first = server.client.post("/v1/upscale?balance=0.25", content=content)
        assert first.headers["x-model"] == "srresnet-x4+srgan-x4@0.25"
        expected = Upscaler(balance=0.25).upscale(decode(content)).pixels
        assert np.abs(upscaled(first).astype(int) - expected).max() <= 1
        for balance in (0, 0.1, 0.2, 0.3, 0.4):
            with_model = server.client.post(f"/v1/upscale?balance={balance}&model=srgan-x4", content=content)
            assert with_model.status_code == 200
        assert server.service.models.loaded_balances == [0.1, 0.2, 0.3, 0.4]
        problem(server.client.post("/v1/upscale?balance=1.1", content=content), 422, "invalid-parameter")
        listed = {model["name"]: model["faithful"] for model in server.client.get("/v1/models").json()["models"]}
        assert listed == {"srresnet-x4": True, "srgan-x4": True, "srgan-x4-photo": False, "srresnet-x2": True}
        results = {
            faithful: upscaled(server.client.post(f"/v1/upscale?faithful={faithful}", content=content)).astype(int)
            for faithful in ("on", "off")
        }
        for faithful, pixels in results.items():
            expected = Upscaler("srgan-x4", faithful=faithful == "on").upscale(decode(content)).pixels
            assert np.abs(pixels - expected).max() <= 1
        assert np.abs(results["on"] - results["off"]).max() > 5
    document = problem(running.client.post("/v1/upscale?balance=0.5", content=content), 422, "invalid-parameter")
    assert "no two models" in document["detail"]


def test_a_region_is_that_of_the_command_line(running: Running) -> None:
    content = png(20, 16)
    whole = upscaled(running.client.post("/v1/upscale", content=content))
    answer = running.client.post("/v1/upscale?region=8,4,24,12", content=content)
    np.testing.assert_array_equal(upscaled(answer), whole[4:16, 8:32])
    assert 'x4_24x12+8+4.png"' in answer.headers["content-disposition"]
    outside = running.client.post("/v1/upscale?region=60,0,5,5", content=content)
    assert "lies outside the result" in problem(outside, 422, "invalid-parameter")["detail"]


def test_what_a_file_is_written_as_is_that_of_the_command_line(running: Running) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 6, 3), np.uint8)
    alpha = np.random.default_rng(2).integers(0, 256, (5, 6), np.uint8)
    picture = Picture(pixels, alpha)
    content, upscaler = encode(picture, "png"), Upscaler(engine=NearestEngine())
    result = upscaler.upscale(picture)
    answer = running.client.post("/v1/upscale?format=webp&quality=lossless", content=content)
    np.testing.assert_array_equal(upscaled(answer), result.pixels)
    assert decode(answer.content).lossy_quality is None
    assert b"compositeWithTrainedAlgorithmicMedia" in answer.content
    bare = running.client.post("/v1/upscale?label=off", content=content)
    assert b"srgan" not in bare.content
    laid = running.client.post("/v1/upscale?format=bmp&background=%23ff8000", content=content)
    np.testing.assert_array_equal(upscaled(laid), laid_on(result, Background(255, 128, 0)).pixels)
    assert "so it was laid on #ff8000" in laid.headers["x-warnings"]
    wrapped = running.client.post("/v1/upscale?wrap=both", content=content)
    np.testing.assert_array_equal(upscaled(wrapped), upscaler.upscale(picture, wrap="both").pixels)


def test_a_photograph_for_hdr_screens_stays_one_unless_it_is_asked_for(running: Running) -> None:
    values = ultra_hdr.by_xmp(GainMapMax=2, HDRCapacityMax=2)
    content = ultra_hdr.ultra_hdr(levels(20, 16), ultra_hdr.jpeg(levels(10, 8), values))
    kept = running.client.post("/v1/upscale", content=content)
    assert ultra_hdr.read(kept.content).gain_map.size == (32, 40)
    dropped = running.client.post("/v1/upscale?hdr=drop", content=content)
    assert told(dropped) == ["its gain map, which lets HDR screens show it brighter, was left out"]
    assert decode(dropped.content).gain_map is None


def test_a_map_and_a_mask_are_those_of_the_command_line(running: Running) -> None:
    content, mask = png(20, 16), np.zeros((20, 16, 3), np.uint8)
    mask[:, :8] = 255
    files = {"image": ("a.png", content), "protect": ("mask.png", encode(Picture(mask), "png"))}
    with serving(settings_of(model="srgan-x4", precision="fp32")) as server:
        sharp, true = (Upscaler(model, precision="fp32") for model in ("srgan-x4", "srresnet-x4"))
        picture = decode(content)
        result = sharp.upscale(picture)
        expected = sharp.invented(picture, result)
        answer = server.client.post("/v1/upscale?map=true", content=content)
        assert float(answer.headers["x-invented-levels"]) == pytest.approx(expected.rms_levels, abs=0.1)
        assert 'x4_map.png"' in answer.headers["content-disposition"]
        assert np.abs(upscaled(answer).astype(int) - expected.drawn().pixels)[:80, :64].mean() < 2
        both = upscaled(server.client.post("/v1/upscale", files=files)).astype(int)
        assert np.abs(both[:, :30] - true.upscale(picture).pixels[:, :30]).max() <= 1
        assert np.abs(both[:, 34:] - result.pixels[:, 34:]).max() <= 1
        small = files | {"protect": ("mask.png", png(3, 3))}
        detail = problem(server.client.post("/v1/upscale", files=small), 422, "invalid-parameter")["detail"]
        assert "the mask has 3x3 pixels and the picture 16x20" in detail
        assert server.client.post("/v1/upscale?map=true&model=srgan-x4-photo", content=content).status_code == 200
    twice = [("image", ("a.png", content)), ("image", ("b.png", content))]
    problem(running.client.post("/v1/upscale", files=twice), 400, "malformed-request")
    alone = {"protect": ("mask.png", content)}
    problem(running.client.post("/v1/upscale", files=alone), 400, "no-picture")


def test_what_is_no_profile_is_not_sent_back() -> None:
    from srgan.folder.making import stripped

    picture = Picture(levels(2, 2), icc=b"<script>" * 100, exif=b"Exif", warnings=("w",))
    assert stripped(picture).icc is None
    assert stripped(replace(picture, icc=bytes(36) + b"acsp" + bytes(90))).icc is not None
    assert stripped(replace(picture, icc=bytes(36) + b"acsp" + bytes(5_000_000))).icc is None


# Problems


def form_of(fields: int, boundary: str = "b") -> bytes:
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="f%d"\r\n\r\n1\r\n'
    return ("".join(part % number for number in range(fields)) + f"--{boundary}--\r\n").encode()


REFUSED = {
    "empty": (b"", {}, "", 400, "no-picture"),
    "no picture in the form": (form_of(0), {"content-type": "multipart/form-data; boundary=b"}, "", 400, None),
    "ten thousand files": (
        form_of(10_000).replace(b'"\r\n\r\n', b'"; filename="a.png"\r\n\r\n'),
        {"content-type": "multipart/form-data; boundary=b"},
        "",
        400,
        "malformed-request",
    ),
    "ten thousand parts": (form_of(10_000), {"content-type": "multipart/form-data; boundary=b"}, "", 400, None),
    "no boundary": (form_of(1), {"content-type": "multipart/form-data"}, "", 400, "malformed-request"),
    "not a form": (b"\0" * 99, {"content-type": "multipart/form-data; boundary=b"}, "", 400, "malformed-request"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", {}, "", 415, "unsupported-format"),
    "pdf": (b"%PDF-1.7", {}, "", 415, "unsupported-format"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", {}, "", 415, "unsupported-format"),
    "text that says it is a picture": (b"hello", {"content-type": "image/png"}, "", 415, "unsupported-format"),
    "cut off": (png()[:60], {}, "", 422, "damaged-picture"),
    "too many bytes": (b"\x89PNG\r\n\x1a\n" + bytes(1_000_000), {}, "", 413, "too-many-bytes"),
    "too many pixels": (png(101, 100), {}, "", 413, "too-many-pixels"),
    "too long a side": (png(1, 501), {}, "", 413, "too-many-pixels"),
    "no such model": (png(), {}, "?model=../../etc/passwd", 422, "invalid-parameter"),
    "a path as model": (png(), {}, "?model=/tmp/x.onnx", 422, "invalid-parameter"),
    "scale out of range": (png(), {}, "?scale=17", 422, "invalid-parameter"),
    "scale that is no number": (png(), {}, "?scale=nan", 422, "invalid-parameter"),
    "two sizes": (png(), {}, "?scale=2&width=7", 422, "invalid-parameter"),
    "too large a side": (png(), {}, "?width=9000", 422, "invalid-parameter"),
    "unknown parameter": (png(), {}, "?scales=2", 422, "invalid-parameter"),
    "faithful by another word": (png(), {}, "?faithful=true", 422, "invalid-parameter"),
    "hdr by another word": (png(), {}, "?hdr=off", 422, "invalid-parameter"),
    "a region of three numbers": (png(), {}, "?region=1,2,3", 422, "invalid-parameter"),
    "a region without pixels": (png(), {}, "?region=1,2,0,3", 422, "invalid-parameter"),
    "a map of a part": (png(), {}, "?region=1,2,3,3&map=true", 422, "invalid-parameter"),
    "a map of a model alone": (png(), {}, "?map=true", 422, "invalid-parameter"),
    "a quality that is none": (png(), {}, "?quality=0", 422, "invalid-parameter"),
    "a quality by another word": (png(), {}, "?quality=best", 422, "invalid-parameter"),
    "JPEG without loss": (png(), {}, "?format=jpg&quality=lossless", 422, "invalid-parameter"),
    "a colour that is none": (png(), {}, "?background=whit", 422, "invalid-parameter"),
    "edges of another word": (png(), {}, "?wrap=vertical", 422, "invalid-parameter"),
    "a label by another word": (png(), {}, "?label=maybe", 422, "invalid-parameter"),
    "unknown format": (png(), {}, "?format=exe", 422, "invalid-parameter"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(running: Running, case: str) -> None:
    content, headers, query, status, code = REFUSED[case]
    answer = running.client.post(f"/v1/upscale{query}", content=content, headers=headers)
    document = problem(answer, status, code or answer.json()["code"])
    assert document["request_id"] == answer.headers["x-request-id"]
    assert "/tmp" not in answer.text
    assert "passwd" not in answer.text
    until(lambda: running.service.gate.inside == 0)


def test_what_claims_to_be_huge_is_refused_from_its_header(running: Running) -> None:
    """However few bytes it has: nothing is decoded, and memory stays where it was."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))

    header = struct.pack(">LLBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100_000)))
    problem(running.client.post("/v1/upscale", content=bomb + chunk(b"IEND", b"")), 413, "too-many-pixels")


def test_a_decoder_that_dies_costs_one_request() -> None:
    deaths = iter([GuardError("no worker")])

    def dies_once(content: bytes) -> Picture:
        for death in deaths:
            raise death
        return decode(content)

    with serving(decoder=dies_once) as server:
        problem(server.client.post("/v1/upscale", content=png()), 503, "not-ready")
        assert server.client.post("/v1/upscale", content=png()).status_code == 200


def test_a_form_and_a_query_must_agree(running: Running) -> None:
    files = {"image": png()}
    answer = running.client.post("/v1/upscale?scale=2", files=files, data={"scale": "2", "strength": "0.5"})
    assert answer.status_code == 200
    answer = running.client.post("/v1/upscale?scale=2", files=files, data={"scale": "3"})
    problem(answer, 422, "invalid-parameter")
    problem(running.client.post("/v1/upscale", files=files, data={"colour": "red"}), 422, "invalid-parameter")
    problem(running.client.post("/v1/upscale", files={"image": png(), "file": png()}), 400, "malformed-request")
    problem(running.client.post("/v1/upscale", files={"picture": png()}), 400, "malformed-request")
    problem(running.client.post("/v1/upscale", files={"image": (None, "text")}), 400, "malformed-request")


def test_what_cannot_hold_the_picture_is_refused_before_the_work(running: Running) -> None:
    clear = encode(Picture(levels(6, 5), levels(6, 5)[..., 0]), "png")
    problem(running.client.post("/v1/upscale?format=jpg", content=clear), 422, "invalid-parameter")


def test_other_addresses_and_methods(running: Running) -> None:
    problem(running.client.get("/nothing"), 404, "not-found")
    answer = running.client.get("/v1/upscale")
    problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/models", "/openapi.json", "/static/style.css", "/nothing"])
def test_head_is_answered_as_get_but_for_the_body(running: Running, path: str) -> None:
    def told(method: str) -> tuple[int, dict[str, str], bytes]:
        return running.talk(f"{method} {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())

    status, headers, body = told("HEAD")
    get_status, get_headers, get_body = told("GET")
    its_own = {"date", "x-request-id"}
    assert status == get_status
    assert {name: headers[name] for name in headers.keys() - its_own} == {
        name: get_headers[name] for name in get_headers.keys() - its_own
    }
    assert int(headers["content-length"]) == len(get_body) > 0
    assert body == b""


def test_head_of_what_cannot_be_read_is_refused(running: Running) -> None:
    answer = running.client.head("/v1/upscale")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    answer = running.client.post("/v1/models")
    problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "GET, HEAD"


def test_head_is_counted_as_head(running: Running) -> None:
    name = 'srgan_requests_total{method="HEAD",route="/healthz",status="200"}'
    before = running.metric(name)
    running.client.head("/healthz")
    until(lambda: running.metric(name) == before + 1)


def test_an_error_of_our_own_is_a_problem_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("secret/path")

    with serving(before=broken, log_level="CRITICAL") as server:
        server.client.event_hooks = {}  # nothing documents it
        answer = server.client.post("/v1/upscale", content=png())
        problem(answer, 500, "internal-error")
        assert "secret" not in answer.text
        until(lambda: server.service.gate.inside == 0)
        assert server.client.get("/healthz").status_code == 200


def test_headers_keep_browsers_from_guessing(running: Running) -> None:
    for path in ("/healthz", "/nothing", "/v1/models"):
        headers = running.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers


def test_request_ids_are_plain_words_or_ours(running: Running) -> None:
    mine = running.client.get("/healthz", headers={"X-Request-Id": "abc-1.2_3"})
    assert mine.headers["x-request-id"] == "abc-1.2_3"
    for odd in ("a b", "x" * 65, "a;b", "\u00e9"):
        given = running.client.get("/healthz", headers=[(b"X-Request-Id", odd.encode())])
        assert len(given.headers["x-request-id"]) == 32


# Models, health, metrics


def test_models_are_listed(tiny_model: Path, running: Running) -> None:
    assert running.client.get("/v1/models").json()["models"][0]["name"] == "nearest-x4"
    with serving(model=str(tiny_model)) as server:
        listed = server.client.get("/v1/models").json()["models"]
    with serving(model=str(tiny_model), precision="fp32") as server:
        (exact,) = (model for model in server.client.get("/v1/models").json()["models"] if model["default"])
    precisions = {model["name"]: model["precision"] for model in listed}
    assert (precisions["tiny-x4"], precisions["srgan-x4"]) == (
        Upscaler(tiny_model).precision,
        None,
    )  # not loaded yet
    assert exact["precision"] == "fp32"
    assert [model["name"] for model in listed if model["default"]] == ["tiny-x4"]
    assert {"tiny-x4", "srgan-x4"} <= {model["name"] for model in listed}


def test_ready_only_with_a_model_that_works() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    with serving(before=broken, is_ready=False) as server:
        until(lambda: server.service.models.failure)
        problem(server.client.get("/readyz"), 503, "not-ready")
        problem(server.client.post("/v1/upscale", content=png()), 503, "not-ready")
        assert server.client.get("/healthz").json() == {"status": "ok"}
        server.service.models.ready = True
        assert server.client.get("/readyz").json() == {"status": "ready"}


def test_metrics_count(running: Running) -> None:
    before = {name: running.metric(name) for name in ("srgan_pixels_in_total", "srgan_pixels_out_total")}
    refused = running.metric('srgan_rejections_total{code="unsupported-format"}')
    running.client.post("/v1/upscale", content=png())
    running.client.post("/v1/upscale", content=b"hello")
    assert running.metric("srgan_pixels_in_total") - before["srgan_pixels_in_total"] == 30
    assert running.metric("srgan_pixels_out_total") - before["srgan_pixels_out_total"] == 30 * 16
    assert running.metric('srgan_rejections_total{code="unsupported-format"}') == refused + 1
    assert running.metric("srgan_engine_seconds_total") > 0
    assert running.metric("srgan_ready") == 1
    text = running.client.get("/metrics").text
    assert 'route="/v1/upscale",status="200"' in text
    assert "srgan_request_seconds_bucket" in text


# Admission


def test_a_full_queue_says_when_to_come_again() -> None:
    blocked = Blocked()
    with serving(before=blocked, queue_requests=2) as server, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(server.client.post, "/v1/upscale", content=png(seed=seed)) for seed in range(2)]
        until(lambda: server.service.gate.inside == 2)
        for path in ("/healthz", "/readyz", "/v1/models", "/metrics"):
            assert server.client.get(path).status_code == 200
        problem(server.client.post("/v1/upscale", content=png()), 503, "queue-full")
        blocked.let_go()
        for seed, answer in enumerate(asked):
            np.testing.assert_array_equal(upscaled(answer.result()), nearest(levels(6, 5, seed)))
        until(lambda: server.service.gate.inside == 0)
        assert upscaled(server.client.post("/v1/upscale", content=png())).shape == (24, 20, 3)


def test_a_queue_full_of_pixels_refuses_more() -> None:
    blocked = Blocked()
    with serving(before=blocked, queue_megapixels=0.01) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.client.post, "/v1/upscale", content=png(120, 100))  # alone it may
        until(lambda: server.service.gate.px == 12_000)
        server.service.device.lr_px_per_s = 100
        answer = server.client.post("/v1/upscale", content=png(20, 20))
        problem(answer, 503, "queue-full")
        assert answer.headers["retry-after"] == "20"  # 2,000 pixels too many, at 100 a second
        blocked.let_go()
        assert first.result().status_code == 200


def test_a_picture_that_takes_too_long_for_one_request_is_sent_to_the_jobs() -> None:
    with serving(deadline_s=5) as server:
        server.service.device.best_lr_px_per_s = 100
        answer = server.client.post("/v1/upscale", content=png(30, 20))
        assert "/v1/jobs" in problem(answer, 413, "takes-too-long")["detail"]


def test_uploads_are_refused_before_they_are_read() -> None:
    with serving(queue_requests=64, queue_bytes=1_000_000, limit_bytes=900_000) as server:
        with server.connect(head(content_length=450_000)), server.connect(head(content_length=450_000)):
            until(lambda: server.service.gate.bytes == 900_000)
            problem(server.talk(head(content_length=450_000)), 503, "queue-full")
            problem(server.talk(head(content_length=10**9)), 413, "too-many-bytes")
        until(lambda: server.service.gate.inside == 0)
        with server.connect(head(transfer_encoding="chunked")) as chunked:
            chunked.sendall(b"%x\r\n" % 950_000 + bytes(950_000) + b"\r\n")
            problem(answer_on(chunked), 413, "too-many-bytes")


def test_a_client_is_told_to_go_on_only_if_it_may() -> None:
    with serving(limit_bytes=1000) as server:
        refused = server.talk(head(content_length=2000, expect="100-continue"))
        problem(refused, 413, "too-many-bytes")
        with server.connect(
            head(content_length=len(png()), expect="100-continue", connection="close")
        ) as admitted:
            assert admitted.recv(100).startswith(b"HTTP/1.1 100 ")
            admitted.sendall(png())
            assert answer_on(admitted)[0] == 200


# Time


def test_a_deadline_ends_the_work_and_not_only_the_answer() -> None:
    blocked = Blocked()
    with serving(before=blocked, deadline_s=0.3, tile_lr_px=16) as server:
        server.service.decoder.decode(png())  # starting its process takes longer than that
        lane = server.service.works.lanes["small"]
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(server.client.post, "/v1/upscale", content=png(64, 64))
            until(lambda: asked.done() or any(ticket.flow.stopped for ticket in lane.working))
            blocked.let_go()  # the tile at hand goes on
            problem(asked.result(), 504, "deadline")
        assert len(server.engine.calls) <= 1  # the tile at hand
        until(lambda: server.service.gate.inside == 0)


def test_who_goes_away_takes_the_work_along() -> None:
    blocked = Blocked()
    with serving(before=blocked, tile_lr_px=16, queue_requests=64) as server:
        content = png(64, 48)
        abandoned = [server.connect(head(content_length=len(content)) + content) for _ in range(30)]
        until(lambda: server.service.gate.inside == 30)
        for connection in abandoned:
            connection.close()
        until(lambda: server.service.gate.inside <= 4)  # those in work wait for their tile
        blocked.let_go()
        assert server.client.post("/v1/upscale", content=png()).status_code == 200
        until(lambda: server.service.gate.inside == 0)
        until(lambda: server.metric("srgan_cancelled_total") == 30)
        assert len(server.engine.calls) <= 5  # what was at hand; of 30 times 12 tiles


def test_a_stalled_upload_ends() -> None:
    with serving(body_timeout_s=0.3, body_bytes_per_s=10**9) as server:
        with server.connect(head(content_length=1000)) as stalled:
            problem(answer_on(stalled), 408, "upload-too-slow")
        with server.connect(head(content_length=1000)) as dripping:
            stop = threading.Event()

            def drip() -> None:
                while not stop.wait(0.02):
                    try:
                        dripping.sendall(b"x")
                    except OSError:
                        return

            thread = threading.Thread(target=drip)
            thread.start()
            problem(answer_on(dripping), 408, "upload-too-slow")
            stop.set()
            thread.join()
        until(lambda: server.service.gate.inside == 0)


def test_a_form_without_an_end_leaves_no_file_open() -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + png()
    kind = {"content-type": "multipart/form-data; boundary=b"}
    with serving() as server:
        problem(server.client.post("/v1/upscale", content=part, headers=kind), 400, "malformed-request")
    with serving(body_timeout_s=0.2, body_bytes_per_s=10**9) as server:
        sent = head(content_length=10_000, content_type=kind["content-type"]) + part
        with server.connect(sent) as stalled:
            problem(answer_on(stalled), 408, "upload-too-slow")
        until(lambda: server.service.gate.inside == 0)
        gc.collect()  # what is open is told now


# Many at once


def test_every_client_gets_its_own_picture() -> None:
    with serving(queue_requests=500, tile_lr_px=16) as server, ThreadPoolExecutor(16) as pool:

        def ask(seed: int) -> None:
            height, width = 5 + seed % 40, 7 + seed % 33
            content = png(height, width, seed)
            if seed % 10 == 9:
                problem(server.client.post("/v1/upscale", content=content[:-30]), 422, "damaged-picture")
            else:
                answer = server.client.post("/v1/upscale", content=content)
                np.testing.assert_array_equal(upscaled(answer), nearest(levels(height, width, seed)))

        list(pool.map(ask, range(200)))
        until(lambda: server.service.gate.inside == 0)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRGAN_LIMIT_BYTES", "1234")
    assert settings_of().limit_bytes == 1234


def test_a_model_may_have_a_name_beyond_latin_1(tmp_path: Path, tiny_model: Path) -> None:
    model = onnx.load(tiny_model)
    (entry,) = (entry for entry in model.metadata_props if entry.key == "srgan")
    entry.value = json.dumps(json.loads(entry.value) | {"name": "模型 100%"})
    onnx.save(model, tmp_path / "my.onnx")
    with serving(settings_of(model=str(tmp_path / "my.onnx"))) as running:
        answer = running.client.post("/v1/upscale", content=png())
    assert answer.status_code == 200
    assert answer.headers["X-Model"] == "%E6%A8%A1%E5%9E%8B 100%25"


# What is published, and what is told once


def test_limits_formats_and_scales_are_published(running: Running) -> None:
    running.client.post("/v1/upscale", content=png())
    limits = running.client.get("/v1/limits").json()
    assert limits["upload"] == {
        "bytes": 1_000_000,
        "megapixels": 0.01,
        "side_px": 500,
        "frames": 100,
        "output_megapixels": 400.0,
    }
    assert (limits["jobs"], limits["deadline_s"], limits["scales"]) == (None, 60.0, [1.0, 16.0])
    assert (
        {"png", "jpg", "webp", "avif", "tiff", "gif"}
        <= set(limits["formats_written"])
        <= set(limits["formats_read"])
    )
    assert limits["precisions"] == ["fp32"]


@pytest.mark.parametrize(("free_gb", "megapixels"), [(4, 16.0), (8, 25.0), (64, 25.0)])
def test_todays_telephones_are_let_in_where_there_is_memory(free_gb: int, megapixels: float) -> None:
    assert upload_megapixels(Settings(), free_gb * 10**9) == megapixels
    assert upload_megapixels(Settings(limit_megapixels=3), free_gb * 10**9) == 3
    assert 5712 * 4284 < 25e6


def test_what_is_wrong_with_a_picture_is_told_once(running: Running) -> None:
    answer = running.client.post("/v1/upscale", content=png()[:60])
    detail = problem(answer, 422, "damaged-picture")["detail"]
    assert detail.startswith("it is damaged or incomplete")
    assert "the picture" not in detail.lower()
    other = running.client.post("/v1/upscale", content=b"hello")
    assert "the picture" not in problem(other, 415, "unsupported-format")["detail"].lower()
