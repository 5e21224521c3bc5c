"""From the bytes of an upload to those of its result: the way of one picture, at its turn, while it is wanted."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

from srgan.errors import SrganError
from srgan.folder.making import Decision, decide, make
from srgan.pictures import FORMATS, Mask, Picture
from srgan.pictures.guarded import GuardedDecoder
from srgan.room import Room
from srgan.upscale import AnyUpscaler
from srgan_service.http.parameters import Wish
from srgan_service.http.problems import Problem, problem_of
from srgan_service.metrics import Metrics
from srgan_service.settings import Settings
from srgan_service.work.admission import Gate, Lane, Ticket
from srgan_service.work.device import Device
from srgan_service.work.fair import Stopped
from srgan_service.work.models import Models

T = TypeVar("T")

MEDIA_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "avif": "image/avif",
    "tiff": "image/tiff",
    "gif": "image/gif",
    "bmp": "image/bmp",
    "ppm": "image/x-portable-anymap",
}

# Of the memory for results, so much is for the small lane: 640×480 in AVIF takes 0.5 GB.
_SMALL_SHARE = 0.2

Decode = Callable[[bytes], Picture]


@dataclass(frozen=True)
class Answer:
    """A result as a file. `format`: a key of `srgan.pictures.FORMATS`. `width` and `height`: in pixels.

    `label`: the size in a word, as names of files have it. `warnings`: what of the upload is not as it was, each
    in a few words. `invented_levels`: of a map, which is then what is answered with.
    """

    content: bytes
    format: str
    width: int
    height: int
    model: str
    label: str
    warnings: tuple[str, ...] = ()
    invented_levels: float | None = None

    @property
    def media_type(self) -> str:
        """The Content-Type of the file."""
        return MEDIA_TYPES[self.format]


class Works:
    """Decodes, upscales and encodes; a picture of many pixels never keeps those of few waiting.

    Decoding and encoding have threads and processes of their own beside the device's. `decode` reads an upload.
    `room_bytes`: for the results in work and their encoding; of it a fifth is for small pictures alone.
    """

    def __init__(
        self,
        settings: Settings,
        models: Models,
        device: Device,
        gate: Gate,
        metrics: Metrics,
        decode: Decode,
        room_bytes: int,
    ) -> None:
        self._settings = settings
        self._models = models
        self._device = device
        self._gate = gate
        self._metrics = metrics
        self._decode = decode
        self.lanes = {
            "small": Lane(settings.small_at_once, settings.small_at_once - 1),
            "large": Lane(settings.large_at_once),
        }
        small_bytes = int(room_bytes * _SMALL_SHARE)
        self._rooms = {"small": Room(small_bytes), "large": Room(room_bytes - small_bytes)}
        self._decoding = Lane(2, 1)  # what is made to be slow holds a decoder for ten seconds
        self._loading = Lane(1)
        at_once = settings.small_at_once + settings.large_at_once
        # One for each picture in work, so that none waits for another's.
        self.coder = GuardedDecoder(always=True, max_workers=at_once + settings.jobs_at_once)
        self._decoders = ThreadPoolExecutor(2, "srgan-decode")
        self._workers = ThreadPoolExecutor(at_once + 1, "srgan-work")  # one of them to load a model

    def close(self) -> None:
        """End the threads."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._workers.shutdown(wait=False, cancel_futures=True)

    async def answer(self, ticket: Ticket, content: bytes, wish: Wish, mask: bytes | None = None) -> Answer:
        """Return the result of an upload, with its `mask`. If this is cancelled, it ends after the tile at hand.

        Raises Problem for whatever is wrong with the picture or the wish, or if there is no room for it.
        """
        with _problems():
            order = wish.order()
            self._models.check(wish.model, wish.balance)
        if mask is not None:
            painted = await self._decoded(ticket, mask)
            order = wish.order(Mask.of(painted))
        picture = await self._decoded(ticket, content)
        name = self._models.for_picture(picture, wish.model, wish.balance, wish.scale)
        wish = wish.model_copy(update={"model": name})
        upscaler = await self._upscaler(ticket, wish)
        if order.map or mask is not None:
            async with self._loading.turn(ticket):
                await self._until_stopped(ticket, self._workers, upscaler.partner)
        with _problems():
            decision = decide(picture, order, upscaler)
            cost_px = upscaler.lr_px(picture, order.request) * (1 + order.map)
        self._refuse_if_too_much(decision)
        is_small = (
            cost_px <= self._settings.small_megapixels * 1e6
            and decision.memory.held <= self._rooms["small"].limit_bytes
        )
        lane = "small" if is_small else "large"
        self._refuse_if_hopeless(cost_px)
        self._gate.weigh(ticket, cost_px, lane)
        self._gate.refuse_if_draining()
        waiting_since = monotonic()
        async with self.lanes[lane].turn(ticket):
            self._metrics.wait.labels(lane).observe(monotonic() - waiting_since)
            return await self._until_stopped(
                ticket, self._workers, lambda: self._work(ticket, upscaler, decision, self._rooms[lane])
            )

    def work_on_job(self, ticket: Ticket, content: bytes, wish: Wish, progress: Callable[[float], None]) -> Answer:
        """Return the result of an upload of a job, in the thread that asks.

        `progress` is called with the finished fraction; what it raises ends the work. Raises Problem.
        """
        with _problems():
            order = wish.order()
            self._models.check(wish.model, wish.balance)
            picture = self._decode(content)
            name = self._models.for_picture(picture, wish.model, wish.balance, wish.scale)
            upscaler = self._models.get(name, wish.balance, wish.is_faithful)
            decision = decide(picture, order, upscaler)
        self._refuse_if_too_much(decision)
        return self._work(ticket, upscaler, decision, self._rooms["large"], progress)

    async def _decoded(self, ticket: Ticket, content: bytes) -> Picture:
        async with self._decoding.turn(ticket):
            return await self._until_stopped(ticket, self._decoders, lambda: self._decode(content))

    async def _upscaler(self, ticket: Ticket, wish: Wish) -> AnyUpscaler:
        if (loaded := self._models.loaded(wish.model, wish.balance, wish.is_faithful)) is not None:
            return loaded
        async with self._loading.turn(ticket):  # one after the other, so that who needs none to be loaded goes on
            return await self._until_stopped(
                ticket, self._workers, lambda: self._models.get(wish.model, wish.balance, wish.is_faithful)
            )

    def _work(
        self,
        ticket: Ticket,
        upscaler: AnyUpscaler,
        decision: Decision,
        room: Room,
        progress: Callable[[float], None] | None = None,
    ) -> Answer:
        def report(fraction: float) -> None:
            if ticket.flow.stopped:
                raise Stopped
            if progress is not None:
                progress(fraction)

        report(0.0)
        waiting = functools.partial(report, 0.0)
        with _problems(), room.taken(decision.memory.held, waiting), self._device.shared_by(ticket.flow):
            made = make(decision, upscaler, report, coder=self.coder)
            content, format, result, label = (
                made.content,
                made.format,
                made.picture,
                decision.order.request.label(upscaler.scale),
            )
            if made.invention is not None:
                result, format, label = made.invention.drawn(), "png", f"{label}_map"
                content = self.coder.encode(result, format)
        self._metrics.pixels_in.inc(sum(frame.width * frame.height for frame in decision.picture.frames))
        self._metrics.pixels_out.inc(sum(frame.width * frame.height for frame in made.picture.frames))
        return Answer(
            content=content,
            format=format,
            width=result.width,
            height=result.height,
            model=upscaler.metadata.name,
            label=label,
            warnings=made.warnings,
            invented_levels=None if made.invention is None else made.invention.rms_levels,
        )

    async def _until_stopped(self, ticket: Ticket, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        """Return what `work` does in a thread of `pool`; if this is cancelled, stop the work and see its end."""

        def guarded() -> T:
            with _problems():
                return work()

        future = asyncio.get_running_loop().run_in_executor(pool, guarded)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            ticket.flow.stopped = True
            await _ended(future)
            raise

    def _refuse_if_too_much(self, decision: Decision) -> None:
        most = self._rooms["large"].limit_bytes
        if decision.memory.held > most:
            raise Problem(
                "too-many-pixels",
                f"the result as {FORMATS[decision.format].pillow} takes {decision.memory.held / 1e6:.0f} MB of "
                f"memory, and {most / 1e6:.0f} MB are there for it; choose another format or a smaller picture",
            )

    def _refuse_if_hopeless(self, cost_px: int) -> None:
        # Not the speed of late: after a slow hour, a picture that is never begun would never prove it wrong.
        speed = self._device.best_lr_px_per_s
        if speed and cost_px / speed > self._settings.deadline_s:
            raise Problem(
                "takes-too-long",
                f"this picture takes about {cost_px / speed:.0f} s here, and one request may take "
                f"{self._settings.deadline_s:.0f} s; send it to /v1/jobs",
            )


class _problems(contextlib.AbstractContextManager[None]):  # noqa: N801
    """Turns the library's errors into Problems."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, MemoryError):
            raise Problem(
                "queue-full", "there is not enough memory for this picture now", retry_after_s=5
            ) from error
        if isinstance(error, SrganError):
            raise problem_of(error) from error


async def _ended(future: Awaitable[object]) -> None:
    """Wait until `future` is done, however often this is cancelled; what it gives is nobody's any more."""
    waiting = asyncio.ensure_future(asyncio.wait([asyncio.ensure_future(future)]))
    while not waiting.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(waiting)
    with contextlib.suppress(BaseException):
        await future
