"""What an application owns while it runs."""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import structlog

from srgan.machine import available_bytes
from srgan.pictures.guarded import GuardedDecoder, Limits
from srgan.upscale import AnyUpscaler
from srgan_service.http.cancellation import Cancellation
from srgan_service.http.keys import Keys
from srgan_service.http.problems import Problem, draining
from srgan_service.metrics import Metrics
from srgan_service.settings import Settings
from srgan_service.work.admission import Gate, Lane
from srgan_service.work.device import WARM_ENGINES, Device
from srgan_service.work.models import Models
from srgan_service.work.upscaling import Decode, Works

_log = structlog.stdlib.get_logger("srgan_service")

# Below this much free memory, or disk for the pictures of jobs, the service says that it is not ready.
_LEAST_FREE_BYTES = 256 * 2**20
_LOOK_EVERY_S = 0.5  # it costs up to three milliseconds, and every request asks

# A tile of 120 pixels a side, the smallest of the bundled models.
_LEAST_WORKING_BYTES = 128 * 2**20

# Of the free memory that one piece of work may take at most: two engines keep as much.
_WORKING_SHARE = 1 / 24

# What Python, the libraries and an engine take (300 MB after the first picture), and what decoders and the queue
# take for a pixel of an upload: 16 MP of JPEG, AVIF and 16-bit TIFF took 7 to 14 bytes; half of the queue is RGBA.
_PROCESS_BYTES = 300_000_000
_DECODING_BYTES_PER_PX = 14
_QUEUE_BYTES_PER_PX = 3.5


def working_bytes(settings: Settings, free_bytes: int) -> int:
    """Return how much memory one piece of work may take where `free_bytes` are free at the start."""
    return min(settings.memory_bytes, max(_LEAST_WORKING_BYTES, int(free_bytes * _WORKING_SHARE)))


def upload_megapixels(settings: Settings, free_bytes: int) -> float:
    """Return how many pixels an upload may have: those of today's telephones, where their results have room."""
    if settings.limit_megapixels is not None:
        return settings.limit_megapixels
    return 25.0 if free_bytes >= 8 * 10**9 else 16.0  # 5712×4284 are 24.5; ×4 in RGB they are 1.2 GB


def room_bytes(settings: Settings, free_bytes: int) -> int:
    """Return how much of `free_bytes` is left for results and their encoding: what nothing else may take."""
    others = WARM_ENGINES * working_bytes(settings, free_bytes) + settings.queue_bytes + _PROCESS_BYTES
    decoding = 2 * upload_megapixels(settings, free_bytes) * _DECODING_BYTES_PER_PX
    queue = settings.queue_megapixels * _QUEUE_BYTES_PER_PX
    return max(0, free_bytes - int(others + 1e6 * (decoding + queue)))


class Service:
    """What one application owns; `app.state.service`."""

    def __init__(
        self, settings: Settings, upscaler: AnyUpscaler | None = None, decode: Decode | None = None
    ) -> None:
        free_bytes = available_bytes()  # before anything of this program is there
        self.settings = settings
        self.limit_megapixels = upload_megapixels(settings, free_bytes)
        self.metrics = Metrics()
        self.jobs_not_ready: Callable[[], str | None] = lambda: None  # set by whoever has jobs
        self._shortage: str | None = None
        self._looked_at = -math.inf
        self.keys = Keys(settings)
        self.device = Device(batch_tiles=settings.batch_tiles)
        self.models = Models(
            self.device,
            default=settings.model,
            tile_lr_px=settings.tile_lr_px,
            memory_bytes=working_bytes(settings, free_bytes),
            on=settings.device,
            precision=settings.precision,
            max_output_megapixels=settings.limit_output_megapixels,
            upscaler=upscaler,
        )
        self.gate = Gate(
            requests=settings.queue_requests,
            bytes=settings.queue_bytes,
            px=int(settings.queue_megapixels * 1e6),
            deadline_s=settings.deadline_s,
            px_per_s=lambda: self.device.lr_px_per_s,
        )
        self.cancellation = Cancellation()
        limits = Limits(
            max_megapixels=self.limit_megapixels,
            max_side_px=settings.limit_side_px,
            max_frames=settings.limit_frames,
        )
        # Two for requests, of different keys, and those of jobs.
        self.decoder = GuardedDecoder(limits, always=True, max_workers=2 + settings.jobs * settings.jobs_at_once)
        self.works = Works(
            settings,
            self.models,
            self.device,
            self.gate,
            self.metrics,
            decode or self.decoder.decode,
            room_bytes(settings, free_bytes),
        )
        self._declare_gauges()

    def _declare_gauges(self) -> None:
        gauge = self.metrics.gauge
        gauge("srgan_requests_inside", "Requests let in and not yet answered.", lambda: self.gate.inside)
        gauge("srgan_queue_pixels", "Pixels decoded and not yet answered.", lambda: self.gate.px)
        gauge("srgan_queue_bytes", "Bytes of uploads that are held.", lambda: self.gate.bytes)
        for name, lane in self.works.lanes.items():
            self._declare_lane(name, lane)
        gauge("srgan_engine_pixels_per_second", "Of late.", lambda: self.device.lr_px_per_s)
        self.metrics.total(
            "srgan_decoder_crashes",
            "Decoders and encoders that died on a file.",
            lambda: self.decoder.crashes + self.works.coder.crashes,
        )
        gauge("srgan_ready", "1 if requests are taken.", lambda: float(self.not_ready() is None))
        self.metrics.total("srgan_engine_seconds", "Time the engine computed.", lambda: self.device.busy_s)

    def _declare_lane(self, name: str, lane: Lane) -> None:
        waiting, working = f"srgan_{name}_waiting", f"srgan_{name}_working"
        self.metrics.gauge(waiting, f"Pictures that wait in the {name} lane.", lambda: lane.waiting)
        self.metrics.gauge(working, f"Pictures of the {name} lane in work.", lambda: len(lane.working))

    def not_ready(self, *, for_jobs: bool = True) -> str | None:
        """Return why no requests are taken, in a word that tells nothing secret, or None if they are.

        `for_jobs`: jobs need a disk and their database; a picture that is answered at once needs neither.
        """
        if self.gate.draining:
            return "draining"
        if not self.models.ready:
            return "model" if self.models.failure else "loading"
        shortage = self._short_of()
        if for_jobs:
            return shortage or self.jobs_not_ready()
        return shortage if shortage == "memory" else None

    def refuse_if_not_ready(self, *, for_jobs: bool) -> None:
        """Raise the Problem for requests that come while `not_ready` has a reason."""
        if (reason := self.not_ready(for_jobs=for_jobs)) is not None:
            raise draining() if reason == "draining" else Problem("not-ready", reason, retry_after_s=2)

    def _short_of(self) -> str | None:
        """Return "memory" or "disk" if there is little of it, as it was at most half a second ago."""
        if monotonic() - self._looked_at > _LOOK_EVERY_S:
            folder = Path(self.settings.data_dir)
            if available_bytes() < _LEAST_FREE_BYTES:
                self._shortage = "memory"
            elif folder.is_dir() and shutil.disk_usage(folder).free < _LEAST_FREE_BYTES:
                self._shortage = "disk"
            else:
                self._shortage = None
            self._looked_at = monotonic()
        return self._shortage

    def drain(self) -> None:
        """Take no more requests, refuse those that wait, and give those in work their grace time."""
        if self.gate.draining:
            return
        self.gate.draining = True
        _log.info("draining", inside=self.gate.inside)
        for lane in self.works.lanes.values():
            lane.refuse_waiting(draining())
        self.cancellation.drain()
        asyncio.get_running_loop().call_later(self.settings.grace_s, self.cancellation.end)

    def close(self) -> None:
        """Stop all work and end the threads."""
        self.device.close()
        self.works.close()
        self.works.coder.close()
        self.decoder.close()
