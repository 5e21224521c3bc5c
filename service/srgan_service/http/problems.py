"""Every error is one RFC 9457 problem document, made here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from srgan.errors import (
    EngineError,
    FormatError,
    GuardError,
    PictureTooLargeError,
    SrganError,
    UnsupportedPictureError,
    UsageError,
)

MEDIA_TYPE = "application/problem+json"

# Code of a problem: its HTTP status and its title. Codes are stable; clients may tell problems apart by them.
PROBLEMS: dict[str, tuple[int, str]] = {
    "malformed-request": (400, "The request cannot be understood"),
    "no-picture": (400, "The request holds no picture"),
    "unauthorized": (401, "A valid API key is needed"),
    "foreign-origin": (403, "Pages from elsewhere may not use this service"),
    "not-found": (404, "There is nothing here"),
    "method-not-allowed": (405, "This method is not for this address"),
    "upload-too-slow": (408, "The upload is too slow"),
    "conflict": (409, "The request contradicts what is there"),
    "too-many-bytes": (413, "The upload is too large"),
    "too-many-pixels": (413, "The picture has too many pixels"),
    "chunks-too-small": (413, "The upload comes in chunks that are too small"),
    "takes-too-long": (413, "The picture takes longer than one request may"),
    "unsupported-format": (415, "This kind of file is not supported"),
    "range-not-satisfiable": (416, "The result has no such range"),
    "damaged-picture": (422, "The picture cannot be read"),
    "invalid-parameter": (422, "A parameter is wrong"),
    "key-over-share": (429, "This API key has too much in work"),
    "headers-too-large": (431, "The headers are too large"),
    "internal-error": (500, "Something went wrong here"),
    "queue-full": (503, "The queue is full"),
    "draining": (503, "The service is shutting down"),
    "not-ready": (503, "The service is not ready"),
    "engine-failed": (503, "The upscaler failed"),
    "storage-failed": (503, "The jobs' storage or database cannot be reached"),
    "too-many-connections": (503, "There are too many connections"),
    "deadline": (504, "The request took too long"),
}


# These are found before it is known what a request is for.
_OF_ANY_REQUEST = ("malformed-request", "foreign-origin", "headers-too-large", "too-many-connections")


class ProblemDocument(BaseModel):
    """An error, after RFC 9457."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:srgan:problem:queue-full"])
    title: str = Field(examples=["The queue is full"])
    status: int = Field(ge=400, le=599, examples=[503])
    detail: str
    code: str = Field(description="Stable; tells problems of one status apart.", examples=["queue-full"])
    request_id: str = Field(description="The same as in the X-Request-Id header and in the log.")


class Problem(Exception):  # noqa: N818  # RFC 9457's word
    """A request that ends in an error. `code`: a key of PROBLEMS. `retry_after_s`: when to come again."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status, self.title = PROBLEMS[code]
        self.detail = detail
        self.headers = dict(headers or {})
        if retry_after_s is None and self.status in (429, 503):
            retry_after_s = 1
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(min(3600, max(1, math.ceil(retry_after_s))))

    def document(self, request_id: str) -> dict[str, object]:
        """Return the problem as the JSON object that a client gets."""
        return {
            "type": f"urn:srgan:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail[:1000],
            "code": self.code,
            "request_id": request_id,
        }

    def response(self, request_id: str) -> JSONResponse:
        """Return the answer to a request with that id."""
        return JSONResponse(self.document(request_id), self.status, headers=self.headers, media_type=MEDIA_TYPE)


def draining() -> Problem:
    """Return what is said while the service ends."""
    return Problem("draining", "the service is shutting down; ask again in a moment", retry_after_s=5)


def too_long(limit_bytes: int) -> Problem:
    """Return what is said of a head above its limit."""
    return Problem("headers-too-large", f"the head of a request may have {limit_bytes} bytes")


def problem_of(error: SrganError) -> Problem:
    """Return what an error of the library means to a client."""
    # Of an upload: its title names the picture, so this says only what is wrong with it.
    detail = str(error).removeprefix("the picture: ")
    detail = f"it {detail}" if detail.startswith(("is ", "has ", "cannot ")) else detail
    match error:
        case PictureTooLargeError():
            return Problem("too-many-pixels", detail)
        case UnsupportedPictureError():
            return Problem("unsupported-format", detail)
        case UsageError() | FormatError():
            return Problem("invalid-parameter", detail)
        case GuardError():
            return Problem("not-ready", "pictures cannot be decoded now; try again", retry_after_s=5)
        case EngineError():
            return Problem("engine-failed", "the upscaler failed on this picture; try again, or another model")
        case _:
            return Problem("damaged-picture", detail)


def documented(*codes: str) -> dict[int | str, dict[str, object]]:
    """Return OpenAPI's responses for those problems and the ones of any request, as FastAPI takes them."""
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys([*_OF_ANY_REQUEST, *codes]):
        by_status.setdefault(PROBLEMS[code][0], []).append(code)
    return {status: _response(status, by_status[status]) for status in sorted(by_status)}


def _response(status: int, codes: list[str]) -> dict[str, object]:
    examples = {
        code: {
            "value": {
                "type": f"urn:srgan:problem:{code}",
                "title": PROBLEMS[code][1],
                "status": status,
                "detail": f"{PROBLEMS[code][1].lower()}: what exactly, and the remedy",
                "code": code,
                "request_id": "5f0c8d5b2f4e4f0d9a3b0f8f3a1c2d4e",
            }
        }
        for code in codes
    }
    response: dict[str, object] = {
        "description": "; ".join(f"`{code}`: {PROBLEMS[code][1].lower()}" for code in codes),
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}},
    }
    headers: dict[str, object] = {}
    if status in (429, 503):
        headers["Retry-After"] = {
            "description": "Seconds until it is worth trying again.",
            "schema": {"type": "integer", "minimum": 1},
        }
    if status == 401:
        headers["WWW-Authenticate"] = {"schema": {"type": "string"}}
    if headers:
        response["headers"] = headers
    return response
