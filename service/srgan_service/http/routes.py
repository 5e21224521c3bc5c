"""The routes for pictures at once, for models and for who watches the service."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from importlib.util import find_spec
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from srgan.engines.protocol import Precision
from srgan.pictures import FORMATS
from srgan.upscale import MAX_SCALE, MIN_SCALE
from srgan_service.http import manual, openapi
from srgan_service.http.cancellation import WatchedResponse
from srgan_service.http.keys import Holder
from srgan_service.http.parameters import Wish
from srgan_service.http.problems import Problem, documented
from srgan_service.http.uploads import Body, BodyLimits, announced_bytes, one_picture, too_large
from srgan_service.work.admission import Ticket
from srgan_service.work.names import disposition, result_name
from srgan_service.work.service import Service


# Not plain functions: those would wait for a thread.
async def service_of(request: Request) -> Service:
    """Return what the application of a request owns."""
    service: Service = request.app.state.service
    return service


async def holder_of(request: Request, service: Annotated[Service, Depends(service_of)]) -> Holder:
    """Return whose request it is, or raise the Problem that it is nobody's."""
    holder = service.keys.holder(request)
    if holder.name:
        request.state.key = holder.name
    return holder


AService = Annotated[Service, Depends(service_of)]
AHolder = Annotated[Holder, Depends(holder_of)]
AWish = Annotated[Wish, Query()]

PICTURE_PROBLEMS = (
    *("no-picture", "unauthorized", "upload-too-slow", "too-many-bytes", "chunks-too-small"),
    *(
        "too-many-pixels",
        "takes-too-long",
        "unsupported-format",
        "damaged-picture",
        "invalid-parameter",
        "key-over-share",
    ),
    *("queue-full", "draining", "not-ready", "engine-failed", "deadline"),
)

_PLAIN = "".join(map(chr, range(32, 127))).replace("%", "")  # what a header carries as it is

# Of the header, which is there for people and short programs; every reason is short by nature.
_MOST_WARNINGS, _MOST_WARNING_CHARACTERS = 8, 200

pictures = APIRouter(tags=["pictures"])
watching = APIRouter(tags=["watching"])


async def ticket_of(request: Request, service: AService, holder: AHolder) -> AsyncIterator[Ticket]:
    """Let a request in before anything of its body is read, until its answer is sent."""
    announced = announced_bytes(request.headers)
    if announced > service.settings.limit_bytes:
        raise too_large(service.settings.limit_bytes)
    service.refuse_if_not_ready(for_jobs=False)
    ticket = service.gate.enter(holder.name, holder.share, announced)
    try:
        yield ticket
    finally:
        service.gate.leave(ticket)


@pictures.post(
    "/v1/upscale",
    summary="Upscale a picture",
    operation_id="upscale",
    response_class=Response,
    responses={**openapi.picture_responses(), **documented(*PICTURE_PROBLEMS)},
    openapi_extra=openapi.picture_body(),
)
async def upscale(
    request: Request, service: AService, ticket: Annotated[Ticket, Depends(ticket_of)], wish: AWish
) -> Response:
    """Answer with the picture itself, larger.

    The body is the picture, or a form with it in `image` or `file`; parameters may stand in the query or the form.
    A form may have a mask in `protect`, a picture of the same size: where that is white, the result is that of the
    model trained for content alone.
    """
    settings = service.settings
    limits = BodyLimits(settings.limit_bytes, settings.body_timeout_s, settings.body_bytes_per_s)
    body = Body(request, limits, lambda count: service.gate.add_bytes(ticket, count))
    upload = await service.cancellation.upload(one_picture(body, request.headers, wish))
    answer = await service.cancellation.run(
        request, service.works.answer(ticket, upload.content, upload.wish, upload.mask), settings.deadline_s
    )
    return WatchedResponse(
        answer.content,
        answer.media_type,
        {
            "Content-Disposition": disposition("inline", result_name(upload.name, upload.wish, answer)),
            "X-Model": quote(answer.model, safe=_PLAIN),
            **warnings_header(answer.warnings),
            **({} if answer.invented_levels is None else {"X-Invented-Levels": f"{answer.invented_levels:.2f}"}),
        },
        timeout_s=settings.write_timeout_s,
        bytes_per_s=settings.body_bytes_per_s,
    )


def warnings_header(warnings: Sequence[str]) -> dict[str, str]:
    """Return the header X-Warnings for `warnings`, no header for none: a list of strings after RFC 9651.

    Strings there are ASCII; whatever is not becomes a question mark, and long ones are cut.
    """
    plain = [re.sub(r"[^ -~]", "?", warning)[:_MOST_WARNING_CHARACTERS] for warning in warnings[:_MOST_WARNINGS]]
    quoted = ['"' + re.sub(r'(["\\])', r"\\\1", text) + '"' for text in plain]
    return {"X-Warnings": ", ".join(quoted)} if quoted else {}


@watching.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """Answer with the documentation for people."""
    # Not the host of the request: that is the client's word.
    server = request.scope.get("server") or ("127.0.0.1", 8000)
    html = manual.page(request.app.openapi(), f"http://{server[0]}:{server[1]}")
    return Response(html, media_type="text/html")


@watching.get("/docs/style.css", include_in_schema=False)
async def docs_style() -> Response:
    """Answer with how the documentation looks."""
    return Response(manual.STYLE, media_type="text/css")


class Model(BaseModel):
    """A model that requests may name."""

    name: str
    description: str
    scale: int = Field(description="Times larger, when nothing else is asked for.")
    default: bool = Field(description="Whether it is used when a request names none.")
    faithful: bool = Field(
        description="Whether its results, reduced again, are the upload, unless a request says otherwise."
    )
    precision: Precision | None = Field(
        description="In what it computes: fp32, bf16, fp16 or int8; null until it is first used.",
        examples=["bf16"],
    )


class ModelList(BaseModel):
    """The models of this service."""

    models: list[Model]
    balance: tuple[str, str] | None = Field(
        description="The models that `balance` 0 and 1 stand for; null if there are none.",
        examples=[["srresnet-x4", "srgan-x4"]],
    )


class UploadLimits(BaseModel):
    """What an upload may have; more is refused with 413."""

    bytes: int
    megapixels: float
    side_px: int
    frames: int = Field(description="Of an animation, or pages; together within the megapixels.")
    output_megapixels: float = Field(description="Of the result.")


class JobLimits(BaseModel):
    """What a job may have."""

    files: int
    bytes: int


class LimitList(BaseModel):
    """What can be asked for here."""

    upload: UploadLimits
    jobs: JobLimits | None = Field(description="null if no jobs are taken.")
    deadline_s: float = Field(description="What takes longer than this belongs to `/v1/jobs`.")
    formats_read: list[str] = Field(examples=[["png", "jpg"]])
    formats_written: list[str] = Field(examples=[["png", "jpg"]])
    scales: tuple[float, float] = Field(
        description="The least and the most, with all between.", examples=[[1, 16]]
    )
    precisions: list[Precision] = Field(
        description="In what the models that were used compute.", examples=[["fp32"]]
    )


class State(BaseModel):
    """How the service is."""

    status: str = Field(examples=["ok"])


@pictures.get(
    "/v1/models", summary="List the models", operation_id="list_models", responses=documented("unauthorized")
)
async def models(service: AService, holder: AHolder) -> ModelList:
    """Answer with the models that a request may name."""
    listed = [
        Model(
            name=model.name,
            description=model.description,
            scale=model.scale,
            default=model.is_default,
            faithful=model.is_faithful,
            precision=service.models.precision(model.name),
        )
        for model in service.models.listed
    ]
    return ModelList(models=listed, balance=service.models.balance)


@pictures.get(
    "/v1/limits",
    summary="What can be asked for",
    operation_id="list_limits",
    responses=documented("unauthorized"),
)
async def limits(service: AService, holder: AHolder) -> LimitList:
    """Answer with what uploads and jobs may have, and with formats, scales and precisions."""
    settings = service.settings
    return LimitList(
        upload=UploadLimits(
            bytes=settings.limit_bytes,
            megapixels=service.limit_megapixels,
            side_px=settings.limit_side_px,
            frames=settings.limit_frames,
            output_megapixels=settings.limit_output_megapixels,
        ),
        jobs=JobLimits(files=settings.job_files, bytes=settings.job_bytes) if settings.jobs else None,
        deadline_s=settings.deadline_s,
        formats_read=[*FORMATS, *(["heic"] if find_spec("pillow_heif") else [])],
        formats_written=list(FORMATS),
        scales=(MIN_SCALE, MAX_SCALE),
        precisions=sorted(
            {known for model in service.models.listed if (known := service.models.precision(model.name))}
        ),
    )


@watching.get("/healthz", summary="Whether the process is alive", operation_id="health", responses=documented())
async def health() -> State:
    """Answer at once, whatever is in work."""
    return State(status="ok")


@watching.get(
    "/readyz", summary="Whether requests are taken", operation_id="ready", responses=documented("not-ready")
)
async def ready(service: AService) -> State:
    """Answer 200 if a model has proved itself, jobs are open, there is room, and the service does not end."""
    if reason := service.not_ready():
        raise Problem("not-ready", reason, retry_after_s=2)
    return State(status="ready")


@watching.get(
    "/metrics",
    summary="Figures for Prometheus",
    operation_id="metrics",
    response_class=Response,
    responses={
        200: {"description": "Prometheus text format.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **documented("unauthorized"),
    },
)
async def metrics(service: AService, holder: AHolder) -> Response:
    """Answer with counters, gauges and histograms in Prometheus' text format."""
    return Response(service.metrics.text(), media_type=service.metrics.content_type)
