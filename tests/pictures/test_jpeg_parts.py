"""What JPEG files hold beside their picture, and what metadata counts in pixels; read by Pillow and expat."""

from __future__ import annotations

import io
import struct
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from srgan.pictures import Picture, decode, encode, resized

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
SPACES = {
    "hdrgm": "http://ns.adobe.com/hdr-gain-map/1.0/",
    "Container": "http://ns.google.com/photos/1.0/container/",
    "Item": "http://ns.google.com/photos/1.0/container/item/",
    "GCamera": "http://ns.google.com/photos/1.0/camera/",
    "GPano": "http://ns.google.com/photos/1.0/panorama/",
    "xmpNote": "http://ns.adobe.com/xmp/note/",
    "dc": "http://purl.org/dc/elements/1.1/",
    "dcterms": "http://purl.org/dc/terms/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "stDim": "http://ns.adobe.com/xap/1.0/sType/Dimensions#",
}
DIRECTORY = """<Container:Directory><rdf:Seq><rdf:li rdf:parseType="Resource">
<Container:Item Item:Semantic="Primary" Item:Mime="image/jpeg"/></rdf:li></rdf:Seq></Container:Directory>"""
FILM = struct.pack(">L4s4sL", 16, b"ftyp", b"mp42", 0) + struct.pack(">L4s", 40, b"mdat") + bytes(range(1, 33))


def packet(attributes: str, elements: str = "", prefixes: dict[str, str] | None = None) -> bytes:
    spaces = " ".join(f'xmlns:{prefix}="{space}"' for prefix, space in (prefixes or SPACES).items())
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF[1:-1]}"><rdf:Description rdf:about="" '
        f"{spaces} {attributes}>{elements}</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg(*segments: bytes, xmp: bytes = b"", exif: bytes = b"", seed: int = 1) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (32, 48, 3), np.uint8)
    buffer = io.BytesIO()
    options = {"xmp": xmp} if xmp else {}
    Image.fromarray(levels).save(buffer, "JPEG", exif=exif, **options)
    return buffer.getvalue()[:2] + b"".join(segments) + buffer.getvalue()[2:]


def listed(lengths: list[int]) -> bytes:
    """Return the index of a file of several pictures (CIPA DC-007)."""
    entries = b"".join(struct.pack("<LLLHH", 0, length, 0, 0, 0) for length in lengths)
    head = struct.pack("<2sHLH", b"II", 42, 8, 3)
    head += struct.pack("<HHL4s", 0xB000, 7, 4, b"0100") + struct.pack("<HHLL", 0xB001, 4, 1, len(lengths))
    head += struct.pack("<HHLLL", 0xB002, 7, len(entries), 50, 0)
    return segment(0xE2, b"MPF\0" + head + entries)


def larger(content: bytes, times: int = 4) -> tuple[Picture, bytes]:
    """Return a picture as it is read, and the JPEG file of the same, so many times larger."""
    picture = decode(content)
    return picture, encode(resized(picture, times * picture.height, times * picture.width), "jpg")


def described(content: bytes) -> tuple[dict[str, str | None], set[str]]:
    """Return the attributes of an XMP packet, and the names of its elements, as an XML parser finds them."""
    tree = ET.fromstring(Image.open(io.BytesIO(content)).info["xmp"])
    (description,) = tree.iter(f"{RDF}Description")
    return dict(description.attrib), {element.tag for element in tree.iter()}


@pytest.mark.parametrize("with_index", [False, True])
def test_a_gain_map_that_means_nothing_is_told_and_no_longer_claimed(with_index: bool) -> None:
    xmp = packet('hdrgm:Version="1.0" dc:source="kept"', DIRECTORY)
    content = jpeg(*[listed([0, 0])] * with_index, xmp=xmp) + jpeg(xmp=packet('hdrgm:GainMapMax="2.0"'))
    picture, again = larger(content)
    words = "does not say how it is meant and was not kept"
    assert picture.warnings == (f"its gain map, which lets HDR screens show it brighter, {words}",)
    attributes, elements = described(again)
    assert attributes == {f"{RDF}about": "", f"{{{SPACES['dc']}}}source": "kept"}
    assert elements == {"{adobe:ns:meta/}xmpmeta", f"{RDF}RDF", f"{RDF}Description"}


def test_a_gain_map_by_the_iso_standard_is_told() -> None:
    content = jpeg(segment(0xE2, b"urn:iso:std:iso:ts:21496:-1\0" + bytes(4)), listed([0, 0])) + jpeg()
    words = "says nothing of how it is meant and was not kept"
    assert decode(content).warnings == (f"its gain map, which lets HDR screens show it brighter, {words}",)


def test_further_pictures_are_told() -> None:
    content = jpeg(listed([0, 0, 0])) + jpeg() + jpeg()
    words = "only the first picture of the file was read; others behind it are not kept"
    assert decode(content).warnings == (words,)
    assert decode(jpeg() + jpeg()).warnings == (words,)  # without an index, as some cameras write


def test_a_motion_photo_is_told_and_no_longer_claimed() -> None:
    names = 'GCamera:MotionPhoto="1" GCamera:MotionPhotoVersion="1" GCamera:MicroVideo="1" '
    names += 'GCamera:MicroVideoOffset="56"'
    picture, again = larger(jpeg(xmp=packet(names + ' GCamera:BurstID="7"', DIRECTORY)) + FILM)
    assert picture.warnings == ("the film of its motion photo was not kept",)
    attributes, elements = described(again)
    assert attributes == {f"{RDF}about": "", f"{{{SPACES['GCamera']}}}BurstID": "7"}
    assert len(elements) == 3
    assert b"ftyp" not in again


@pytest.mark.parametrize("format", ["png", "webp", "tiff", "avif", "jpg"])
def test_claims_go_whatever_prefix_they_have_and_whatever_format_is_written(format: str) -> None:
    prefixes = {"a": SPACES["hdrgm"], "b": SPACES["GCamera"], "c": SPACES["Container"], "Item": SPACES["Item"]}
    elements = "<a:Version>1.0</a:Version><b:MicroVideo>1</b:MicroVideo>" + DIRECTORY.replace("Container:", "c:")
    picture = Picture(np.zeros((8, 8, 3), np.uint8), xmp=packet("", elements, prefixes))
    written = decode(encode(picture, format)).xmp
    names = {element.tag for element in ET.fromstring(written).iter()}
    assert names == {"{adobe:ns:meta/}xmpmeta", f"{RDF}RDF", f"{RDF}Description"}


def test_extended_xmp_is_told_and_no_longer_claimed() -> None:
    extended = b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + struct.pack(">LL", 12, 0) + b"<x:xmpmeta/>"
    content = jpeg(xmp=packet(f'xmpNote:HasExtendedXMP="{"A" * 32}"'))
    picture, again = larger(content[:2] + segment(0xE1, extended) + content[2:])
    assert picture.warnings == ("its extended XMP data was not kept",)
    assert described(again)[0] == {f"{RDF}about": ""}


def test_content_credentials_are_told_and_no_longer_claimed() -> None:
    box = struct.pack(">HHL", 0x4A50, 1, 1) + struct.pack(">L4s", 40, b"jumb") + b"jumdc2pa" + bytes(20)
    picture, again = larger(jpeg(segment(0xEB, box), xmp=packet('dcterms:provenance="self#jumbf=c2pa/x"')))
    assert picture.warnings == (
        "its content credentials (C2PA) were not kept, since they vouch for the original alone",
    )
    assert described(again)[0] == {f"{RDF}about": ""}
    assert b"c2pa" not in again


def test_all_else_that_is_left_behind_is_told() -> None:
    assert decode(jpeg(segment(0xE1, b"FLIR\0\1" + bytes(9)))).warnings == (
        "its data of other programs (FLIR in APP1) was not kept",
    )
    assert decode(jpeg() + b"some text").warnings == ("9 bytes behind the picture in its file were not kept",)
    samsung = struct.pack("<HHL", 0, 0x0A01, 14) + b"Image_UTC_Data1" + b"SEFH" + bytes(16) + b"SEFT"
    assert decode(jpeg() + samsung).warnings == ("what its phone wrote behind the picture was not kept",)
    assert decode(jpeg() + bytes(512)).warnings == ()


def test_a_panorama_tells_its_new_size() -> None:
    names = (
        'GPano:FullPanoWidthPixels="400" GPano:FullPanoHeightPixels="200" GPano:ProjectionType="equirectangular"'
    )
    names += ' GPano:CroppedAreaImageWidthPixels="48" GPano:CroppedAreaImageHeightPixels="32"'
    names += ' GPano:CroppedAreaLeftPixels="7" GPano:InitialViewHeadingDegrees="180"'
    picture, again = larger(jpeg(xmp=packet(names, "<GPano:CroppedAreaTopPixels>5</GPano:CroppedAreaTopPixels>")))
    attributes, _ = described(again)
    told = {key.split("}")[1]: value for key, value in attributes.items() if SPACES["GPano"] in key}
    assert told == {
        "FullPanoWidthPixels": "1600",
        "FullPanoHeightPixels": "800",
        "ProjectionType": "equirectangular",
        "CroppedAreaImageWidthPixels": "192",
        "CroppedAreaImageHeightPixels": "128",
        "CroppedAreaLeftPixels": "28",
        "InitialViewHeadingDegrees": "180",
    }
    assert b"<GPano:CroppedAreaTopPixels>20</GPano:CroppedAreaTopPixels>" in again
    assert picture.warnings == ()


def exif(area: tuple[int, ...], orientation: int = 1) -> bytes:
    block = Image.Exif()
    block[0x010F] = "Maker"
    if orientation != 1:
        block[0x0112] = orientation
    block[0x8769] = {
        0x9003: "2020:01:02 03:04:05",
        0x9214: area,
        0xA20E: IFDRational(801, 2),
        0xA20F: IFDRational(1201, 4),
        0xA210: 3,
    }
    return block.tobytes()


@pytest.mark.parametrize("format", ["jpg", "png", "webp", "avif", "tiff"])
@pytest.mark.parametrize("area", [(10, 12), (10, 12, 5), (10, 12, 6, 4)])
def test_exif_tells_places_and_densities_of_the_new_size(format: str, area: tuple[int, ...]) -> None:
    picture = decode(jpeg(exif=exif(area)))
    content = encode(resized(picture, 3 * picture.height, 2 * picture.width), format)
    inside = Image.open(io.BytesIO(content)).getexif().get_ifd(0x8769)
    assert inside[0x9214] == tuple(value * (2, 3)[index % 2] for index, value in enumerate(area))
    assert (float(inside[0xA20E]), float(inside[0xA20F])) == (801, 900.75)
    assert inside[0x9003] == "2020:01:02 03:04:05"


@pytest.mark.parametrize(("area", "orientation"), [((10, 12, 6, 4), 6), ((40_000, 12, 6), 1), ((40_000, 12), 1)])
def test_places_that_cannot_be_told_are_dropped(area: tuple[int, ...], orientation: int) -> None:
    _, again = larger(jpeg(exif=exif(area, orientation)))
    block = Image.open(io.BytesIO(again)).getexif()
    inside = block.get_ifd(0x8769)
    assert 0x9214 not in inside
    assert (inside[0x9003], inside[0xA210], block[0x010F]) == ("2020:01:02 03:04:05", 3, "Maker")
    across, down = (300.25, 400.5) if orientation == 6 else (400.5, 300.25)
    assert (float(inside[0xA20E]), float(inside[0xA20F])) == (4 * across, 4 * down)


def test_xmp_tells_places_and_densities_of_the_new_size() -> None:
    area = "<exif:SubjectArea><rdf:Seq><rdf:li>10</rdf:li><rdf:li>12</rdf:li></rdf:Seq></exif:SubjectArea>"
    names = 'exif:FocalPlaneXResolution="801/2" stDim:w="48" stDim:h="32" stDim:unit="pixel"'
    _, again = larger(jpeg(xmp=packet(names, area)))
    attributes, _ = described(again)
    assert attributes[f"{{{SPACES['exif']}}}FocalPlaneXResolution"] == "16020000/10000"
    assert (attributes[f"{{{SPACES['stDim']}}}w"], attributes[f"{{{SPACES['stDim']}}}h"]) == ("192", "128")
    tree = ET.fromstring(Image.open(io.BytesIO(again)).info["xmp"])
    assert [element.text for element in tree.iter(f"{RDF}li")] == ["40", "48"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gainmap-ultrahdr", "gain map"),
        ("motion-photo", "film"),
        ("extended-xmp", "extended XMP"),
        ("gpano-360", ""),
    ],
)
def test_real_files(shared: Path, name: str, words: str) -> None:
    picture, again = larger((shared / "repro" / f"{name}.jpg").read_bytes())
    assert [words in warning for warning in picture.warnings] == [True] * bool(words)
    assert not {b"hdrgm", b"GCamera", b"Container", b"HasExtendedXMP"} & set(again.replace(b":", b" ").split())
    if name == "gpano-360":
        assert b'FullPanoWidthPixels="256"' in again
