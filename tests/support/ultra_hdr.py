"""JPEG files with gain maps, written and read without a line of the program: by expat, struct and Pillow."""

from __future__ import annotations

import io
import struct
import xml.etree.ElementTree as ET
from dataclasses import dataclass

import numpy as np
from PIL import Image

XMP, ISO = b"http://ns.adobe.com/xap/1.0/\0", b"urn:iso:std:iso:ts:21496:-1\0"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
HDRGM = "{http://ns.adobe.com/hdr-gain-map/1.0/}"
CONTAINER = "{http://ns.google.com/photos/1.0/container/}"
ITEM = "{http://ns.google.com/photos/1.0/container/item/}"

Segments = list[tuple[int, bytes, int]]


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg(levels: np.ndarray, *segments: bytes, exif: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=98, subsampling=0, exif=exif)
    return buffer.getvalue()[:2] + b"".join(segments) + buffer.getvalue()[2:]


def packet(attributes: str, elements: str = "") -> bytes:
    spaces = f'xmlns:hdrgm="{HDRGM[1:-1]}" xmlns:Container="{CONTAINER[1:-1]}" xmlns:Item="{ITEM[1:-1]}"'
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF[1:-1]}"><rdf:Description rdf:about="" '
        f"{spaces} {attributes}>{elements}</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def directory(length: int) -> str:
    items = [
        'Item:Semantic="Primary" Item:Mime="image/jpeg"/',
        f'Item:Semantic="GainMap" Item:Length="{length}"/',
    ]
    listed = "".join(f'<rdf:li rdf:parseType="Resource"><Container:Item {item}></rdf:li>' for item in items)
    return f"<Container:Directory><rdf:Seq>{listed}</rdf:Seq></Container:Directory>"


def by_xmp(**values: object) -> bytes:
    """Return a map's packet: numbers as attributes, tuples as lists."""
    simple = " ".join(f'hdrgm:{name}="{value}"' for name, value in values.items() if not isinstance(value, tuple))
    lists = "".join(
        f"<hdrgm:{name}><rdf:Seq>{''.join(f'<rdf:li>{each}</rdf:li>' for each in value)}</rdf:Seq></hdrgm:{name}>"
        for name, value in values.items()
        if isinstance(value, tuple)
    )
    return segment(0xE1, XMP + packet(f'hdrgm:Version="1.0" {simple}', lists))


def by_iso(headrooms: tuple[float, float], channels: list[tuple[float, ...]]) -> bytes:
    """Return a map's segment by the standard; `channels`: least, greatest, gamma and two offsets of each."""
    numbers = [*headrooms, *(number for channel in channels for number in channel)]
    body = b"".join(struct.pack(">lL", round(1000 * number), 1000) for number in numbers)
    return segment(0xE2, ISO + struct.pack(">HHB", 0, 0, 0x40 | 0x80 * (len(channels) == 3)) + body)


def ultra_hdr(levels: np.ndarray, gain_map: bytes, *, xmp: str = "", exif: bytes = b"", wrong: int = 0) -> bytes:
    """Return a picture with the file of its gain map behind it; `wrong`: is added to all places and lengths."""
    claim = segment(0xE1, XMP + packet(f'hdrgm:Version="1.0" {xmp}', directory(len(gain_map) + wrong)))
    iso = segment(0xE2, ISO + bytes(4))
    length = len(jpeg(levels, claim, iso, index(0, 0, 0), exif=exif))
    from_index = length - 2 - len(claim) - len(iso) - 8
    return (
        jpeg(levels, claim, iso, index(length + wrong, len(gain_map) + wrong, from_index + wrong), exif=exif)
        + gain_map
    )


def index(length: int, behind: int, offset: int, count: int = 2) -> bytes:
    """Return the index of a file of several pictures (CIPA DC-007), in little endian."""
    entries = struct.pack("<LLLHH", 0x030000, length, 0, 0, 0)
    entries += struct.pack("<LLLHH", 0, behind, offset, 0, 0) * (count - 1)
    head = struct.pack("<2sHLH", b"II", 42, 8, 3)
    head += struct.pack("<HHL4s", 0xB000, 7, 4, b"0100") + struct.pack("<HHLL", 0xB001, 4, 1, count)
    head += struct.pack("<HHLLL", 0xB002, 7, len(entries), 50, 0)
    return segment(0xE2, b"MPF\0" + head + entries)


@dataclass
class Read:
    """What a file holds: its picture, and of its gain map levels and what each form says of them.

    `by_xmp`, `by_iso`: least and greatest gain, gamma and offsets, three of each, and two headrooms.
    """

    picture: Image.Image
    gain_map: Image.Image
    by_xmp: dict[str, tuple[float, ...]]
    by_iso: dict[str, tuple[float, ...]]

    def boosts(self, values: dict[str, tuple[float, ...]]) -> np.ndarray:
        """Return by how much each place is brighter at full weight, (H,W,3), by the formula that both publish."""
        levels = np.asarray(self.gain_map, np.float64) / 255
        levels = levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, axis=2)
        low, high, gamma = (np.array(values[name]) for name in ("GainMapMin", "GainMapMax", "Gamma"))
        boosts: np.ndarray = 2 ** (low + (high - low) * levels ** (1 / gamma))
        return boosts


def read(content: bytes) -> Read:
    """Read a file by its index, and see that all its places and lengths are true."""
    segments = _segments(content)
    ((body, place),) = [(body, place) for marker, body, place in segments if body.startswith(b"MPF\0")]
    first, second = _entries(body[4:])
    assert first[1:] == (second[2] + place + 4, 0)  # its length is where the second begins
    start = place + 4 + second[2]
    assert content[start : start + 3] == b"\xff\xd8\xff"
    assert content[start - 2 : start] == b"\xff\xd9"
    assert len(content) == start + second[1]
    (xmp,) = [body[len(XMP) :] for _, body, _ in segments if body.startswith(XMP)]
    described = ET.fromstring(xmp)
    assert [each.get(f"{HDRGM}Version") for each in described.iter(f"{RDF}Description")].count("1.0") == 1
    items = [
        (item.get(f"{ITEM}Semantic"), item.get(f"{ITEM}Length")) for item in described.iter(f"{CONTAINER}Item")
    ]
    assert items == [("Primary", None), ("GainMap", str(second[1]))]
    assert [body for _, body, _ in segments if body.startswith(ISO)] == [ISO + bytes(4)]
    behind = content[start:]
    of_map = _segments(behind)
    (map_xmp,) = [body[len(XMP) :] for _, body, _ in of_map if body.startswith(XMP)]
    (map_iso,) = [body[len(ISO) :] for _, body, _ in of_map if body.startswith(ISO)]
    picture, gain_map = (Image.open(io.BytesIO(part)) for part in (content[:start], behind))
    picture.load()
    gain_map.load()
    return Read(picture, gain_map, _of_xmp(map_xmp), _of_iso(map_iso))


def _segments(content: bytes) -> Segments:
    """Return marker, body and the body's place of all segments before the coded data."""
    found, place = [], 2
    while content[place + 1] != 0xDA:
        length = int.from_bytes(content[place + 2 : place + 4])
        found.append((content[place + 1], content[place + 4 : place + 2 + length], place + 4))
        place += 2 + length
    return found


def _entries(tiff: bytes) -> list[tuple[int, int, int]]:
    """Return attribute, length and offset of each picture in an index."""
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    (first,) = struct.unpack_from(order + "L", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, first)
    tags = [struct.unpack_from(order + "HHLL", tiff, first + 2 + 12 * number) for number in range(count)]
    assert [tag[0] for tag in tags] == [0xB000, 0xB001, 0xB002]
    entries = [struct.unpack_from(order + "LLL", tiff, tags[2][3] + 16 * number) for number in range(tags[1][3])]
    assert entries[0][0] & 0xFFFFFF == 0x030000
    return entries


def _of_xmp(xmp: bytes) -> dict[str, tuple[float, ...]]:
    (described,) = ET.fromstring(xmp).iter(f"{RDF}Description")
    assert described.get(f"{HDRGM}BaseRenditionIsHDR") == "False"
    values = {}
    for name in (
        "GainMapMin",
        "GainMapMax",
        "Gamma",
        "OffsetSDR",
        "OffsetHDR",
        "HDRCapacityMin",
        "HDRCapacityMax",
    ):
        text = described.get(HDRGM + name)
        texts = [text] * 3 if text else [item.text for item in described.iterfind(f"{HDRGM}{name}/*/{RDF}li")]
        values[name] = tuple(float(text or "nan") for text in texts)
    return values


def _of_iso(body: bytes) -> dict[str, tuple[float, ...]]:
    least, _, flags = struct.unpack_from(">HHB", body)
    assert (least, flags & 0x3F) == (0, 0)
    count = 3 if flags & 0x80 else 1
    pairs = list(struct.iter_unpack(">lL", body[5:]))
    assert len(pairs) == 2 + 5 * count
    numbers = [numerator / denominator for numerator, denominator in pairs]
    names = ("GainMapMin", "GainMapMax", "Gamma", "OffsetSDR", "OffsetHDR")
    values = {name: tuple(numbers[2 + place :: 5] * (3 // count)) for place, name in enumerate(names)}
    return values | {"HDRCapacityMin": (numbers[0],) * 3, "HDRCapacityMax": (numbers[1],) * 3}
