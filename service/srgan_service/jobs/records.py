"""What a job is: as the database holds it, in JSON, and as its owner sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypedDict, final

from pydantic import BaseModel, Field

JobStatus = Literal["pending", "processing", "completed", "failed", "cancelled"]


@dataclass(frozen=True)
class Upload:
    """A picture of a new job. `name`: what the client calls it; shown, and used for nothing else.

    `read`: returns its bytes; it is called once or twice, and one picture's bytes are held at a time.
    """

    name: str
    read: Callable[[], bytes]


# In the database. Plain dictionaries: DBOS writes them as JSON and gives them back as they are.


class PictureSpec(TypedDict):
    """A picture that a job is to upscale. `sha256`: of its bytes, in hexadecimal."""

    name: str
    bytes: int
    sha256: str


class JobSpec(TypedDict):
    """What a job is to do. `parameters`: those of `Wish` that the client set.

    `token`: in the names of its pictures' files, so that two requests with one key do not meet. `fingerprint`: of
    all but the token.
    """

    files: list[PictureSpec]
    parameters: dict[str, object]
    token: str
    fingerprint: str


@final
class PictureDone(TypedDict):
    """A picture that was upscaled. `path`: of the result in the storage; `width` and `height` in pixels."""

    path: str
    format: str
    width: int
    height: int
    bytes: int
    warnings: list[str]
    sha256: str


@final
class PictureFailed(TypedDict):
    """A picture that was not. `code`: that of a problem."""

    code: str
    detail: str


PictureOutcome = PictureDone | PictureFailed


class ResultFile(TypedDict):
    """The file that a job gives. `name`: for the client's disk; `etag`: without quotes."""

    path: str
    bytes: int
    media_type: str
    etag: str
    name: str


class JobOutcome(TypedDict):
    """What a job has come to. `result`: None if none of its pictures could be upscaled."""

    files: list[PictureOutcome]
    result: ResultFile | None


# For its owner.


class JobError(BaseModel):
    """Why a picture or a job failed; `code` is that of a problem document."""

    code: str
    detail: str


class JobFile(BaseModel):
    """A picture of a job."""

    name: str = Field(description="As the client called it.")
    bytes: int
    width: int | None = Field(None, description="Of the result, in pixels.")
    height: int | None = None
    warnings: list[str] = Field([], description="What of the upload is not as it was, once it is done.")
    error: JobError | None = None


@dataclass
class Job:
    """A job as its owner sees it. `progress`: the finished fraction, from 0 to 1."""

    id: str
    status: JobStatus
    progress: float
    created: datetime
    started: datetime | None
    finished: datetime | None
    files: list[JobFile]
    parameters: dict[str, object]
    error: JobError | None = None
    result: ResultFile | None = field(default=None, repr=False)
