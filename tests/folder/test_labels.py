"""What results say of how they were made: read back by expat and by the letter of each format."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.engines import NearestEngine

from srgan.errors import UsageError
from srgan.folder.making import Order, decide, make
from srgan.pictures import FORMATS, Picture, decode, encode
from srgan.upscale import Request, Upscaler

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
HISTORY = "{http://ns.adobe.com/xap/1.0/mm/}History"
SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
EVENT = "{http://ns.adobe.com/xap/1.0/sType/ResourceEvent#}"
TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
COLOURS = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
UPSCALER = Upscaler(engine=NearestEngine())


def made(picture: Picture, upscaler: Upscaler = UPSCALER, **settings: object) -> tuple[bytes, tuple[str, ...]]:
    order = Order(**settings)  # type: ignore[arg-type]
    result = make(decide(picture, order, upscaler), upscaler)
    return result.content, result.warnings


def packet_in(content: bytes) -> ET.Element:
    """The one XMP packet of a file, wherever it is in it."""
    (packet,) = re.findall(rb"<x:xmpmeta.*?</x:xmpmeta>", content, re.DOTALL)
    return ET.fromstring(packet)


def read(content: bytes) -> tuple[list[dict[str, str]], str | None]:
    """The history's entries, and the type of the source, which may be there once."""
    root = packet_in(content)
    (history,) = root.iter(HISTORY)
    entries = [
        {name.removeprefix(EVENT): value for name, value in entry.attrib.items()}
        for entry in history.iter(f"{RDF}li")
    ]
    types = [element.text for element in root.iter(SOURCE_TYPE)]
    types += [value for element in root.iter() if (value := element.get(SOURCE_TYPE)) is not None]
    (source_type,) = types
    return entries, source_type


def packet(attributes: str = "", elements: str = "", about: str = "") -> bytes:
    return (
        f'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        f'<r:RDF xmlns:r="{RDF[1:-1]}"><r:Description r:about="{about}" xmlns:mm="{HISTORY[1:-8]}" '
        f'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:ext="{SOURCE_TYPE[1:-18]}" xmlns:e="{EVENT[1:-1]}" '
        f'{attributes}>{elements}</r:Description></r:RDF></x:xmpmeta>\n  \n<?xpacket end="w"?>'
    ).encode()


def png_texts(content: bytes) -> dict[str, str]:
    """iTXt chunks without compression, by the letter of PNG's specification (11.3.3.4)."""
    texts, place = {}, 8
    while place < len(content):
        length, name = struct.unpack_from(">L4s", content, place)
        body = content[place + 8 : place + 8 + length]
        if name == b"iTXt":
            keyword, rest = body.split(b"\0", 1)
            assert rest[:2] == b"\0\0"
            texts[keyword.decode("latin-1")] = rest[2:].split(b"\0", 2)[2].decode()
        place += 12 + length
    return texts


PARAMETERS = "model fake-x4; size x4; strength 1"


@pytest.mark.parametrize("format", [name for name, format in FORMATS.items() if "xmp" in format.holds])
def test_every_format_that_holds_xmp_says_how_it_was_made(format: str) -> None:
    content, warnings = made(Picture(COLOURS), format=format)
    entries, source_type = read(content)
    assert entries == [
        {
            "action": "edited",
            "softwareAgent": f"srgan {version('srgan')}",
            "when": "2026-01-01",
            "parameters": PARAMETERS,
            "changed": "/",
        }
    ]
    assert source_type == f"{TYPES}compositeWithTrainedAlgorithmicMedia"
    assert warnings == ()


def test_png_says_it_as_a_text_and_gif_as_a_comment() -> None:
    words = f"srgan {version('srgan')}: {PARAMETERS}; 2026-01-01"
    content, _ = made(Picture(COLOURS, texts=(("Software", "another program"), ("Title", "t"))))
    texts = png_texts(content)
    assert texts["Software"] == f"another program\n{words}"
    assert texts["Title"] == "t"
    few = Picture(np.zeros((2, 2, 3), np.uint8))
    content, warnings = made(few, format="gif")
    assert Image.open(io.BytesIO(content)).info["comment"] == words.encode()
    assert warnings == ()


@pytest.mark.parametrize("format", FORMATS)
def test_without_a_label_nothing_is_left_of_it(format: str) -> None:
    picture = Picture(np.zeros((2, 2, 3), np.uint8))
    content, _ = made(picture, format=format, label="off")
    assert not re.search(rb"srgan|xmpmeta|Software|digitalsource|fake-x4|2026-01", content)
    if "xmp" not in FORMATS[format].holds and "comment" not in FORMATS[format].holds:
        assert made(picture, format=format)[0] == content


def test_pages_say_it_each_and_frames_of_an_animation_once() -> None:
    pages, _ = made(Picture(COLOURS, format="tiff", further=(Picture(COLOURS),)))
    assert len(re.findall(rb"<x:xmpmeta", pages)) == 2
    frame = Picture(COLOURS, duration_ms=40, format="webp", further=(Picture(COLOURS[::-1], duration_ms=40),))
    read(made(frame)[0])


def test_what_no_model_took_part_in_is_altered_by_an_algorithm() -> None:
    for request in (Request(strength=0), Request(width_px=3)):
        entries, source_type = read(made(Picture(COLOURS), request=request)[0])
        assert source_type == f"{TYPES}algorithmicallyEnhanced"
        assert "model" not in entries[0]["parameters"]
    reduced = made(Picture(COLOURS, xmp=packet(f'ext:DigitalSourceType="{TYPES}digitalCapture"')), request=request)
    assert read(reduced[0])[1] == f"{TYPES}digitalCapture"


RESOURCE = f'<ext:DigitalSourceType r:resource="{TYPES}trainedAlgorithmicMedia"/>'
TEXT = f"<ext:DigitalSourceType>{TYPES}digitalCapture</ext:DigitalSourceType>"


@pytest.mark.parametrize(
    ("attributes", "elements", "expected"),
    [
        (f'ext:DigitalSourceType="{TYPES}digitalCapture"', "", "compositeWithTrainedAlgorithmicMedia"),
        (f"ext:DigitalSourceType='{TYPES}trainedAlgorithmicMedia'", "", "trainedAlgorithmicMedia"),
        ("", TEXT, "compositeWithTrainedAlgorithmicMedia"),
        ("", RESOURCE, "trainedAlgorithmicMedia"),
        ("", "<ext:DigitalSourceType/>", "compositeWithTrainedAlgorithmicMedia"),
    ],
)
def test_what_was_generated_from_the_start_stays_so(attributes: str, elements: str, expected: str) -> None:
    content, _ = made(Picture(COLOURS, xmp=packet(attributes, elements)), format="webp")
    assert read(content)[1] == TYPES + expected


EARLIER = '<r:li e:action="created" e:softwareAgent="a camera"/>'


@pytest.mark.parametrize(
    ("history", "before"),
    [
        ("", []),
        ("<mm:History/>", []),
        ("<mm:History><r:Seq/></mm:History>", []),
        (f"<mm:History>\n<r:Seq>{EARLIER}</r:Seq>\n</mm:History>", ["a camera"]),
        (f"<mm:History><r:Seq>{EARLIER}{EARLIER}</r:Seq></mm:History><dc:type>x</dc:type>", ["a camera"] * 2),
    ],
)
def test_earlier_entries_of_the_history_stay_before(history: str, before: list[str]) -> None:
    source = packet('dc:format="a/b"', history, about="uuid:1")
    content, warnings = made(Picture(COLOURS, xmp=source))
    entries, _ = read(content)
    assert [entry["softwareAgent"] for entry in entries] == [*before, f"srgan {version('srgan')}"]
    root = packet_in(content)
    assert {element.get(f"{RDF}about") for element in root.iter(f"{RDF}Description")} == {"uuid:1"}
    assert b'dc:format="a/b"' in content
    assert warnings == ()


def test_a_result_that_is_enlarged_again_tells_of_both() -> None:
    first, _ = made(Picture(COLOURS))
    second, _ = made(decode(first), request=Request(2))
    entries, _ = read(second)
    assert [entry["parameters"] for entry in entries] == [PARAMETERS, PARAMETERS.replace("size x4", "size x2")]
    assert len(png_texts(second)["Software"].split("\n")) == 2


def test_what_is_no_packet_or_leaves_no_room_is_told_and_replaced() -> None:
    content, warnings = made(Picture(COLOURS, xmp=b"<x:xmpmeta>cut"), format="webp")
    assert warnings == ("its XMP data is damaged and was not kept",)
    assert len(read(content)[0]) == 1
    large = packet(elements=f"<dc:title>{'x' * 64_800}</dc:title>")
    content, warnings = made(Picture(COLOURS, xmp=large), format="jpg")
    assert warnings == ("JPEG holds 64 KB of XMP data, so this was not kept",)
    assert len(read(content)[0]) == 1
    assert made(Picture(COLOURS, xmp=large), format="png")[1] == ()


@pytest.mark.parametrize("inside", ["/>", "></x:xmpmeta>", f'><r:RDF xmlns:r="{RDF[1:-1]}"/></x:xmpmeta>'])
def test_a_packet_that_says_nothing_is_filled(inside: str) -> None:
    source = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"{inside}'.encode()
    content, warnings = made(Picture(COLOURS, xmp=source), format="webp")
    assert len(read(content)[0]) == 1
    assert warnings == ()


def test_names_are_written_as_xml() -> None:
    from dataclasses import replace

    engine = NearestEngine(replace(NearestEngine().metadata, name="a&b 'c"))
    entries, _ = read(made(Picture(COLOURS), Upscaler(engine=engine))[0])
    assert entries[0]["parameters"] == "model a&b 'c; size x4; strength 1"


def test_a_bundled_model_is_named_with_the_hash_of_its_file(tiny_model: Path) -> None:
    import hashlib

    sha256 = hashlib.sha256(tiny_model.read_bytes()).hexdigest()
    entries, _ = read(made(Picture(COLOURS), Upscaler(tiny_model))[0])
    assert f"sha256 {sha256}; size" in entries[0]["parameters"]


def test_a_label_is_part_of_the_settings_and_its_day_is_not() -> None:
    assert Order(label="off").fingerprint("x", 4) != Order().fingerprint("x", 4)


def test_a_day_that_is_none_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    engine = NearestEngine()
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH is 'yesterday'"):
        decide(Picture(COLOURS), Order(), Upscaler(engine=engine))
    decide(Picture(COLOURS), Order(label="off"), Upscaler(engine=engine))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert read(made(Picture(COLOURS))[0])[0][0]["when"] == "1970-01-02"


def test_the_command_takes_the_two_words_alone(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(Picture(COLOURS), "png"))

    def srgan(word: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "srgan", "upscale", tmp_path / "a.png", "-n", tiny_model, "--label", word]
        return subprocess.run([*map(str, command)], capture_output=True, text=True, env=os.environ)

    done = srgan("maybe")
    assert done.returncode == 2
    assert done.stderr == "srgan: error: label 'maybe' is not understood: choose on or off\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]
    assert srgan("off").returncode == 0
    assert b"srgan" not in (tmp_path / "a_x4.png").read_bytes()


# What vouches for the original


def with_credentials(format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, format)
    content, manifest = buffer.getvalue(), b"jumb of a manifest "
    if format == "WEBP":
        body = content[8:] + b"C2PA" + struct.pack("<L", len(manifest)) + manifest + bytes(len(manifest) % 2)
        return b"RIFF" + struct.pack("<L", len(body)) + body
    if format == "GIF":
        blocks = b"!\xff\x0bC2PA_GIF\1\0\0" + bytes([len(manifest)]) + manifest + b"\0"
        return content[:-1] + blocks + content[-1:]
    if format == "PNG":
        chunk = b"caBX" + manifest
        packed = struct.pack(">L", len(manifest)) + chunk + struct.pack(">L", zlib.crc32(chunk))
        return content[:33] + packed + content[33:]
    user_type = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
    return content + struct.pack(">L4s", 24 + len(manifest), b"uuid") + user_type + manifest


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "AVIF"])
def test_content_credentials_are_told_and_not_kept(format: str) -> None:
    picture = decode(with_credentials(format))
    assert [warning for warning in picture.warnings if "content credentials (C2PA)" in warning]
    content, warnings = made(picture)
    assert sum("content credentials (C2PA)" in warning for warning in warnings) == 1
    assert b"manifest" not in content
    Image.open(io.BytesIO(with_credentials(format))).load()
