"""The HTTP application: its parts put together, and its life from start to end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from srgan.environment import refuse_misspelt
from srgan.interrupts import signals_taken
from srgan.upscale import AnyUpscaler
from srgan_service import logs
from srgan_service.http import job_routes, openapi, routes
from srgan_service.http.job_routes import JobDesk
from srgan_service.http.middleware import RequestMiddleware
from srgan_service.http.origins import Cors, Origins
from srgan_service.http.parameters import describe_errors
from srgan_service.http.problems import Problem
from srgan_service.jobs.jobs import Jobs
from srgan_service.settings import Settings
from srgan_service.work.service import Service
from srgan_service.work.upscaling import Decode

_log = structlog.stdlib.get_logger("srgan_service")
_STATIC = Path(__file__).parent / "static"


def create_app(
    settings: Settings | None = None, upscaler: AnyUpscaler | None = None, decode: Decode | None = None
) -> FastAPI:
    """Return the application, by default with the settings of the environment and the bundled models.

    `upscaler`, `decode`: used instead of the models and of the reading of uploads. Raises what `Keys` and `Models`
    do, UsageError for a misspelt setting. Beside `uvicorn srgan_service.app:create_app --factory` belongs
    `--http srgan_service.http.protocol:Protocol`: deadlines for heads and idle connections are the protocol's.
    """
    if settings is None:  # called by uvicorn itself
        refuse_misspelt()
        settings = Settings()
        logs.configure(settings.log_level)
    service = Service(settings, upscaler, decode)
    app = FastAPI(
        title="SRGAN",
        summary="Photographs four times larger.",
        version=openapi.version(),
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,  # they would lead to whatever Host the client says
        separate_input_output_schemas=False,
    )
    app.state.service = service
    app.include_router(routes.pictures)
    app.state.desk = app.state.jobs = None
    if settings.jobs:
        jobs = app.state.jobs = Jobs(settings, service.works, service.metrics)
        service.jobs_not_ready = lambda: "jobs" if app.state.desk is None else jobs.not_ready()
        app.include_router(job_routes.router)
    app.include_router(routes.watching)
    _add_page(app)
    openapi.finish(app)
    _answer_with_problems(app)
    app.add_middleware(
        RequestMiddleware,
        metrics=service.metrics,
        limit_header_bytes=settings.limit_header_bytes,
        origins=Origins(settings, service.keys),
    )
    if settings.origins:
        app.add_middleware(Cors, origins=settings.origins)
    return app


def _add_page(app: FastAPI) -> None:
    """Add the page at `/` and its files below `/static`; at the root they would hide the 405 of other routes."""
    fresh = {"Cache-Control": "no-cache"}  # asked for again each time, and answered with 304 while it is the same

    class Static(StaticFiles):
        def file_response(self, *args: Any, **kwargs: Any) -> Response:
            response = super().file_response(*args, **kwargs)
            response.headers.update(fresh)
            return response

    async def page(request: Request) -> Response:
        return FileResponse(_STATIC / "index.html", headers=fresh)

    app.add_route("/", page, methods=["GET"], include_in_schema=False)
    app.mount("/static", Static(directory=_STATIC), name="static")


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    jobs: Jobs | None = app.state.jobs
    loading = asyncio.create_task(_load(app, service, jobs))
    with _drained_by_signals(service):
        yield
    service.drain()
    service.cancellation.end()
    loading.cancel()
    if app.state.desk is not None and jobs is not None:
        await asyncio.to_thread(jobs.stop)
        app.state.desk.close()
    await asyncio.to_thread(service.close)


async def _load(app: FastAPI, service: Service, jobs: Jobs | None) -> None:
    try:
        await asyncio.to_thread(service.models.prove)
        _log.info("ready", model=service.models.default)
    except Exception:  # noqa: BLE001  # logged; the service stays not ready
        _log.exception("the model cannot be used")
        return
    while jobs is not None and app.state.desk is None:
        try:
            await asyncio.to_thread(jobs.start)
            app.state.desk = JobDesk(service, jobs)
        except Exception:  # noqa: BLE001  # logged; a database may come back
            _log.exception("the jobs' database cannot be used")
            await asyncio.sleep(5)


@contextlib.contextmanager
def _drained_by_signals(service: Service) -> Iterator[None]:
    """Learn of signals at once; the server, which takes them too, tells its application after all requests."""
    if threading.current_thread() is not threading.main_thread():  # such a server gets no signals
        yield
        return
    loop = asyncio.get_running_loop()

    def take(number: int) -> None:
        loop.call_soon_threadsafe(service.drain)
        server = before[number]
        if callable(server):
            server(number, None)

    with signals_taken(take) as before:
        yield


def _answer_with_problems(app: FastAPI) -> None:
    """Give what the frameworks raise the one shape of all errors."""

    async def answer(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, Problem)  # noqa: S101  # registered for nothing else
        request.state.problem = problem.code
        return problem.response(request.state.request_id)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        return await answer(request, Problem("invalid-parameter", describe_errors(error.errors())))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        code = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "malformed-request")
        detail = {404: "no such address", 405: "this address takes other methods"}.get(error.status_code)
        headers = dict(error.headers or {})
        if methods := openapi.allowed(app, request.url.path):
            headers["Allow"] = methods
        return await answer(request, Problem(code, detail or "the request cannot be understood", headers=headers))

    app.add_exception_handler(Problem, answer)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
