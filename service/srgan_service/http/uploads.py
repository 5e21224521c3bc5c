"""A request's body: cut off at its limits in bytes and time while it comes in, never later."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from srgan.pictures import NO_PICTURE, looks_like_picture
from srgan_service.http.parameters import (
    MASK_FIELD,
    MAX_FIELD_BYTES,
    MAX_FIELDS,
    Wish,
    is_picture_field,
    text_fields,
    with_form,
)
from srgan_service.http.problems import Problem

# Of a form, between two turns of the loop. Plain data costs nothing, and what is made to cost much a millisecond.
_PIECE_BYTES = 16 * 1024
_MOST_BOUNDARY_BYTES = 70  # RFC 2046, section 5.1.1


@dataclass(frozen=True)
class BodyLimits:
    """What a body may be. It must come in within `timeout_s` and what its bytes earn it at `bytes_per_s`."""

    bytes: int
    timeout_s: float
    bytes_per_s: int


class Body:
    """The body of a request, read once. `count` is told of bytes that were not announced, and may refuse them.

    Reading it raises Problem if it is too large or too slow, ClientDisconnect if it ends early.
    """

    def __init__(self, request: Request, limits: BodyLimits, count: Callable[[int], None]) -> None:
        self._request = request
        self._limits = limits
        self._count = count
        self._announced = announced_bytes(request.headers)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes in."""
        started, received, counted = time.monotonic(), 0, self._announced
        stream = self._request.stream()
        while True:
            earned = received / self._limits.bytes_per_s
            left = started + self._limits.timeout_s + earned - time.monotonic()
            try:
                chunk = await asyncio.wait_for(anext(stream, None), max(0.0, left))
            except TimeoutError:
                raise Problem("upload-too-slow", "the upload did not come in in time") from None
            if chunk is None:
                return
            received += len(chunk)
            if received > self._limits.bytes:
                raise too_large(self._limits.bytes)
            if received > counted:  # chunked: counted as it comes
                self._count(received - counted)
                counted = received
            yield chunk

    async def raw(self) -> bytes:
        """Return the whole body."""
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
        return bytes(body)

    @contextlib.asynccontextmanager
    async def form(self, *, max_files: int, spool_bytes: int) -> AsyncIterator[list[tuple[str, str | UploadFile]]]:
        """Parse the body as multipart form data; its files are closed at the end of the context.

        `spool_bytes`: from which size on a file lies on the disk in the meantime.
        """
        parser = _FormParser(
            _boundary(self._request.headers),
            self.chunks(),
            max_files=max_files,
            max_fields=MAX_FIELDS,
            max_part_size=MAX_FIELD_BYTES,
        )
        parser.spool_max_size = spool_bytes
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise Problem("malformed-request", f"multipart: {error.message[:200]}") from error
        try:
            yield form.multi_items()
        finally:
            for _, value in form.multi_items():
                if isinstance(value, UploadFile):
                    value.file.close()


class _FormParser(MultiPartParser):
    """Takes a form apart piece by piece, in UTF-8 as RFC 7578 has it, whatever `charset` its header names.

    Refuses one that breaks off, as the last part of a whole one is only known by the boundary behind it, and one
    of more boundaries than parts are allowed: each costs a thousand times its bytes. The refusal comes while the
    form is parsed, so that the parser closes the files it has begun.
    """

    def __init__(
        self,
        boundary: bytes,
        stream: AsyncGenerator[bytes, None],
        *,
        max_files: int,
        max_fields: int,
        max_part_size: int,
    ) -> None:
        quoted = boundary.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        headers = Headers(raw=[(b"content-type", b'multipart/form-data; boundary="%b"' % quoted)])
        super().__init__(
            headers,
            self._whole(stream, b"\r\n--" + boundary, max_files + max_fields),
            max_files=max_files,
            max_fields=max_fields,
            max_part_size=max_part_size,
        )
        self._has_ended = False

    def on_end(self) -> None:
        self._has_ended = True

    async def _whole(
        self, stream: AsyncGenerator[bytes, None], delimiter: bytes, most_parts: int
    ) -> AsyncGenerator[bytes, None]:
        parts = 0
        async for chunk in stream:
            for start in range(0, len(chunk), _PIECE_BYTES):
                piece = chunk[start : start + _PIECE_BYTES]
                parts += piece.count(delimiter)
                if parts > most_parts:
                    raise MultiPartException(f"more than {most_parts} parts")
                yield piece
                await asyncio.sleep(0)
        if not self._has_ended:
            raise MultiPartException("the form breaks off before its last boundary")


def _boundary(headers: Headers) -> bytes:
    """Return what divides a form, or raise the Problem that nothing can."""
    boundary = parse_options_header(headers["content-type"])[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= _MOST_BOUNDARY_BYTES:
        raise Problem("malformed-request", f"multipart: a boundary has 1 to {_MOST_BOUNDARY_BYTES} characters")
    return boundary


def announced_bytes(headers: Headers) -> int:
    """Return what a request says of its length, 0 if it says nothing."""
    length = headers.get("content-length", "0")
    return int(length) if length.isascii() and length.isdecimal() and len(length) < 19 else 0


def too_large(limit_bytes: int) -> Problem:
    """Return what is said of an upload above its limit."""
    return Problem("too-many-bytes", f"the upload is larger than {limit_bytes} bytes")


def is_form(headers: Headers) -> bool:
    """Return whether a body is multipart form data."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data"


@dataclass(frozen=True)
class PictureUpload:
    """The picture of a request, called `name`, with its wish. `mask`: the file of a mask, None for none."""

    content: bytes
    name: str
    wish: Wish
    mask: bytes | None = None


async def one_picture(body: Body, headers: Headers, wish: Wish) -> PictureUpload:
    """Return the picture of a body, raw or in a form, with what the form adds to the wish, and its mask."""
    if not is_form(headers):
        return PictureUpload(check_kind(await body.raw()), "", wish)
    async with body.form(max_files=2, spool_bytes=2**62) as items:
        wish = with_form(wish, text_fields(items, mask=True))
        files = [(name, value) for name, value in items if isinstance(value, UploadFile)]
        masks = [check_kind(await value.read()) for name, value in files if name == MASK_FIELD]
        pictures = [value for name, value in files if is_picture_field(name)]
        if len(pictures) > 1 or len(masks) > 1:
            raise Problem("malformed-request", "a request is of one picture, and may have one mask")
        if pictures:
            content = check_kind(await pictures[0].read())
            return PictureUpload(content, pictures[0].filename or "", wish, masks[0] if masks else None)
    raise Problem("no-picture", "the form has no file in a field named image or file")


def check_kind(content: bytes) -> bytes:
    """Return `content` if it begins like a picture that can be read, or raise the Problem that it is not."""
    if not content:
        raise Problem("no-picture", "the upload is empty")
    if not looks_like_picture(content[:32]):
        raise Problem("unsupported-format", NO_PICTURE)
    return content
