"""XMP packets: what speaks of things that are not kept is taken out, what counts pixels follows the size."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

# Namespaces, and which names of them speak of what lies behind a picture in its file and is not kept: gain maps,
# films, depth maps, lists of all these, and the part of a packet that did not fit into its first segment.
_ABSENT = {
    b"http://ns.adobe.com/hdr-gain-map/1.0/": rb"[\w.-]+",
    b"http://ns.apple.com/HDRGainMap/1.0/": rb"[\w.-]+",
    b"http://ns.google.com/photos/1.0/camera/": rb"(?:MotionPhoto|MicroVideo)[\w.-]*",
    b"http://ns.google.com/photos/1.0/container/": rb"[\w.-]+",
    b"http://ns.google.com/photos/1.0/container/item/": rb"[\w.-]+",
    b"http://ns.google.com/photos/1.0/depthmap/": rb"[\w.-]+",
    b"http://ns.google.com/photos/1.0/image/": rb"[\w.-]+",
    b"http://ns.google.com/photos/1.0/audio/": rb"[\w.-]+",
    b"http://ns.google.com/photos/dd/1.0/container/": rb"[\w.-]+",
    b"http://ns.google.com/photos/dd/1.0/item/": rb"[\w.-]+",
    b"http://ns.google.com/photos/dd/1.0/device/": rb"[\w.-]+",
    b"http://ns.adobe.com/xmp/note/": rb"HasExtendedXMP",
}
_NAMESPACE = re.compile(rb"""\sxmlns:([A-Za-z_][\w.-]*)\s*=\s*(["'])([^"'<>]*)\2""")

# A link to content credentials in the file itself, which vouch for the original alone.
_CREDENTIALS = re.compile(rb"""\s[\w.-]+:provenance\s*=\s*(["'])self#jumbf[^"'<>]*\1""")

_RDF = b"http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_HISTORY = b"http://ns.adobe.com/xap/1.0/mm/"
_EVENT = "http://ns.adobe.com/xap/1.0/sType/ResourceEvent#"
_IPTC = b"http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_EMPTY = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="%s"></rdf:RDF></x:xmpmeta><?xpacket end="w"?>' % _RDF
)

_PANORAMA = b"http://ns.google.com/photos/1.0/panorama/"
# Lengths in pixels of a panorama, by whether they lie across.
_ACROSS = tuple(
    b"FullPanoWidthPixels CroppedAreaLeftPixels LargestValidInteriorRectLeft LargestValidInteriorRectWidth".split()
)
_DOWN = tuple(
    b"FullPanoHeightPixels CroppedAreaTopPixels LargestValidInteriorRectTop LargestValidInteriorRectHeight".split()
)

# What a JPEG file says of the gain map behind it (Adobe, Gain map specification 1.0; Google, Ultra HDR 1.1).
_GAIN_MAP = (
    b'<rdf:Description rdf:about="" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
    b'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" '
    b'xmlns:Container="http://ns.google.com/photos/1.0/container/" '
    b'xmlns:Item="http://ns.google.com/photos/1.0/container/item/" hdrgm:Version="1.0"><Container:Directory>'
    b"<rdf:Seq>"
    b'<rdf:li rdf:parseType="Resource"><Container:Item Item:Semantic="Primary" Item:Mime="image/jpeg"/></rdf:li>'
    b'<rdf:li rdf:parseType="Resource"><Container:Item Item:Semantic="GainMap" Item:Mime="image/jpeg" '
    b'Item:Length="%d"/></rdf:li></rdf:Seq></Container:Directory></rdf:Description>'
)


_HEAD = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
_TAIL = b"</rdf:RDF></x:xmpmeta>"
_END = re.compile(rb"</[\w.-]{1,20}:RDF\s*>")

# So much longer a packet becomes, by the longest length.
GAIN_MAP_BYTES = len(_GAIN_MAP % 2**32)


def packet(attributes: bytes, elements: bytes = b"") -> bytes:
    """Return an XMP packet of one description with these attributes and elements."""
    return _HEAD + b'<rdf:Description rdf:about="" ' + attributes + b">" + elements + b"</rdf:Description>" + _TAIL


def values(packet: bytes, space: bytes, name: bytes) -> list[bytes]:
    """Return the texts of a property, told as an attribute, an element or a list; none if it is not there."""
    for prefix in {prefix for prefix, _, uri in _NAMESPACE.findall(packet) if uri == space}:
        full = re.escape(prefix) + b":" + name
        if attribute := re.search(rb"\s" + full + rb"""\s*=\s*(["'])([^"'<>]*)\1""", packet):
            return [attribute[2]]
        start, closing = re.search(rb"<" + full + rb"(?:\s[^<>]*)?>", packet), b"</" + prefix + b":" + name
        if start and (end := packet.find(closing, start.end())) >= 0:
            body = packet[start.end() : end]
            return re.findall(rb"<rdf:li\b[^<>]*>([^<>]*)</rdf:li", body) or [body]
    return []


def is_whole(packet: bytes) -> bool:
    """Return whether a packet ends as one does, so that something can be added to it."""
    return _END.search(packet) is not None


def with_gain_map(packet: bytes, length_bytes: int) -> bytes:
    """Return a packet that also tells of a gain map of so many bytes behind the picture.

    `packet`: one that is whole, or nothing.
    """
    packet = packet or _HEAD + _TAIL
    place = [match.start() for match in _END.finditer(packet)][-1]
    return packet[:place] + _GAIN_MAP % length_bytes + packet[place:]


def without_absent(packet: bytes) -> bytes:
    """Return an XMP packet that claims nothing of what lies behind a picture in its file."""
    prefixes = {(prefix, space) for prefix, _, space in _NAMESPACE.findall(packet) if space in _ABSENT}
    for prefix, space in sorted(prefixes):
        name = re.escape(prefix) + b":" + _ABSENT[space]
        packet = _without_elements(packet, name)
        packet = re.sub(rb"\s" + name + rb"""\s*=\s*(["'])[^"'<>]*\1""", b"", packet)
        if not re.search(rb"[\s</\"']" + re.escape(prefix) + b":", packet):
            declared = rb"\sxmlns:" + re.escape(prefix) + rb"""\s*=\s*(["'])[^"'<>]*\1"""
            packet = re.sub(declared, b"", packet)
    return _CREDENTIALS.sub(b"", packet)


@dataclass(frozen=True)
class Event:
    """An entry of the history of a picture: with which program, how, and when (YYYY-MM-DD) it was edited."""

    program: str
    parameters: str
    day: str


def with_event(packet: bytes, event: Event, source_type: Callable[[str], str]) -> bytes | None:
    """Return an XMP packet, which may be empty, whose history ends with `event`; None if it cannot be read.

    `source_type`: returns IPTC's DigitalSourceType for the one that was said before, "" for none.
    """
    packet = _opened(packet or _EMPTY)
    rdf = _prefixes(packet, _RDF)
    ends = [(place, prefix) for prefix in rdf if (place := packet.rfind(b"</" + prefix + b":RDF>")) >= 0]
    if not ends:
        return None
    packet, before = _taken(packet, _IPTC, b"DigitalSourceType")
    entry = _entry(event)
    packet, is_added = _with_entry(packet, entry, max(ends)[1])
    history = b"" if is_added else b"<xmpMM:History><rdf:Seq>%s</rdf:Seq></xmpMM:History>" % entry
    about = re.search(rb"""\s[\w.-]+:about\s*=\s*(["'])([^"'<>]*)\1""", packet)
    description = (
        b'<rdf:Description xmlns:rdf="%s" xmlns:xmpMM="%s" xmlns:Iptc4xmpExt="%s" rdf:about="%s">%s'
        b"<Iptc4xmpExt:DigitalSourceType>%s</Iptc4xmpExt:DigitalSourceType></rdf:Description>"
    ) % (
        _RDF,
        _HISTORY,
        _IPTC,
        about[2] if about else b"",
        history,
        escape(source_type(before.decode("utf-8", "replace"))).encode(),
    )
    place = packet.rfind(b"</" + max(ends)[1] + b":RDF>")
    return packet[:place] + description + packet[place:]


def _opened(packet: bytes) -> bytes:
    """Return a packet whose element of RDF has an end tag, if it can have one."""
    packet = re.sub(rb"<([\w.-]+:(?:RDF|xmpmeta|xapmeta))(\s[^<>]*)?/>", rb"<\1\2></\1>", packet)
    end = re.search(rb"</[\w.-]+:(?:xmpmeta|xapmeta)>", packet)
    if end is None or re.search(rb"</[\w.-]+:RDF>", packet):
        return packet
    return packet[: end.start()] + b'<rdf:RDF xmlns:rdf="%s"></rdf:RDF>' % _RDF + packet[end.start() :]


def _entry(event: Event) -> bytes:
    facts = {
        "action": "edited",
        "softwareAgent": event.program,
        "when": event.day,
        "parameters": event.parameters,
        "changed": "/",
    }
    fields = " ".join(f"stEvt:{name}={quoteattr(value)}" for name, value in facts.items())
    return f'<rdf:li xmlns:rdf="{_RDF.decode()}" xmlns:stEvt="{_EVENT}" {fields}/>'.encode()


def _with_entry(packet: bytes, entry: bytes, rdf: bytes) -> tuple[bytes, bool]:
    """Return the packet with `entry` at the end of the history that it has, and whether it has one."""
    for prefix in _prefixes(packet, _HISTORY):
        end = packet.rfind(b"</" + prefix + b":History>")
        list_end = packet.rfind(b"</" + rdf + b":Seq>", 0, max(0, end))
        if end >= 0 and list_end >= 0 and not packet[packet.index(b">", list_end) + 1 : end].strip():
            return packet[:list_end] + entry + packet[list_end:], True
        packet, _ = _taken(packet, _HISTORY, b"History")  # an empty one
    return packet, False


def _prefixes(packet: bytes, space: bytes) -> list[bytes]:
    """Return the names by which a packet calls a namespace."""
    return sorted({prefix for prefix, _, named in _NAMESPACE.findall(packet) if named == space})


def _taken(packet: bytes, space: bytes, name: bytes) -> tuple[bytes, bytes]:
    """Return the packet without a property, and its value: an attribute, an element's text or its resource."""
    value = b""
    for prefix in _prefixes(packet, space):
        full = re.escape(prefix) + b":" + name
        attribute = re.compile(rb"\s" + full + rb"""\s*=\s*(["'])([^"'<>]*)\1""")
        if match := attribute.search(packet):
            value = match[2]
        packet = attribute.sub(b"", packet)
        if match := re.search(rb"<" + full + rb"""\s[^<>]*:resource\s*=\s*(["'])([^"'<>]*)\1""", packet):
            value = match[2]
        elif match := re.search(rb"<" + full + rb"(?:\s[^<>]*)?>([^<>]*)<", packet):
            value = match[1].strip()
        packet = _without_elements(packet, full)
    return packet, value


def _without_elements(packet: bytes, name: bytes) -> bytes:
    """Return `packet` without the elements whose names match; from one that has no end tag on, all is kept."""
    start = re.compile(rb"<(" + name + rb")(?=[\s/>])[^<>]*>")
    kept, place = [], 0
    while match := start.search(packet, place):
        end = match.end()
        if not match[0].endswith(b"/>"):
            closing = b"</" + match[1] + b">"
            end = packet.find(closing, end) + len(closing)
            if end < len(closing):
                break
        kept.append(packet[place : match.start()])
        place = end
    return b"".join([*kept, packet[place:]])


def resized(packet: bytes, height: int, width: int, scale: tuple[float, float]) -> bytes:
    """Return an XMP packet whose lengths in pixels are those of a picture of this size.

    `scale`: how many times longer (across, down) it has become. What is told of a panorama follows from its own
    sizes, since those of others may be of another version of the picture.
    """
    for prefix in {prefix for prefix, _, space in _NAMESPACE.findall(packet) if space == _PANORAMA}:
        packet = _resized_panorama(packet, prefix, height, width)
    if scale == (1, 1):
        return packet
    across, down = scale
    packet = _scaled(packet, b"exif:FocalPlaneXResolution", across)
    packet = _scaled(packet, b"exif:FocalPlaneYResolution", down)
    # Of regions such as faces, which are told as shares of these.
    packet = _scaled(packet, b"stDim:w", across, whole=True)
    packet = _scaled(packet, b"stDim:h", down, whole=True)
    return re.sub(
        rb"(<exif:Subject(?:Area|Location)\b[^<>]*>\s*<rdf:Seq>)((?:\s*<rdf:li>[\d\s]{1,12}</rdf:li>)+)",
        lambda match: match[1] + _scaled_area(match[2], scale),
        packet,
    )


def _scaled_area(items: bytes, scale: tuple[float, float]) -> bytes:
    """Return a list of x and y, and a diameter or width and height, at another size."""
    sides = iter([*scale, *scale] * items.count(b"<rdf:li>"))
    return re.sub(rb"\d+", lambda match: b"%d" % round(int(match[0]) * next(sides)), items)


def _resized_panorama(packet: bytes, prefix: bytes, height: int, width: int) -> bytes:
    for of_picture, of_whole, names, side in (
        (b"CroppedAreaImageWidthPixels", b"FullPanoWidthPixels", _ACROSS, width),
        (b"CroppedAreaImageHeightPixels", b"FullPanoHeightPixels", _DOWN, height),
    ):
        told = _number(packet, prefix + b":" + of_picture) or _number(packet, prefix + b":" + of_whole)
        if not told:
            continue
        for name in (of_picture, *names):
            packet = _scaled(packet, prefix + b":" + name, side / told, whole=True)
    return packet


def _property(name: bytes) -> re.Pattern[bytes]:
    """Match an attribute (a:b="6") or element (<a:b>6</a:b>): what is before, a number, its denominator."""
    return re.compile(
        rb"([\s<]"
        + re.escape(name)
        + rb"""(?:\s*=\s*["']|>)\s*)(\d{1,12}(?:\.\d{1,12})?)(?:/(\d{1,12}))?(?=\s*["'<])"""
    )


def _number(packet: bytes, name: bytes) -> float | None:
    match = _property(name).search(packet)
    return float(match[2]) if match else None


def _scaled(packet: bytes, name: bytes, factor: float, *, whole: bool = False) -> bytes:
    def scaled(match: re.Match[bytes]) -> bytes:
        value = float(match[2]) * factor / (float(match[3] or 1) or 1)
        if match[3] and not whole:
            return match[1] + b"%d/10000" % round(value * 10000)
        return match[1] + (b"%d" % round(value) if whole else f"{value:.10g}".encode())

    return _property(name).sub(scaled, packet)
